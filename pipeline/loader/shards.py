"""Rows of memory-mapped Arrow IPC shards, by their number in the data set."""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

from operators.base import Column, FieldSpec, Ragged
from pipeline.loader.files import ShardFiles
from pipeline.loader.shard_maps import DECODED_BATCHES, OPEN_SHARDS, OpenShard, ShardMaps
from pipeline.manifest import DataSet

Index = slice | np.ndarray
"""Positions of rows: a slice where they are consecutive, so that numpy copies them at once."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How much of the rows of a field is read.

    Attributes:
        lengths: Positions from the first; one number for all rows, or int64 [B] of one for each,
            which makes the column ragged. Rows that are ragged already may be shorter.
        axis: Of a row, along which positions stand; 0 where rows differ.
    """

    lengths: int | np.ndarray
    axis: int = 0


class ShardReader:
    """Reads rows of a data set by number, rows being counted through the shards of the index.

    Uncompressed shards are read through memory maps: a row costs the copy of its own bytes.
    In compressed ones a row costs the decoding of its record batch. Picklable; maps are opened
    again on the other side.

    Args:
        data_set: The data set.
        fields: Field -> spec of what to read.
        files: Where the shards are on this machine.
    """

    def __init__(
        self, data_set: DataSet, fields: Mapping[str, FieldSpec], files: ShardFiles
    ) -> None:
        self._fields = dict(fields)
        self._maps = ShardMaps(data_set, fields, files)
        self._stops: list[int] = self._maps.stops.tolist()
        self._open: _Recent[OpenShard] = _Recent(OPEN_SHARDS)
        self._decoded: _Recent[Mapping[str, Column]] = _Recent(DECODED_BATCHES)

    @property
    def num_samples(self) -> int:
        """Rows of all shards."""
        return self._stops[-1] if self._stops else 0

    @property
    def stops(self) -> np.ndarray:
        """int64 [S], one past the last row of each shard."""
        return self._maps.stops

    def read(
        self, rows: np.ndarray, cuts: Mapping[str, Cut] = MappingProxyType({})
    ) -> dict[str, Column]:
        """Return some rows, in the given order.

        Args:
            rows: int64 [B]; a row may be there more than once.
            cuts: Numeric field -> how much of it is read, where it is not all.

        Returns:
            Field -> B rows: numpy [B, *shape], ``Ragged``, or a list of str or bytes. Nothing in
            them refers to the map.

        Raises:
            IntegrityError: a shard is not what the index says, or not an Arrow file.
        """
        pieces = list(self._pieces(rows))
        return {
            name: _gather(name, spec, pieces, len(rows), cuts.get(name))
            for name, spec in self._fields.items()
        }

    def _pieces(self, rows: np.ndarray) -> Iterator["_Piece"]:
        """Group the rows by the record batch that holds them."""
        order = None if (rows[1:] > rows[:-1]).all() else np.argsort(rows)
        ordered = rows if order is None else rows[order]
        numbers: list[int] = ordered.tolist()
        start, count = 0, len(numbers)
        while start < count:
            first, end, columns = self._record_batch(numbers[start])
            stop = bisect_left(numbers, end, start)
            local = slice(numbers[start] - first, numbers[stop - 1] - first + 1)
            # Only what rises strictly: in any other order a row may be there twice.
            is_run = order is None and local.stop - local.start == stop - start
            places = slice(start, stop) if order is None else order[start:stop]
            yield places, local if is_run else ordered[start:stop] - first, columns
            start = stop

    def _record_batch(self, row: int) -> tuple[int, int, Mapping[str, Column]]:
        """Return the first row, the stop and the columns of the record batch that holds a row."""
        number = bisect_right(self._stops, row)
        shard = self._open.get(number, self._map, number)
        base = self._stops[number] - shard.num_samples
        batch = bisect_right(shard.stops, row - base)
        columns = shard.mapped.get(batch)
        if columns is None:
            columns = self._decoded.get((number, batch), shard.decode, batch)
        stop = base + shard.stops[batch]
        return base + (shard.stops[batch - 1] if batch else 0), stop, columns

    def _map(self, number: int) -> OpenShard:
        self._open.keep(self._maps.max_open - 1)  # of the copies in a cache only some may be in use
        return self._maps.open(number)


