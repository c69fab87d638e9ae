"""Super tokens: averages of tokens around the cells of a grid."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.reducers.base import Reducer, ReducerConfig, Reduction, Tokens
from operators.reducers.grids import (
    Grid,
    reconstruction_columns,
    reconstruction_fields,
    token_grid,
)

if TYPE_CHECKING:
    import torch


class SuperTokensConfig(ReducerConfig):
    """What a job may say about super tokens."""

    name: Literal["super_tokens"] = "super_tokens"
    cell: Annotated[
        Grid, Field(description="Rows and columns of tokens of a cell; divide the grid's.")
    ] = (2, 2)
    grid: Annotated[
        Grid | None, Field(description="Rows and columns of the encoder's tokens, else a square.")
    ] = None
    iterations: Annotated[int, Field(ge=1, le=100, description="Of assignment and average.")] = 1
    variant: Annotated[
        Literal["authors", "paper"],
        Field(
            description="At the border: cells outside take their share, as if they were zero and "
            "lost (code), or only cells inside count (paper)."
        ),
    ] = "authors"


class SuperTokens(Reducer[SuperTokensConfig]):
    """Replaces every cell of a grid by an average of the tokens in it and around it.

    The sampling of the Super Token Vision Transformer, which has no weights: cells start as their
    means; every token belongs a little to its own cell and the eight around it, by softmax over
    inner products / sqrt(C); cells become the averages of what belongs to them. Rows are the cells
    in raster order, and ``token_map`` is the cell inside the grid that a token belongs to most.

    ``reconstruct`` (``unreduce.py``) is their upsampling after a model: write
    ``reconstruction_index`` and ``reconstruction_weights`` for it. In the authors' variant weights
    of tokens in border cells sum to less than one. Grids that cells do not divide are refused; the
    authors fill them up with zeros, which they average with the rest.

    Source: Huang et al., "Vision Transformer with Super Token Sampling", section 3.2. Checked: a
    brute-force transcription of the equations; no recorded output of the authors' code.
    """

    Config = SuperTokensConfig
    paper = "arXiv:2211.11167"
    needs_grid = True

    @property
    def needs_whole(self) -> bool:
        """Padding has no place in a grid."""
        return True

    @property
    def extras(self) -> Mapping[str, tuple[FieldSpec, str]]:
        """What ``reconstruct`` needs."""
        return reconstruction_fields(self._num_tokens, 9)

    def num_kept(self, num_tokens: int) -> int:
        """Return how many cells there are.

        Raises:
            ContractError: cells do not divide the grid, or tokens are no such grid.
        """
        grid = token_grid(self.config.grid, num_tokens, self.config.name)
        cell = self.config.cell
        if grid[0] % cell[0] or grid[1] % cell[1]:
            raise ContractError(
                f"super_tokens: cell={list(cell)} does not divide a grid of {list(grid)} tokens",
                hint="choose divisors of the grid's rows and columns",
            )
        return grid[0] // cell[0] * (grid[1] // cell[1])

    def reduce(self, tokens: Tokens) -> Reduction:
        """Assign and average."""
        import torch

        config, device = self.config, tokens.features.device
        grid = token_grid(config.grid, tokens.features.shape[1], config.name)
        cells = (grid[0] // config.cell[0], grid[1] // config.cell[1])
        order = by_cell(grid, config.cell).to(device)  # [S, n]: the tokens of each cell
        around, is_inside = neighbourhood(cells)  # [S, 9]
        around, is_inside = around.to(device), is_inside.to(device)
        x = tokens.features.float()[:, order]  # [B, S, n, C]
        centres = x.mean(dim=2)
        scale = x.shape[3] ** -0.5
        for _ in range(config.iterations):
            near = centres[:, around] * is_inside[..., None]  # [B, S, 9, C]
            logits = x @ near.transpose(2, 3) * scale
            if config.variant == "paper":
                logits = logits.masked_fill(~is_inside[:, None], float("-inf"))
            shares = logits.softmax(dim=3)  # [B, S, n, 9]
            given = torch.cat([x, torch.ones_like(x[..., :1])], dim=3)
            given = shares.transpose(2, 3) @ given  # [B, S, 9, C + 1]
            # A cell gets from each neighbour what that one gives in the opposite direction.
            back = torch.arange(8, -1, -1, device=device)
            got = (given[:, around, back] * is_inside[..., None]).sum(dim=2)
            centres = got[..., :-1] / (got[..., -1:] + 1e-12)
        shares = shares.masked_fill(~is_inside[:, None], 0)
        own = logits.masked_fill(~is_inside[:, None], float("-inf")).argmax(dim=3)
        places = order.flatten().argsort()  # of raster order in order by cell
        token_map = around[torch.arange(len(around), device=device)[:, None], own]
        index = around[:, None].expand(-1, order.shape[1], -1).flatten(0, 1)[places]
        return Reduction(
            centres.to(tokens.features.dtype),
            token_map.flatten(1)[:, places],
            extra=reconstruction_columns(
                index.expand(len(x), -1, -1), shares.flatten(1, 2)[:, places]
            ),
        )


def by_cell(grid: Grid, cell: Grid) -> "torch.Tensor":
    """Return int64 [S, n]: the tokens of each cell, both in raster order."""
    import torch

    places = torch.arange(grid[0] * grid[1])
    places = places.reshape(grid[0] // cell[0], cell[0], grid[1] // cell[1], cell[1])
    return places.transpose(1, 2).flatten(2).flatten(0, 1)


def neighbourhood(cells: Grid) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return int64 [S, 9], the cells around each one, and bool [S, 9]: which are in the grid."""
    import torch

    steps = torch.tensor([-1, 0, 1])
    rows = (torch.arange(cells[0])[:, None] + steps)[:, None, :, None]
    columns = (torch.arange(cells[1])[:, None] + steps)[None, :, None, :]
    is_inside = (rows >= 0) & (rows < cells[0]) & (columns >= 0) & (columns < cells[1])
    around = (rows * cells[1] + columns).masked_fill(~is_inside, 0)
    return around.flatten(2).flatten(0, 1), is_inside.flatten(2).flatten(0, 1)
