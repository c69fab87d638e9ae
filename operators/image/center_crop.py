"""Crop the centre square, byte for byte as torchvision's ``CenterCrop`` does."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from operators.base import Batch, FieldSpec, Operator, OperatorConfig
from operators.image.geometry import central, crop_all, crop_into


class CenterCropConfig(OperatorConfig):
    """Options of ``center_crop``."""

    name: Literal["center_crop"] = "center_crop"
    size: Annotated[int, Field(ge=1, le=16_384, description="Side of the square, pixels.")] = 256


class CenterCrop(Operator[CenterCropConfig]):
    """Crop the centre of RGB images to one dense array.

    Reads ``image`` (Pillow); replaces it by uint8 [S, S, 3], S = size. An odd remainder of r
    pixels puts ``round(r / 2)``, ties to even, in front. A side shorter than S is padded with
    zeros, ``(S - side) // 2`` of them in front.
    """

    Config = CenterCropConfig
    inputs: Mapping[str, FieldSpec] = {"image": FieldSpec("pillow", (None, None, 3))}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The square."""
        return {"image": FieldSpec("uint8", (self.config.size, self.config.size, 3))}

    def __call__(self, batch: Batch) -> Batch:
        """Crop every row."""
        return {"image": crop_all(batch["image"], self.config.size, _crop)}


def _crop(image: Image.Image, out: np.ndarray) -> None:
    crop_into(image, _start(image.width, len(out)), _start(image.height, len(out)), out)


def _start(side: int, size: int) -> int:
    """Return where the crop starts, negative for padding in front."""
    return central(side, size) if side >= size else -((size - side) // 2)
