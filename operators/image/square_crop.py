"""Crop the largest centred square, whatever its size."""

from collections.abc import Mapping
from typing import Literal

from PIL import Image

from operators.base import Batch, FieldSpec, Operator, OperatorConfig


class SquareCropConfig(OperatorConfig):
    """Options of ``square_crop``."""

    name: Literal["square_crop"] = "square_crop"


class SquareCrop(Operator[SquareCropConfig]):
    """Cut the longer side of RGB images to the shorter one, keeping the centre.

    Reads and replaces ``image`` (Pillow). An odd remainder of r pixels puts ``r // 2`` in front.
    Followed by ``resize`` with mode ``squash`` it is how 4M prepares images: the crop comes before
    the resize, so that its borders are not blurred with what lies outside.
    """

    Config = SquareCropConfig
    inputs: Mapping[str, FieldSpec] = {"image": FieldSpec("pillow", (None, None, 3))}
    outputs: Mapping[str, FieldSpec] = {"image": FieldSpec("pillow", (None, None, 3))}

    def __call__(self, batch: Batch) -> Batch:
        """Crop every row."""
        return {"image": [_cropped(image) for image in batch["image"]]}


def _cropped(image: Image.Image) -> Image.Image:
    side = min(image.size)
    if image.size == (side, side):
        return image
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
