"""Build rows out of segments of flat buffers: whole copies of memory, no Python object per token.

A segment is a run of values of a pool; a row is a list of segments, its picks. Arrow's ``take``
copies them, which costs about 25 ns a segment: 200,000 segments of 60 uint16 ids take 5 ms on one
core, some 2,000 million ids/s (a numpy gather of the same ids: 36 million ids/s).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from operators.base import Column, Ragged


@dataclass(frozen=True, slots=True)
class Units:
    """What N rows of a field hold, unit by unit: a text, or one or several images.

    Attributes:
        values: [M], all rows one after another.
        bounds: int64 [U + 1], where the U units begin and end in ``values``.
        counts: int64 [N], units per row.
    """

    values: np.ndarray
    bounds: np.ndarray
    counts: np.ndarray

    @property
    def row_bounds(self) -> np.ndarray:
        """int64 [N + 1], where the rows begin and end in ``values``."""
        found: np.ndarray = self.bounds[starts_of(self.counts)]
        return found


def units_of(column: Column) -> Units:
    """Return the units of a column of ids.

    A field of one dimension is one unit a row; [V, T], or ragged with T ids each, is several.
    """
    if isinstance(column, Ragged):
        if column.values.ndim == 1:
            return Units(column.values, column.offsets, np.ones(len(column), np.int64))
        counts, length = column.lengths, column.values.shape[1]
    else:
        num_rows, length = column.shape[0], column.shape[-1]
        per_row = 1 if column.ndim == 2 else column.shape[1]
        counts = np.full(num_rows, per_row, np.int64)
    num_units = int(counts.sum())
    values = column.values if isinstance(column, Ragged) else column
    bounds = np.arange(num_units + 1, dtype=np.int64) * length
    return Units(values.reshape(-1), bounds, counts)


class SegmentPool:
    """Segments to pick from, and rows made of them.

    Example:
        >>> pool = SegmentPool("uint8")
        >>> first = pool.add(np.array([7, 8, 9]), np.array([0, 2, 3]), shift=10)
        >>> bos = pool.add_literal([1])
        >>> pool.take(np.array([bos, first + 1, first]))[0].tolist()
        [1, 19, 17, 18]
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._parts: list[tuple[np.ndarray, int]] = []
        self._bounds = [np.zeros(1, np.int64)]
        self._num_segments = 0
        self._num_values = 0

    def add(self, values: np.ndarray, bounds: np.ndarray, shift: int = 0) -> int:
        """Add consecutive segments and return the number of the first.

        Args:
            values: [M]; every value + ``shift`` fits the pool's dtype.
            bounds: int64 [K + 1] of K segments, rising from 0 to M.
            shift: Added to every value.
        """
        first = self._num_segments
        self._parts.append((values, shift))
        self._bounds.append(bounds[1:] + self._num_values)
        self._num_segments += len(bounds) - 1
        self._num_values += len(values)
        return first

    def add_literal(self, ids: Sequence[int]) -> int:
        """Add one segment that stands wherever it is picked, and return its number."""
        return self.add(np.array(ids, self._dtype), np.array([0, len(ids)], np.int64))

    def take(self, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the picked segments one after another, and their lengths, int64.

        Args:
            picks: int64 [P], numbers of segments; repeats are allowed.
        """
        values = np.empty(self._num_values, self._dtype)
        start = 0
        for part, shift in self._parts:
            place = values[start : start + len(part)]
            np.copyto(place, part, casting="unsafe")  # wide types hold ids that fit: see `add`
            place += self._dtype.type(shift)
            start += len(part)
        bounds = np.concatenate(self._bounds)
        buffers = [None, pa.py_buffer(bounds * self._dtype.itemsize), pa.py_buffer(values)]
        segments = pa.Array.from_buffers(pa.large_binary(), self._num_segments, buffers)
        data = segments.take(pa.array(picks)).buffers()[2]
        lengths = np.diff(bounds)[picks]
        if data is None or not lengths.any():
            return np.empty(0, self._dtype), lengths
        return np.frombuffer(data, self._dtype, int(lengths.sum())), lengths


@dataclass(frozen=True, slots=True)
class Picks:
    """Which segments N rows are made of.

    Attributes:
        segments: int64 [P].
        columns: int64 [P], the column that each came from.
        row_bounds: int64 [N + 1], where the rows begin and end among them.
    """

    segments: np.ndarray
    columns: np.ndarray
    row_bounds: np.ndarray

    def rows(self, pool: SegmentPool) -> tuple[Ragged, np.ndarray]:
        """Return the rows, and the length of every segment picked."""
        values, lengths = pool.take(self.segments)
        offsets = starts_of(lengths)[self.row_bounds]
        return Ragged(values, offsets), lengths


def picks_in_turn(columns: Sequence[tuple[np.ndarray, np.ndarray]], num_rows: int) -> Picks:
    """Return, row by row, the picks of every column in turn.

    Args:
        columns: Of each, picks per row, int64 [N], and all its picks, row after row.
        num_rows: N.
    """
    counts_NC = np.empty((num_rows, len(columns)), np.int64)
    for column, (counts, _) in enumerate(columns):
        counts_NC[:, column] = counts
    starts = starts_of(counts_NC.ravel())  # where row n, column c begins, at [n * C + c]
    segments = np.empty(starts[-1], np.int64)
    column_of = np.empty(starts[-1], np.int64)
    for column, (counts, picks) in enumerate(columns):
        first = starts[column :: len(columns)][:num_rows]
        places = np.repeat(first - starts_of(counts)[:-1], counts) + np.arange(len(picks))
        segments[places] = picks
        column_of[places] = column
    return Picks(segments, column_of, starts[:: len(columns)])


def once(num_rows: int, segment: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a column of picks: the same segment once in every row."""
    return np.ones(num_rows, np.int64), np.full(num_rows, segment)


def starts_of(counts: np.ndarray) -> np.ndarray:
    """Return int64 [N + 1], what stands before each of N counts, and the sum of all."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)))


def rows_of_matrix(pool: SegmentPool, columns: Sequence[np.ndarray]) -> Ragged:
    """Return N rows of equally many segments each.

    Args:
        pool: What is picked from; an empty literal stands where a row has nothing.
        columns: Of every place in turn, the segment that stands there, int64 [N].
    """
    values, lengths = pool.take(np.column_stack(columns).ravel())
    return Ragged(values, starts_of(lengths)[:: len(columns)])
