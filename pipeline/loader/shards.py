"""Rows of memory-mapped Arrow IPC shards, by their number in the data set."""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

from operators.base import Column, FieldSpec, Ragged
from pipeline.errors import IntegrityError
from pipeline.loader.files import ShardFiles
from pipeline.manifest import DataSet

OPEN_SHARDS = 1024
"""Shards kept mapped. A map holds address space and about 30 KB of views, no file handle."""

DECODED_BATCHES = 4
"""Record batches of compressed shards kept decoded, about 32 MiB each."""

Index = slice | np.ndarray
"""Positions of rows: a slice where they are consecutive, so that numpy copies them at once."""


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
        self._files = files
        self._fingerprint = data_set.manifest.fingerprint
        self._stops: list[int] = np.cumsum(data_set.shards["num_samples"].to_numpy()).tolist()
        self._open: _Recent[_MappedShard] = _Recent(OPEN_SHARDS)
        self._decoded: _Recent[Mapping[str, Column]] = _Recent(DECODED_BATCHES)

    @property
    def num_samples(self) -> int:
        """Rows of all shards."""
        return self._stops[-1] if self._stops else 0

    def read(self, rows: np.ndarray) -> dict[str, Column]:
        """Return some rows, in the given order.

        Args:
            rows: int64 [B], different rows.

        Returns:
            Field -> B rows: numpy [B, *shape], ``Ragged``, or a list of str or bytes. Nothing in
            them refers to the map.

        Raises:
            IntegrityError: a shard is not what the index says, or not an Arrow file.
        """
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        pieces: list[_Piece] = []
        done = 0
        while done < len(rows):
            first, stop, columns = self._record_batch(int(ordered[done]))
            end = int(np.searchsorted(ordered, stop))
            piece = (_index(order[done:end]), _index(ordered[done:end] - first), columns)
            pieces.append(piece)
            done = end
        return {name: _gather(name, spec, pieces, len(rows)) for name, spec in self._fields.items()}

    def _record_batch(self, row: int) -> tuple[int, int, Mapping[str, Column]]:
        """Return the first row, the stop and the columns of the record batch that holds a row."""
        number = bisect_right(self._stops, row)
        shard = self._open.get(number, lambda: self._map(number))
        base = self._stops[number] - shard.num_samples
        batch = bisect_right(shard.stops, row - base)
        columns = shard.mapped.get(batch)
        if columns is None:
            with _integrity_errors(self._files.uri(number)):
                columns = self._decoded.get((number, batch), lambda: shard.columns(batch))
        stop = base + shard.stops[batch]
        return base + (shard.stops[batch - 1] if batch else 0), stop, columns

    def _map(self, number: int) -> "_MappedShard":
        expected = self._stops[number] - (self._stops[number - 1] if number else 0)
        path, uri = str(self._files.path(number)), self._files.uri(number)
        with _integrity_errors(uri):
            shard = _MappedShard(path, self._fields)
        if shard.fingerprint != self._fingerprint:
            raise IntegrityError(
                f"{uri}: fingerprint {shard.fingerprint[:12]}, the manifest says "
                f"{self._fingerprint[:12]}",
                hint="the folder mixes two data sets; copy the right one whole",
            )
        if shard.num_samples != expected:
            raise IntegrityError(
                f"{uri}: {shard.num_samples:,} samples, the index says {expected:,}",
                hint=_VERIFY,
            )
        return shard


_VERIFY = "the bytes changed after the commit; verify=True checks the hash of every shard"


@contextmanager
def _integrity_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{uri}: not a shard ({error})", hint=_VERIFY) from None


_Piece = tuple[Index, Index, Mapping[str, Column]]  # places in the batch, rows, their columns


