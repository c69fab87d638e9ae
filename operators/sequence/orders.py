"""Orders in which the cells of a grid can be read, and the groups that are predicted at once.

An order is a permutation int64 [T]: place t of the sequence holds cell ``permutation[t]``, cells
counted row by row from the top left. Groups are runs of places, given by their sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Order:
    """One way to read T cells.

    Attributes:
        permutation: int64 [T], the cell at each place of the sequence.
        group_sizes: How many places each step predicts at once; empty when it is one each.
    """

    permutation: np.ndarray
    group_sizes: tuple[int, ...] = ()

    @property
    def inverse(self) -> np.ndarray:
        """int64 [T], the place of each cell."""
        return np.argsort(self.permutation)

    def reversed(self) -> "Order":
        """Return the same order from its end to its start."""
        return Order(self.permutation[::-1].copy(), self.group_sizes[::-1])


def in_turn(orders: Sequence[Order]) -> Order:
    """Return the order of several grids that stand one after another."""
    sizes = [len(order.permutation) for order in orders]
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [order.permutation + start for order, start in zip(orders, starts, strict=True)]
    has_groups = any(order.group_sizes for order in orders)
    groups = [order.group_sizes or (1,) * size for order, size in zip(orders, sizes, strict=True)]
    return Order(np.concatenate(parts), tuple(n for g in groups for n in g) if has_groups else ())


def raster(height: int, width: int) -> Order:
    """Row by row from the top left."""
    return Order(np.arange(height * width))


def columns(height: int, width: int) -> Order:
    """Column by column from the top left."""
    return Order(_cells(height, width).T.reshape(-1))


def snake(height: int, width: int) -> Order:
    """Row by row, every second one from right to left, so that neighbours follow each other."""
    cells = _cells(height, width)
    cells[1::2] = cells[1::2, ::-1]
    return Order(cells.reshape(-1))


def spiral(height: int, width: int) -> Order:
    """Clockwise from the top left, along the border and then inwards."""
    left, rings = _cells(height, width), []
    while left.size:
        rings.append(left[0])
        left = np.rot90(left[1:])
    return Order(np.concatenate(rings))


def hilbert(height: int, width: int) -> Order:
    """Along a Hilbert curve from the top left.

    Squares whose side is a power of two get Hilbert's own curve; other grids one that is cut
    in the same manner, into two parts where a rectangle is long and into three where it is not.
    Cells that follow each other share a side; where the longer side is odd and the shorter one
    even, one step may be diagonal.
    """
    found: list[tuple[int, int]] = []
    if width >= height:
        _curve(found, np.zeros(2, int), np.array([0, width]), np.array([height, 0]))
    else:
        _curve(found, np.zeros(2, int), np.array([height, 0]), np.array([0, width]))
    rows, cols = np.array(found).T
    return Order(rows * width + cols)


def diagonals(height: int, width: int) -> Order:
    """By distance from the top left: all cells of one row + column at once, the upper first.

    Neighbouring autoregressive prediction, https://arxiv.org/abs/2503.10696.
    """
    rows, cols = np.divmod(np.arange(height * width), width)
    order = np.lexsort((rows, rows + cols))
    return Order(order, tuple(np.bincount(rows + cols).tolist()))


def cells(height: int, width: int, side: int) -> Order:
    """Square by square of ``side`` cells, which divides height and width; a square at once.

    The cells of xAR, https://arxiv.org/abs/2502.20388: squares, and places in a square, are in
    raster order.
    """
    blocks = _cells(height, width).reshape(height // side, side, width // side, side)
    squares = height // side * (width // side)
    return Order(blocks.transpose(0, 2, 1, 3).reshape(-1), (side * side,) * squares)


def subsampled(height: int, width: int, stride: int) -> Order:
    """Every ``stride``-th cell of every ``stride``-th row, then the same one cell on, and so on.

    ``stride`` divides height and width. A coarse grid stands first, and every grid is predicted at
    once: xAR's subsampled grids.
    """
    blocks = _cells(height, width).reshape(height // stride, stride, width // stride, stride)
    size = height // stride * (width // stride)
    return Order(blocks.transpose(1, 3, 0, 2).reshape(-1), (size,) * stride**2)


PLAIN: dict[str, Callable[[int, int], Order]] = {
    **{"raster": raster, "columns": columns, "snake": snake},
    **{"spiral": spiral, "hilbert": hilbert, "diagonals": diagonals},
}
"""Orders of any grid, by name."""


def _cells(height: int, width: int) -> np.ndarray:
    return np.arange(height * width).reshape(height, width)


def _curve(
    found: list[tuple[int, int]], start: np.ndarray, along: np.ndarray, across: np.ndarray
) -> None:
    """Append the cells of a rectangle, entered at ``start``, left at the other end of ``along``.

    Vectors are (row, column); each of the two lies on one axis, and its length is the side.
    """
    length, breadth = int(abs(along).sum()), int(abs(across).sum())
    ahead, aside = np.sign(along), np.sign(across)
    if breadth == 1 or length == 1:
        step = ahead if breadth == 1 else aside
        found += [tuple((start + i * step).tolist()) for i in range(max(length, breadth))]
        return
    # Parts of even length let the curve enter and leave at corners on the same side.
    if 2 * length > 3 * breadth:
        half = _even_half(length) * ahead
        _curve(found, start, half, across)
        _curve(found, start + half, along - half, across)
        return
    near, half = _even_half(breadth) * aside, length // 2 * ahead
    _curve(found, start, near, half)
    _curve(found, start + near, along, across - near)
    _curve(found, start + (along - ahead) + (near - aside), -near, -(along - half))


def _even_half(length: int) -> int:
    half = length // 2
    return half + 1 if half % 2 and length > 2 else half
