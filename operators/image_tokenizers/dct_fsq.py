"""A patch tokenizer without weights: six DCT coefficients a patch, quantised digit by digit.

It needs no download and no accelerator, gives the same ids on every machine, and its tokens turn
back into a recognisable picture: the default for trying a pipeline, and a baseline for learned
tokenizers. The product codebook is that of finite scalar quantization (FSQ, Mentzer et al. 2023,
arXiv:2309.15505) with FlexTok's levels, so ids have the shape of a real tokenizer's.

Shapes: N images, S = side, P = patch (pixels), G = S / P, T = G * G tokens, D = 6 digits.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from operators.base import Batch, FieldSpec, Operator, OperatorConfig
from operators.errors import ContractError
from operators.image_tokenizers.base import Published
from operators.image_tokenizers.layout import TokenLayout
from operators.image_tokenizers.quantize.mixed_radix import codebook_size, join_digits, split_ids

# One row per digit: the values that it stands for, rising, in grey levels. They were chosen by
# Lloyd's algorithm on photographs, then rounded and made symmetric; as in FSQ, an even number of
# levels has one more on the negative side. A constant component is its mean; any other
# coefficient is scaled so that it equals the root mean square that it adds to the patch.
_BRIGHTNESS = (12, 45, 78, 111, 144, 177, 210, 243)
_SLOPE = (-60, -38, -19, -7, 0, 7, 19, 38)
_COLOUR = (-50, -18, 0, 18, 50)
_SADDLE = (-18, -6, 0, 6, 18)
_VALUES = (
    _BRIGHTNESS,  # Y(0, 0)
    _SLOPE,  # Y(0, 1): dark to bright along a row is negative
    _SLOPE,  # Y(1, 0): the same along a column
    _COLOUR,  # Cb(0, 0)
    _COLOUR,  # Cr(0, 0)
    _SADDLE,  # Y(1, 1)
)
LEVELS = tuple(len(values) for values in _VALUES)

# JPEG's YCbCr (JFIF 1.02, full range) times 2**16, without the offset of 128 in Cb and Cr.
# Rows of Cb and Cr add up to 0, so grey has no colour at all.
_YCC_BITS = 16
_RGB_TO_YCC = np.array(
    [[19595, 38470, 7471], [-11058, -21710, 32768], [32768, -27439, -5329]], np.int64
)
_RED_PER_CR = round(1.402 * 2**16)
_GREEN_PER_CB = round(-0.344136 * 2**16)
_GREEN_PER_CR = round(-0.714136 * 2**16)
_BLUE_PER_CB = round(1.772 * 2**16)

_COSINE_BITS = 8
_SQRT2_8 = 362  # sqrt(2) * 2**8


class DctFsqConfig(OperatorConfig):
    """Options of ``dct_fsq``."""

    name: Literal["dct_fsq"] = "dct_fsq"
    side: Annotated[int, Field(ge=4, le=4096, description="Side of the image, pixels.")] = 256
    patch: Annotated[
        int, Field(ge=4, le=64, description="Side of a patch, pixels; divides `side`.")
    ] = 16


class DctFsq(Operator[DctFsqConfig]):
    """Map square RGB images to one id per patch, row-major from the top-left patch.

    Reads ``image`` uint8 [S, S, 3]; adds ``tokens`` uint16 [T] with ids below 64,000. A patch is
    projected on the lowest terms of the orthonormal two-dimensional DCT-II: brightness, its
    slope along rows and along columns, the mean of Cb and of Cr, and the product of both
    slopes. Each coefficient becomes the digit whose value is nearest, ties going up. Digits have
    [8, 8, 8, 5, 5, 5] levels, and the first one is the least significant of the id.

    Weights and cosines are integers and every sum fits its type exactly (float32 below 2**24,
    then float64 below 2**53), so ids depend neither on the order of summation nor on the batch,
    the BLAS library or the machine.

    Raises:
        ContractError: ``patch`` does not divide ``side``.
    """

    Config = DctFsqConfig
    published = (Published("(needs none)", "patch: 16", tokens=256, codebook=64_000),)

    def __init__(self, config: DctFsqConfig) -> None:
        super().__init__(config)
        side, patch = config.side, config.patch
        if side % patch:
            fits = [p for p in range(4, 65) if side % p == 0]
            raise ContractError(
                f"dct_fsq: patch={patch} does not divide side={side}; set patch to one of {fits}"
            )
        self._grid = side // patch
        self._cosine_P = _cosine(patch)
        self._columns_2P = np.stack([np.ones(patch), self._cosine_P]).astype(np.float32)
        self._rows_4C = _row_weights(self._cosine_P)
        self._bounds = _bounds(patch)

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """Square images."""
        return {"image": FieldSpec("uint8", (self.config.side, self.config.side, 3))}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """One id per patch."""
        return {"tokens": FieldSpec("uint16", (self._grid**2,), codebook_size(LEVELS))}

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize every row."""
        images = batch["image"]
        g, p = self._grid, self.config.patch
        sums_DNT = np.empty((len(LEVELS), len(images), g * g))
        pixels = np.empty((g, p, g * p * 3), np.float32)
        for n, image in enumerate(images):  # one at a time stays in the cache
            np.copyto(pixels, image.reshape(pixels.shape))
            columns = (self._columns_2P @ pixels).reshape(g, 2, g, p * 3).astype(np.float64)
            rows = (columns @ self._rows_4C.T).reshape(g, 2, g, 4).transpose(1, 3, 0, 2)
            sums_DNT[[0, 1, 3, 4], n] = rows[0].reshape(4, -1)
            sums_DNT[[2, 5], n] = rows[1, :2].reshape(2, -1)
        digits = [
            np.searchsorted(bounds, sums.ravel(), side="right")
            for bounds, sums in zip(self._bounds, sums_DNT, strict=True)
        ]
        ids = join_digits(np.stack(digits, axis=-1), LEVELS)
        return {"tokens": ids.astype(np.uint16).reshape(len(images), g * g)}

    def decode(self, batch: Batch) -> Batch:
        """Map ``tokens`` [N, T] to ``image`` uint8 [N, S, S, 3], exactly the same everywhere."""
        tokens = batch["tokens"]
        side, g, p = self.config.side, self._grid, self.config.patch
        images = np.empty((len(tokens), side, side, 3), np.uint8)
        across = self._cosine_P.astype(np.int32)  # [P], over the last axis
        down = across[:, None, None]  # [P, 1, 1], over [P, G, P]
        for image, ids in zip(images, tokens, strict=True):
            digits = split_ids(ids.reshape(g, 1, g, 1), LEVELS)
            y, y_across, y_down, cb, cr, y_both = (
                np.array(values, np.int32)[digits[..., i]] for i, values in enumerate(_VALUES)
            )
            luma = (y << 16) + (1 << 15) + (y_across * across + y_down * down) * _SQRT2_8
            luma += 2 * y_both * (across * down)
            out = image.reshape(g, p, g, p, 3)
            for channel, colour in enumerate(
                (
                    _RED_PER_CR * cr,
                    _GREEN_PER_CB * cb + _GREEN_PER_CR * cr,
                    _BLUE_PER_CB * cb,
                )
            ):
                out[..., channel] = ((luma + colour) >> 16).clip(0, 255)
        return {"image": images}

    def metadata(self) -> Mapping[str, object]:
        """The layout, and the levels of the digits."""
        grid = (self._grid, self._grid)
        layout = TokenLayout(self._grid**2, (codebook_size(LEVELS),), grid=grid)
        return {"layout": layout.as_json(), "codebook_levels": list(LEVELS)}


