"""What resizing and cropping operators share."""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from operators.errors import RowErrors, SampleError

MaxPixels = Annotated[
    int,
    Field(ge=1, description="Refuse images that would be scaled up to more pixels than this."),
]
"""A strip of 1 x 60,000 pixels with its shorter side brought to 256 would be 4 gigapixels."""

DEFAULT_MAX_PIXELS = 100_000_000


def scale(
    image: Image.Image,
    size: tuple[int, int],
    filter_: Image.Resampling,
    max_pixels: int,
    where: str,
) -> Image.Image:
    """Resize to ``size`` (width, height); an image of that size is returned as it is.

    Raises:
        SampleError: the result would have more than ``max_pixels``.
    """
    if image.size == size:
        return image
    if size[0] * size[1] > max_pixels:
        raise SampleError(
            f"{where}: {image.width} x {image.height} would become {size[0]} x {size[1]}, "
            f"{size[0] * size[1]:,} pixels, expected at most {max_pixels:,}"
        )
    return image.resize(size, filter_)


def shorter_side_to(size: int, width: int, height: int) -> tuple[int, int]:
    """Return width and height with the shorter one at ``size``, as torchvision's ``Resize``."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def adm_square(image: Image.Image, size: int, max_pixels: int, where: str) -> Image.Image:
    """Return the centre square of ``size``, resized and cropped as guided diffusion (ADM) does.

    Raises:
        SampleError: on the way there it would have more than ``max_pixels``.
    """
    target, (left, top) = adm_geometry(size, *image.size)
    while min(image.size) >= 2 * size:
        half = (image.width // 2, image.height // 2)
        image = image.resize(half, Image.Resampling.BOX)
    image = scale(image, target, Image.Resampling.BICUBIC, max_pixels, where)
    return image.crop((left, top, left + size, top + size))


def adm_geometry(size: int, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return what ``adm_square`` resizes to, and left and top of the square there."""
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
    factor = size / min(width, height)
    width, height = round(width * factor), round(height * factor)
    return (width, height), ((width - size) // 2, (height - size) // 2)


def central(side: int, size: int) -> int:
    """Return where a central crop of ``size`` starts, as torchvision's ``CenterCrop``.

    An odd remainder of r pixels puts ``round(r / 2)``, ties to even, in front.
    """
    return round((side - size) / 2)


def crop_into(image: Image.Image, left: int, top: int, out: np.ndarray) -> None:
    """Copy the square of ``out``'s size at (left, top) into ``out``, zeros outside the image.

    Args:
        image: RGB.
        left: First column; negative pads.
        top: First row; negative pads.
        out: uint8 [S, S, 3].
    """
    size = len(out)
    pixels = image.crop((left, top, left + size, top + size)).tobytes()
    out[...] = np.frombuffer(pixels, np.uint8).reshape(size, size, 3)


def crop_all(
    images: Sequence[Image.Image],
    size: int,
    crop: Callable[[Image.Image, np.ndarray], None],
) -> np.ndarray:
    """Return uint8 [N, size, size, 3], filled row by row by ``crop(image, row)``.

    Raises:
        RowErrors: ``crop`` refused some images; carries the others as ``image``.
    """
    out = np.empty((len(images), size, size, 3), np.uint8)
    errors: dict[int, SampleError] = {}
    for row, image in enumerate(images):
        try:
            crop(image, out[row])
        except SampleError as error:
            errors[row] = error
    if errors:
        raise RowErrors(errors, {"image": np.delete(out, list(errors), axis=0)})
    return out
