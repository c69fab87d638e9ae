"""Decode image files to RGB with Pillow, as the papers' preprocessing does."""

import io
import re
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from PIL import ExifTags, Image
from pydantic import Field

# Importing a plugin registers its format in Image.OPEN.
from PIL import (  # isort: skip
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from operators.base import Batch, FieldSpec, Operator, OperatorConfig
from operators.errors import RowErrors, SampleError

PILLOW_MAX_PIXELS = 178_956_970
"""Above this Pillow itself refuses some formats, so a higher limit could not be kept."""

# An allow list: Pillow reads about forty formats, some (EPS) by running other programs.
_FORMATS = {
    plugin.format: Image.OPEN[plugin.format]
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
        PpmImagePlugin.PpmImageFile,
    )
}

# EXIF orientation (CIPA DC-008, tag 0x0112) -> what turns the stored pixels upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeImageConfig(OperatorConfig):
    """Options of ``decode_image``. The defaults are what ``Image.open().convert("RGB")`` does."""

    name: Literal["decode_image"] = "decode_image"
    max_pixels: Annotated[
        int,
        Field(
            ge=1,
            le=PILLOW_MAX_PIXELS,
            description="Refuse images of more pixels, by their header, before decoding any.",
        ),
    ] = 100_000_000
    exif_orientation: Annotated[
        Literal["ignore", "apply"],
        Field(description="Keep pixels as stored (as the papers do), or turn them upright."),
    ] = "ignore"
    background: Annotated[
        tuple[Annotated[int, Field(ge=0, le=255)], ...] | None,
        Field(
            min_length=3,
            max_length=3,
            description="RGB colour to lay transparent pixels on; without it alpha is dropped.",
        ),
    ] = None


class DecodeImage(Operator[DecodeImageConfig]):
    """Decode JPEG, PNG, WebP, GIF, BMP, TIFF and PBM/PGM/PPM files to RGB images.

    Reads ``image_bytes`` (binary, one file a row); adds ``image`` (Pillow, mode RGB). Of several
    frames or pages the first counts. Formats are told by content, never by name. Pixels are those
    of Pillow's ``convert("RGB")`` (palette, grey, 1 bit, CMYK with Adobe's inversion; alpha is
    dropped and embedded colour profiles are not applied), with one exception: grey of 16 bits
    keeps its high byte, as 16-bit colour does in Pillow, where ``convert`` would clip all above
    255 to white. TIFF pages are turned upright by Pillow itself, whatever ``exif_orientation``.

    Unusable rows (``RowErrors``): empty, of another format, broken, truncated, more than
    ``max_pixels``, grey of 32 bits without a defined white (floats; integers outside 16 bits).
    """

    Config = DecodeImageConfig
    inputs: Mapping[str, FieldSpec] = {"image_bytes": FieldSpec("binary")}
    outputs: Mapping[str, FieldSpec] = {"image": FieldSpec("pillow", (None, None, 3))}

    def __call__(self, batch: Batch) -> Batch:
        """Decode every row."""
        _ignore_pillow_warnings()
        images: list[Image.Image] = []
        errors: dict[int, SampleError] = {}
        for row, data in enumerate(batch["image_bytes"]):
            try:
                images.append(self._decode(data.as_buffer()))
            except SampleError as error:
                errors[row] = error
        if errors:
            raise RowErrors(errors, {"image": images})
        return {"image": images}

    def _decode(self, data: Any) -> Image.Image:
        if not data:
            raise SampleError("decode_image: 0 bytes, expected an image file")
        file = io.BytesIO(data)
        name, factory = _sniff(bytes(data[:16]))
        try:
            image = factory(file, "")
            num_pixels = image.width * image.height
            if num_pixels > self.config.max_pixels:
                raise SampleError(
                    f"decode_image: {name} of {image.width} x {image.height} is "
                    f"{num_pixels:,} pixels, expected at most {self.config.max_pixels:,}"
                )
            image.load()
            return self._upright(image, self._to_rgb(image))
        except (SampleError, MemoryError):
            raise
        except Exception as error:  # plugins raise nearly anything on broken files
            reason = " ".join(str(error).split())
            raise SampleError(
                f"decode_image: broken {name} of {len(data):,} bytes: "
                f"{type(error).__name__}: {reason}"
            ) from error

    def _to_rgb(self, image: Image.Image) -> Image.Image:
        background = self.config.background
        key = image.info.get("transparency")
        opaque = None
        if image.mode.startswith(("I", "F")):
            values = _grey16(image)
            opaque = values != key
            image = Image.fromarray((values >> 8).astype(np.uint8))
        elif background is not None and image.has_transparency_data:
            rgba = image.convert("RGBA")
            base = Image.new("RGBA", image.size, background)
            return Image.alpha_composite(base, rgba).convert("RGB")
        # Colour below transparent pixels is kept; the key itself only makes Pillow warn.
        image.info.pop("transparency", None)
        rgb = image.convert("RGB")
        if background is not None and opaque is not None:
            base = Image.new("RGB", rgb.size, background)
            return Image.composite(rgb, base, Image.fromarray(opaque.astype(np.uint8) * 255))
        return rgb

    def _upright(self, image: Image.Image, rgb: Image.Image) -> Image.Image:
        if self.config.exif_orientation == "ignore":
            return rgb
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        return rgb if turn is None else rgb.transpose(turn)


def _sniff(prefix: bytes) -> tuple[str, Any]:
    for name, (factory, accept) in _FORMATS.items():
        if accept is not None and accept(prefix) is True:
            return name, factory
    raise SampleError(
        f"decode_image: no known image format, the file starts with {prefix!r}, "
        f"expected one of {', '.join(_FORMATS)}"
    )


def _grey16(image: Image.Image) -> np.ndarray:
    """Return grey values [H, W] of 16 bits; Pillow calls some 16-bit files 32-bit (PGM)."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or (values.size and not 0 <= values.min() <= values.max() < 65536):
        raise SampleError(
            f"decode_image: {image.format} with 32-bit grey from {values.min()} to {values.max()}, "
            "expected 8-bit or 16-bit values"
        )
    return values


def _ignore_pillow_warnings() -> None:
    """Silence Pillow on odd metadata, for the whole process.

    Operators run in several threads, where ``warnings.catch_warnings`` is not safe, so one filter
    is put first and stays. Under ``-W error`` such a warning would also reject a good image.
    """
    if _PILLOW_FILTER not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW_FILTER[3].pattern)


# As the warnings module keeps it: action, message, category, module, line.
_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
