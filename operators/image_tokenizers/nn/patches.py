"""Square patches of channels-first maps, and the sine-cosine table of their positions.

Shapes: B batch, C channels, h w side of the map, g patches along a side, p patch side, D width.
"""

import torch


def patchify(map_BChw: torch.Tensor, patch: int) -> torch.Tensor:
    """Return [B, g * g, p * p * C]: row-major patches, each in order row, column, channel."""
    tiles = map_BChw.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # B C g p g p
    return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches_BTd: torch.Tensor, patch: int, grid: int) -> torch.Tensor:
    """Return [B, C, h, w]: the inverse of ``patchify`` for a grid of ``grid`` patches a side."""
    tiles = patches_BTd.unflatten(2, (patch, patch, -1)).unflatten(1, (grid, grid))
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def sincos_table(dim: int, grid: int) -> torch.Tensor:
    """Return float32 [1, D, g, g]: quarters sin(row), cos(row), sin(column), cos(column)."""
    frequency = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.outer(frequency, torch.arange(grid, dtype=torch.float64))
    rows = angle[:, :, None].expand(-1, grid, grid)
    columns = angle[:, None, :].expand(-1, grid, grid)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()])[None].float()
