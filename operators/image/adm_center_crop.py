"""Resize and crop to the centre square as guided diffusion (ADM) prepares ImageNet."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from operators.base import Batch, FieldSpec, Operator, OperatorConfig
from operators.image.geometry import DEFAULT_MAX_PIXELS, MaxPixels, adm_square, crop_all, crop_into


class AdmCenterCropConfig(OperatorConfig):
    """Options of ``adm_center_crop``."""

    name: Literal["adm_center_crop"] = "adm_center_crop"
    size: Annotated[int, Field(ge=1, le=16_384, description="Side of the square, pixels.")] = 256
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS


class AdmCenterCrop(Operator[AdmCenterCropConfig]):
    """Bring the shorter side to S in two steps, then crop the centre.

    Reads ``image`` (Pillow); replaces it by uint8 [S, S, 3], S = size. Both sides are halved by a
    box filter while the shorter one is at least 2 S; then a bicubic resize makes it S, sides being
    rounded to the nearest pixel, ties to even; the crop starts at ``(side - S) // 2``. This is
    the preprocessing of ADM ("Diffusion Models Beat GANs on Image Synthesis"), DiT and, before
    tokenizing, of LlamaGen and TiTok.

    Unusable rows (``RowErrors``): strips that would grow beyond ``max_pixels``.
    """

    Config = AdmCenterCropConfig
    inputs: Mapping[str, FieldSpec] = {"image": FieldSpec("pillow", (None, None, 3))}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The square."""
        return {"image": FieldSpec("uint8", (self.config.size, self.config.size, 3))}

    def __call__(self, batch: Batch) -> Batch:
        """Resize and crop every row."""
        return {"image": crop_all(batch["image"], self.config.size, self._crop)}

    def _crop(self, image: Image.Image, out: np.ndarray) -> None:
        square = adm_square(image, len(out), self.config.max_pixels, self.config.name)
        crop_into(square, 0, 0, out)
