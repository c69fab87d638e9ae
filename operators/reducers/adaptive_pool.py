"""Adaptive pooling: averages of as many windows of a grid as are asked for."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from operators.errors import ContractError
from operators.reducers.base import Reducer, ReducerConfig, Reduction, Tokens
from operators.reducers.pooling import average, cells, square_side

Side = Annotated[int, Field(ge=1)]


class AdaptivePoolConfig(ReducerConfig):
    """What a job may say about adaptive pooling."""

    name: Literal["adaptive_pool"] = "adaptive_pool"
    grid: Annotated[
        tuple[Side, Side],
        Field(description="Rows and columns that are left of a square grid of tokens."),
    ] = (8, 8)


class AdaptivePool(Reducer[AdaptivePoolConfig]):
    """Averages windows that cover the grid evenly.

    Of S lines window i of R averages those from ``floor(i S / R)`` to before
    ``ceil((i + 1) S / R)``, so windows overlap where R does not divide S; ``sizes`` counts such a
    token twice, and ``token_map`` leads to one of its windows, ``floor(line R / S)``. Rows: in
    raster order.

    Checked: torch's adaptive_avg_pool2d, averages spelled out.
    """

    Config = AdaptivePoolConfig
    paper = "none: a baseline"
    needs_grid = True

    def num_kept(self, num_tokens: int) -> int:
        """Return the windows.

        Raises:
            ContractError: the tokens are no square, or fewer lines than windows.
        """
        side = square_side(num_tokens, "adaptive_pool")
        rows, columns = self.config.grid
        if max(rows, columns) > side:
            raise ContractError(
                f"adaptive_pool: grid={[rows, columns]} of {side} x {side} tokens",
                hint=f"set rows and columns to at most {side}",
            )
        return rows * columns

    def reduce(self, tokens: Tokens) -> Reduction:
        """Average."""
        side = square_side(tokens.features.shape[1], "adaptive_pool")
        rows, columns = self.config.grid
        line = np.arange(side)
        token_map = (line * rows // side)[:, None] * columns + line * columns // side
        windows = cells(_lines(rows, side), _lines(columns, side))
        return average(tokens, windows, token_map.reshape(-1))


def _lines(windows: int, side: int) -> np.ndarray:
    """Return bool [windows, side]: the lines of each."""
    number, line = np.arange(windows)[:, None], np.arange(side)
    is_in: np.ndarray = (line >= number * side // windows) & (
        line < -(-(number + 1) * side // windows)
    )
    return is_in
