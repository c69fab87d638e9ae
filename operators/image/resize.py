"""Resize images with Pillow's antialiased filters, byte for byte as torchvision does."""

from collections.abc import Mapping
from typing import Annotated, Literal

from PIL import Image
from pydantic import Field

from operators.base import Batch, FieldSpec, Operator, OperatorConfig
from operators.errors import RowErrors, SampleError
from operators.image.geometry import DEFAULT_MAX_PIXELS, MaxPixels, scale, shorter_side_to


class ResizeConfig(OperatorConfig):
    """Options of ``resize``."""

    name: Literal["resize"] = "resize"
    size: Annotated[int, Field(ge=1, le=16_384, description="Pixels.")] = 256
    mode: Annotated[
        Literal["shorter", "squash"],
        Field(description="Bring the shorter side to `size`, or both sides, changing the aspect."),
    ] = "shorter"
    interpolation: Annotated[
        Literal["bilinear", "bicubic", "lanczos"], Field(description="Pillow's filter.")
    ] = "bilinear"
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS


class Resize(Operator[ResizeConfig]):
    """Resize RGB images.

    Reads and replaces ``image`` (Pillow). ``shorter`` is torchvision's ``Resize(size)``: the
    longer side becomes ``int(size * longer / shorter)``, rounded down. ``squash`` is its
    ``Resize((size, size))``. Pillow's filters widen when they shrink an image, which is what
    "antialias" means there. An image of the wanted size is passed on untouched.

    Unusable rows (``RowErrors``): strips that would grow beyond ``max_pixels``.
    """

    Config = ResizeConfig
    inputs: Mapping[str, FieldSpec] = {"image": FieldSpec("pillow", (None, None, 3))}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The resized image."""
        side = self.config.size if self.config.mode == "squash" else None
        return {"image": FieldSpec("pillow", (side, side, 3))}

    def __call__(self, batch: Batch) -> Batch:
        """Resize every row."""
        config = self.config
        filter_ = Image.Resampling[config.interpolation.upper()]
        images: list[Image.Image] = []
        errors: dict[int, SampleError] = {}
        for row, image in enumerate(batch["image"]):
            target = self._target(image)
            try:
                images.append(scale(image, target, filter_, config.max_pixels, config.name))
            except SampleError as error:
                errors[row] = error
        if errors:
            raise RowErrors(errors, {"image": images})
        return {"image": images}

    def _target(self, image: Image.Image) -> tuple[int, int]:
        size = self.config.size
        if self.config.mode == "squash":
            return size, size
        return shorter_side_to(size, *image.size)