_Piece = tuple[Index, Index, Mapping[str, Column]]  # places in the batch, rows, their columns


def _gather(
    name: str, spec: FieldSpec, pieces: Sequence[_Piece], num_rows: int, cut: Cut | None
) -> Column:
    """Join the rows of one field."""
    if not spec.is_numeric:
        return _gather_objects(name, pieces, num_rows)
    if spec.is_ragged or (cut is not None and isinstance(cut.lengths, np.ndarray)):
        return _gather_ragged(name, spec, pieces, num_rows, None if cut is None else cut.lengths)
    shape = [n or 0 for n in spec.shape]
    part: tuple[slice, ...] = ()
    if cut is not None:
        shape[cut.axis] = int(cut.lengths)
        part = (*[slice(None)] * cut.axis, slice(shape[cut.axis]))
    out = np.empty((num_rows, *shape), spec.dtype)
    for places, rows, columns in pieces:
        out[places] = columns[name][(rows, *part)]
    return out


def _gather_ragged(
    name: str,
    spec: FieldSpec,
    pieces: Sequence[_Piece],
    num_rows: int,
    most: int | np.ndarray | None,
) -> Ragged:
    offsets = np.zeros(num_rows + 1, np.int64)
    lengths = offsets[1:]
    parts: list[np.ndarray] = [np.empty((0, *(n or 0 for n in spec.shape[1:])), spec.dtype)]
    parts *= num_rows + 1  # concatenate wants at least one
    for places, rows, columns in pieces:
        values, starts, stops = _bounds(columns[name], rows)
        if most is not None:
            kept = most if isinstance(most, int) else most[places]
            stops = np.minimum(stops, starts + kept)
        lengths[places] = stops - starts
        if most is None and isinstance(places, slice) and isinstance(rows, slice):
            parts[places.start] = values[starts[0] : stops[-1]]
            continue
        bounds = zip(starts.tolist(), stops.tolist(), strict=True)
        for place, (start, stop) in zip(_numbers(places), bounds, strict=True):
            parts[place] = values[start:stop]
    np.cumsum(lengths, out=lengths)
    return Ragged(np.concatenate(parts), offsets)


def _bounds(column: np.ndarray | Ragged, rows: Index) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values of all rows in one array, and where some rows begin and end in it."""
    if isinstance(column, Ragged):
        return column.values, column.offsets[:-1][rows], column.offsets[1:][rows]
    length = column.shape[1]
    starts = np.asarray(_numbers(rows), np.int64) * length
    return column.reshape(-1, *column.shape[2:]), starts, starts + length


def _gather_objects(name: str, pieces: Sequence[_Piece], num_rows: int) -> list[str | bytes]:
    found: list[str | bytes] = [""] * num_rows
    for places, rows, columns in pieces:
        column = columns[name]
        taken = column[rows] if isinstance(rows, slice) else column.take(pa.array(rows))
        for place, value in zip(_numbers(places), taken.to_pylist(), strict=True):
            found[place] = value
    return found


def _numbers(index: Index) -> Sequence[int]:
    if isinstance(index, slice):
        return range(index.start, index.stop)
    numbers: list[int] = index.tolist()
    return numbers


ValueT = TypeVar("ValueT")


class _Recent(Generic[ValueT]):
    """The values used last; a pickled copy is empty."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[Hashable, ValueT] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[int], ValueT], number: int) -> ValueT:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make(number)
        self.keep(self._capacity)
        return value

    def keep(self, num: int) -> None:
        """Forget the values used longest ago until so many are left."""
        while len(self._values) > num:
            self._values.popitem(last=False)

    def __reduce__(self) -> tuple[object, ...]:
        return _Recent, (self._capacity,)