def _cosine(patch: int) -> np.ndarray:
    """Return cos((2 x + 1) pi / 2 P) times 2**8, rounded: int64 [P], adding up to 0."""
    scale = 1 << _COSINE_BITS
    half = [round(scale * math.cos((2 * x + 1) * math.pi / (2 * patch))) for x in range(patch // 2)]
    middle = [0] * (patch % 2)
    return np.array([*half, *middle, *(-c for c in reversed(half))], np.int64)


def _row_weights(cosine_P: np.ndarray) -> np.ndarray:
    """Return weights of a patch row's RGB values, float64 [4, 3 P]: Y, Y(cosine), Cb, Cr."""
    y, cb, cr = _RGB_TO_YCC
    flat = np.ones_like(cosine_P)
    pairs = [(flat, y), (cosine_P, y), (flat, cb), (flat, cr)]
    return np.stack([np.outer(a, b).ravel() for a, b in pairs]).astype(np.float64)


def _bounds(patch: int) -> list[np.ndarray]:
    """Return, per digit, the integer sums from which the next higher level starts."""
    flat = patch**2 << _YCC_BITS  # the sum of a patch whose coefficient is 1
    slope = (flat << _COSINE_BITS) / math.sqrt(2)
    saddle = (flat << 2 * _COSINE_BITS) / 2
    return [
        np.ceil((np.array(values[1:]) + values[:-1]) / 2 * scale)
        for values, scale in zip(_VALUES, (flat, slope, slope, flat, flat, saddle), strict=True)
    ]
