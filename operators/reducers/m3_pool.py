"""Matryoshka pooling (M3): averages of squares of tokens, at one scale or at all of them."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from operators.errors import ContractError
from operators.reducers.base import Reducer, ReducerConfig, Reduction, Tokens
from operators.reducers.pooling import average, cells, square_side


class M3PoolConfig(ReducerConfig):
    """What a job may say about Matryoshka pooling."""

    name: Literal["m3_pool"] = "m3_pool"
    scales: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(
            min_length=1,
            description="Tokens of each scale, from the fewest; the authors' are 1, 9, 36, 144 and "
            "576 of 24 x 24. One number writes one scale.",
        ),
    ] = (1, 9, 36, 144)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"scales={list(self.scales)} do not rise; sort them")
        return self


class M3Pool(Reducer[M3PoolConfig]):
    """Averages squares of tokens, at all scales at once, so that training can choose.

    A scale of t of N tokens averages squares of side ``int(sqrt(N / t))``; what is left at the
    right and at the bottom is dropped. Where that gives another number than t, the scale is refused
    with the number that it gives. Rows: scale after scale from the coarsest, each in raster order;
    the metadata's ``layout`` names their sides, so the loader's ``scales`` reads the first few, and
    the finest of those is its last ``side ** 2`` rows. ``token_map`` leads to the finest scale,
    while ``sizes`` are those of every scale.

    Source: Cai et al., "Matryoshka Multimodal Models", section 3. Checked: the authors' features,
    averages spelled out.
    """

    Config = M3PoolConfig
    paper = "arXiv:2405.17430"
    needs_grid = True

    @property
    def offers(self) -> Mapping[str, str]:
        """No signals: rows of different scales overlap."""
        return {}

    @property
    def needs_whole(self) -> bool:
        """Scales are of the same length for all images."""
        return len(self.config.scales) > 1

    def num_kept(self, num_tokens: int) -> int:
        """Return the tokens of all scales.

        Raises:
            ContractError: the tokens are no square, or a scale does not fit.
        """
        return sum(side * side for side in self._sides(num_tokens))

    def metadata(self) -> Mapping[str, object]:
        """What the map is, and where which scale stands."""
        sides = self._sides(self._num_tokens)
        layout = {
            "positions": sum(side * side for side in sides),
            "streams": ["id"],
            "codebook_sizes": [],
            "nested": False,
            "scales": sides,
        }
        return {**super().metadata(), **({} if self._is_ragged else {"layout": layout})}

    def reduce(self, tokens: Tokens) -> Reduction:
        """Average at every scale."""
        num = tokens.features.shape[1]
        whole, finest = math.isqrt(num), 0
        windows: list[np.ndarray] = []
        for side in self._sides(num):
            lines = np.arange(whole) // (whole // side) == np.arange(side)[:, None]
            finest = sum(len(window) for window in windows)
            windows.append(cells(lines, lines))
        last = windows[-1]
        token_map = np.where(last.any(axis=0), last.argmax(axis=0) + finest, -1)
        return average(tokens, np.concatenate(windows), token_map)

    def _sides(self, num_tokens: int) -> list[int]:
        whole = square_side(num_tokens, "m3_pool")
        sides = []
        for scale in self.config.scales:
            # of N/t the whole root is that of its whole part
            window = math.isqrt(num_tokens // scale)
            side = whole // window if window else 0
            if side * side != scale:
                raise ContractError(
                    f"m3_pool: scale {scale} of {num_tokens} tokens "
                    + (
                        f"averages {window} x {window} and gives {side * side}"
                        if side
                        else "is more than there are"
                    ),
                    hint=f"choose among {_fitting(whole)}",
                )
            sides.append(side)
        return sides


def _fitting(whole: int) -> list[int]:
    """Return the scales that give as many tokens as they say."""
    sides = {whole // window for window in range(1, whole + 1)}
    return sorted(
        side * side for side in sides if whole // math.isqrt(whole * whole // (side * side)) == side
    )
