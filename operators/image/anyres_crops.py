"""Cut images of any shape into square crops, and the whole made small: LLaVA-NeXT's AnyRes."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from operators.base import Batch, FieldSpec, Operator, OperatorConfig, Ragged
from operators.errors import RowErrors, SampleError
from operators.image.anyres import best_grid, fitted_size
from operators.image.geometry import DEFAULT_MAX_PIXELS, MaxPixels, scale

Count = Annotated[int, Field(ge=1, le=64)]


class AnyResCropsConfig(OperatorConfig):
    """Options of ``anyres_crops``."""

    name: Literal["anyres_crops"] = "anyres_crops"
    size: Annotated[int, Field(ge=1, le=16_384, description="Side of a crop, pixels.")] = 336
    grids: Annotated[
        tuple[tuple[Count, Count], ...],
        Field(
            min_length=1,
            description="Rows and columns of crops to choose from; LLaVA-NeXT's by default.",
        ),
    ] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    interpolation: Annotated[
        Literal["bilinear", "bicubic", "lanczos"], Field(description="Pillow's filter.")
    ] = "bicubic"
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS


class AnyResCrops(Operator[AnyResCropsConfig]):
    """Cut an image into a grid of crops that fits its shape, behind the whole image made small.

    Reads ``image`` (Pillow); replaces it by uint8 [*, S, S, 3], as many as the image has: first the
    whole image squashed to S x S, then the crops from left to right and top to bottom. Adds
    ``crop_grid`` int32 [4]: rows and columns of crops, height and width of the image that was read.

    The grid is the one of ``grids`` in which most of the image's pixels are seen, and of these the
    one with least space left; the first of equals. The image is brought to the largest size of its
    aspect that lies in the grid, with black around it, the odd pixel at the right and the bottom.
    ``vision_encoder`` tells by ``crop_grid`` which tokens are of the image (``token_mask``).

    Unusable rows (``RowErrors``): none but those whose crops would have more than ``max_pixels``.

    Source: Liu et al., 2024, "LLaVA-NeXT". Checked: bytes, grids and tokens against the image
    processor and the unpadding of transformers.
    """

    Config = AnyResCropsConfig
    inputs: Mapping[str, FieldSpec] = {"image": FieldSpec("pillow", (None, None, 3))}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The crops and their grid."""
        size = self.config.size
        return {
            "image": FieldSpec("uint8", (None, size, size, 3)),
            "crop_grid": FieldSpec("int32", (4,)),
        }

    def metadata(self) -> Mapping[str, object]:
        """What the numbers of a grid are."""
        return {"crop_grid": ["rows", "columns", "height", "width"]}

    def __call__(self, batch: Batch) -> Batch:
        """Cut every row."""
        size = self.config.size
        crops: list[np.ndarray] = [np.empty((0, size, size, 3), np.uint8)]
        layouts: list[tuple[int, ...]] = []
        errors: dict[int, SampleError] = {}
        for row, image in enumerate(batch["image"]):
            grid = best_grid((image.height, image.width), self.config.grids, size)
            try:
                crops.append(self._cut(image, grid))
            except SampleError as error:
                errors[row] = error
                continue
            layouts.append((*grid, image.height, image.width))
        offsets = np.cumsum([len(each) for each in crops], dtype=np.int64)
        found = {
            "image": Ragged(np.concatenate(crops), offsets),
            "crop_grid": np.array(layouts, np.int32).reshape(-1, 4),
        }
        if errors:
            raise RowErrors(errors, found)
        return found

    def _cut(self, image: Image.Image, grid: tuple[int, int]) -> np.ndarray:
        """Return uint8 [1 + crops, S, S, 3]."""
        config, size = self.config, self.config.size
        filter_ = Image.Resampling[config.interpolation.upper()]
        height, width = grid[0] * size, grid[1] * size
        fitted = fitted_size((image.height, image.width), (height, width))
        limits = (filter_, config.max_pixels, config.name)
        if height * width > config.max_pixels:
            raise SampleError(
                f"{config.name}: {grid[0]} x {grid[1]} crops of {size} are {height * width:,} "
                f"pixels, expected at most {config.max_pixels:,}"
            )
        top, left = (height - fitted[0]) // 2, (width - fitted[1]) // 2
        padded = np.zeros((height, width, 3), np.uint8)
        padded[top : top + fitted[0], left : left + fitted[1]] = np.asarray(
            scale(image, fitted[::-1], *limits)
        )
        whole = np.asarray(scale(image, (size, size), *limits))
        tiles = padded.reshape(grid[0], size, grid[1], size, 3).swapaxes(1, 2)
        return np.concatenate([whole[None], tiles.reshape(-1, size, size, 3)])