class _MappedShard:
    """One memory-mapped shard.

    Attributes:
        stops: One past the last row of each record batch.
        mapped: Record batch -> columns, for those seen so far whose columns lie in the map.
    """

    def __init__(self, path: str, fields: Mapping[str, FieldSpec]) -> None:
        self._fields = fields
        with pa.memory_map(path) as file:
            # The buffer keeps the map when the file is closed: maps are many, handles are few.
            self._buffer = file.read_buffer()
        whole = self._reader([])
        positions = sorted(whole.schema.get_field_index(name) for name in fields)
        if positions and positions[0] < 0:
            missing = [name for name in fields if name not in whole.schema.names]
            raise KeyError(f"no field {missing[0]!r}")
        # Only the key is decoded to count the rows of a compressed record batch.
        keys = self._reader([0])
        sizes = [keys.get_batch(i).num_rows for i in range(keys.num_record_batches)]
        self.fingerprint: str = json.loads(whole.schema.metadata[b"tokenmill"])["fingerprint"]
        self.stops: list[int] = np.cumsum(sizes).tolist()
        self.mapped: dict[int, Mapping[str, Column]] = {}
        self._batches = self._reader(positions)

    @property
    def num_samples(self) -> int:
        return self.stops[-1] if self.stops else 0

    def columns(self, batch: int) -> Mapping[str, Column]:
        arrays = self._batches.get_batch(batch)
        columns = {name: _column(arrays[name], spec) for name, spec in self._fields.items()}
        if all(self._is_mapped(arrays[name]) for name in self._fields):
            self.mapped[batch] = columns
        return columns

    def _reader(self, positions: Sequence[int]) -> pa.RecordBatchFileReader:
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=list(positions))
        return pa.ipc.open_file(pa.BufferReader(self._buffer), options=options)

    def _is_mapped(self, array: pa.Array) -> bool:
        start = self._buffer.address
        buffers = (buffer for buffer in array.buffers() if buffer is not None)
        return all(start <= buffer.address < start + self._buffer.size for buffer in buffers)


def _column(array: pa.Array, spec: FieldSpec) -> Column:
    """Return an Arrow column as numpy views: [N, *shape], or Ragged with int32 offsets."""
    if not spec.is_numeric:
        return array
    if spec.is_ragged:
        return Ragged(_flat(array.values, spec.shape[1:]), array.offsets.to_numpy())
    return _flat(array, spec.shape)


def _flat(array: pa.Array, shape: Sequence[int | None]) -> np.ndarray:
    while pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    is_bit = pa.types.is_boolean(array.type)
    values: np.ndarray = array.to_numpy(zero_copy_only=not is_bit)
    return values.reshape(-1, *(n or 0 for n in shape))


def _gather(name: str, spec: FieldSpec, pieces: Sequence[_Piece], num_rows: int) -> Column:
    """Join the rows of one field."""
    if not spec.is_numeric:
        return _gather_objects(name, pieces, num_rows)
    if spec.is_ragged:
        return _gather_ragged(name, spec, pieces, num_rows)
    out = np.empty((num_rows, *(n or 0 for n in spec.shape)), spec.dtype)
    for places, rows, columns in pieces:
        out[places] = columns[name][rows]
    return out


def _gather_ragged(name: str, spec: FieldSpec, pieces: Sequence[_Piece], num_rows: int) -> Ragged:
    offsets = np.zeros(num_rows + 1, np.int64)
    lengths = offsets[1:]
    parts: list[np.ndarray] = [np.empty((0, *(n or 0 for n in spec.shape[1:])), spec.dtype)]
    parts *= num_rows + 1  # concatenate wants at least one
    for places, rows, columns in pieces:
        column: Ragged = columns[name]
        starts, stops = column.offsets[:-1][rows], column.offsets[1:][rows]
        lengths[places] = stops - starts
        if isinstance(places, slice) and isinstance(rows, slice):
            parts[places.start] = column.values[starts[0] : stops[-1]]
            continue
        where = np.arange(num_rows)[places].tolist()
        for place, start, stop in zip(where, starts.tolist(), stops.tolist(), strict=True):
            parts[place] = column.values[start:stop]
    np.cumsum(lengths, out=lengths)
    return Ragged(np.concatenate(parts), offsets)


def _gather_objects(name: str, pieces: Sequence[_Piece], num_rows: int) -> list[str | bytes]:
    found: list[str | bytes] = [""] * num_rows
    for places, rows, columns in pieces:
        where = np.arange(num_rows)[places].tolist()
        column = columns[name]
        taken = column[rows] if isinstance(rows, slice) else column.take(pa.array(rows))
        for place, value in zip(where, taken.to_pylist(), strict=True):
            found[place] = value
    return found


def _index(positions: np.ndarray) -> Index:
    """Return positions as a slice when they are consecutive."""
    first = int(positions[0])
    if len(positions) == 1 or (np.diff(positions) == 1).all():
        return slice(first, first + len(positions))
    return positions


ValueT = TypeVar("ValueT")


class _Recent(Generic[ValueT]):
    """The values used last; a pickled copy is empty."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[Hashable, ValueT] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], ValueT]) -> ValueT:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        if len(self._values) > self._capacity:
            self._values.popitem(last=False)
        return value

    def __reduce__(self) -> tuple[object, ...]:
        return _Recent, (self._capacity,)
