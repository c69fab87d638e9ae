"""Uniform tokens: the baseline that looks at nothing."""

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.reducers.base import Keep, Reducer, ReducerConfig, Reduction, Tokens, select, share
from operators.reducers.grids import Grid, token_grid

if TYPE_CHECKING:
    import torch


class UniformTokensConfig(ReducerConfig):
    """What a job may say about uniform tokens."""

    name: Literal["uniform_tokens"] = "uniform_tokens"
    keep: Annotated[Keep, Field(description="Tokens that are left, or their share.")] = 0.25
    pattern: Annotated[
        Literal["line", "grid"],
        Field(description="Evenly spaced in raster order, or in rows and columns of the grid."),
    ] = "line"
    grid: Annotated[
        Grid | None,
        Field(description="Rows and columns of the encoder's tokens, for the grid; else a square."),
    ] = None


class UniformTokens(Reducer[UniformTokensConfig]):
    """Keeps tokens at even distances, in raster order.

    Of n in a line, k are those in the middle of k equal parts: floor((i + 1/2) n / k). A grid does
    so along both axes; k is then the product of two sides, the pair whose aspect is nearest to the
    grid's (of equals the one of more rows): 64 of 24 x 24 are 8 x 8. A line leaves padding out. A
    share is rounded half to even. Checked: the formula in Python integers.
    """

    Config = UniformTokensConfig
    paper = "none: a baseline"

    def bind(self, fields: Mapping[str, FieldSpec]) -> None:
        """Check that there is a grid, where one is asked for.

        Raises:
            ContractError: an earlier reducer left none.
        """
        if self.config.pattern == "grid" and "token_map" in fields:
            raise ContractError(
                "uniform_tokens: pattern: grid reads tokens in raster order, but an earlier "
                "reducer changed it",
                hint="put uniform_tokens first, or choose pattern: line",
            )
        super().bind(fields)

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens, half to even.

        Raises:
            ContractError: they are no grid, or none of so many tokens fits into it.
        """
        kept = share(self.config.keep, num_tokens, self.config.name)
        if self.config.pattern == "grid":
            sides(kept, token_grid(self.config.grid, num_tokens, self.config.name))
        return kept

    def reduce(self, tokens: Tokens) -> Reduction:
        """Select by place."""
        import torch

        count, num = tokens.features.shape[:2]
        kept, device = self.num_kept(num), tokens.features.device
        if self.config.pattern == "grid":
            grid = token_grid(self.config.grid, num, self.config.name)
            rows, columns = sides(kept, grid)
            places = spaced(grid[0], rows)[:, None] * grid[1] + spaced(grid[1], columns)
            return select(tokens, places.flatten().to(device).expand(count, -1))
        if tokens.valid is None:
            return select(tokens, spaced(num, kept).to(device).expand(count, -1))
        # Those that are no padding come first, and only they are counted.
        order = (~tokens.valid).to(torch.int8).sort(dim=1, stable=True).indices
        there = tokens.valid.sum(dim=1, keepdim=True)
        parts = there.clamp(max=kept)
        part = torch.arange(kept, device=device).expand(count, -1)
        middle = (2 * part + 1) * there // (2 * parts).clamp(min=1)
        return select(tokens, order.gather(1, torch.where(part < parts, middle, part)))


def spaced(num: int, k: int) -> "torch.Tensor":
    """Return int64 [k]: the middles of k equal parts of num places."""
    import torch

    return (2 * torch.arange(k) + 1) * num // (2 * k)


def sides(kept: int, grid: Grid) -> Grid:
    """Return rows and columns of so many tokens, of an aspect as near to the grid's as may be.

    Raises:
        ContractError: no such grid fits.
    """
    fits = [
        (rows, kept // rows)
        for rows in range(grid[0], 0, -1)
        if kept % rows == 0 and kept // rows <= grid[1]
    ]
    if not fits:
        raise ContractError(
            f"uniform_tokens: {kept} tokens are no grid within {list(grid)}",
            hint="keep a product of two sides, for example of a square",
        )

    def stretch(side: Grid) -> Fraction:
        """How many times longer or shorter than the grid."""
        one, other = side[0] * grid[1], side[1] * grid[0]
        return Fraction(max(one, other), min(one, other))

    return min(fits, key=stretch)
