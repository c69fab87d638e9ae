"""Shards as memory maps: checked against manifest and index, columns as numpy views."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa

from operators.base import Column, FieldSpec, Ragged
from pipeline.errors import IntegrityError
from pipeline.flat_shards import Documents, flat_columns, is_flat, keys
from pipeline.loader.files import CHANGED, ShardFiles
from pipeline.manifest import DataSet

OPEN_SHARDS = 1024
"""Shards kept mapped. A map holds address space and about 30 KB of views, no file handle."""

DECODED_BATCHES = 4
"""Record batches of compressed shards kept decoded, about 32 MiB each."""


class ShardMaps:
    """Opens shards by their row in the index; nothing is opened before it is asked for.

    Args:
        data_set: The data set.
        fields: Field -> spec of what to read.
        files: Where the shards are on this machine.

    Attributes:
        stops: int64 [S], one past the last row of each shard.
    """

    def __init__(
        self, data_set: DataSet, fields: Mapping[str, FieldSpec], files: ShardFiles
    ) -> None:
        self._fields = dict(fields)
        self._files = files
        self._data_set = data_set
        self._manifest = data_set.manifest
        self._partitions = data_set.shards["partition"].to_numpy()
        self._num_samples = data_set.shards["num_samples"].to_numpy()
        self.stops: np.ndarray = np.cumsum(self._num_samples, dtype=np.int64)

    @property
    def max_open(self) -> int:
        """How many shards a reader may keep open now; to be asked before each ``open``."""
        return self._files.max_mapped(OPEN_SHARDS)

    def uri(self, number: int) -> str:
        """Return the address of a shard, for messages."""
        return self._files.uri(number)

    def reading(self, number: int) -> AbstractContextManager[None]:
        """Return where all that broken bytes of a shard raise becomes an IntegrityError."""
        return self._files.reading(number)

    def open(self, number: int) -> "OpenShard":
        """Map a shard.

        Raises:
            IntegrityError: it is not what the index says, or not an Arrow file.
        """
        with self.reading(number):
            buffer = self._files.map(number)
            if is_flat(self._data_set, number):
                return self._open_flat(number, buffer)
            shard = MappedShard(buffer, partial(self.reading, number), self._fields)
            fingerprint = self._manifest.fingerprint_of(int(self._partitions[number]))
            if shard.fingerprint != fingerprint:
                raise IntegrityError(
                    f"{self.uri(number)}: fingerprint {shard.fingerprint[:12]}, the manifest says "
                    f"{fingerprint[:12]}",
                    hint="the folder mixes two data sets; copy the right one whole",
                )
            expected = int(self._num_samples[number])
            if shard.num_samples != expected:
                raise IntegrityError(
                    f"{self.uri(number)}: {shard.num_samples:,} samples, the index says "
                    f"{expected:,}",
                    hint=CHANGED,
                )
        return shard

    def _open_flat(self, number: int, buffer: pa.Buffer) -> "FlatShard":
        ((field, spec),) = self._manifest.fields.items()
        documents = Documents(self._data_set, number)
        expected = self._data_set.shards[f"tokens.{field}"][number].as_py()
        if documents.num_ids != expected:
            raise IntegrityError(
                f"{self.uri(number)}: its documents have {documents.num_ids:,} ids, the index says "
                f"{expected:,}",
                hint=CHANGED,
            )
        first_row = int(self.stops[number] - self._num_samples[number])
        return FlatShard(buffer, documents, self._fields, field, spec, first_row)


class OpenShard(Protocol):
    """A shard whose rows can be read.

    Attributes:
        stops: One past the last row of each record batch.
        mapped: Record batch -> columns; none when they are decoded on demand.
    """

    stops: list[int]
    mapped: dict[int, Mapping[str, Column]]

    @property
    def num_samples(self) -> int:
        """Its rows."""
        ...

    def decode(self, batch: int) -> Mapping[str, Column]:
        """Return the columns of a record batch that is not mapped."""
        ...

    def columns(self, batch: int) -> Mapping[str, Column]:
        """Return the columns of a record batch: views of the map, or decoded."""
        ...


class FlatShard:
    """A mapped file of ids that another program wrote; see ``flat_shards``."""

    def __init__(
        self,
        buffer: pa.Buffer,
        documents: Documents,
        fields: Mapping[str, FieldSpec],
        field: str,
        spec: FieldSpec,
        first_row: int,
    ) -> None:
        counts = [len(offsets) - 1 for offsets in documents.batches]
        self.stops: list[int] = np.cumsum(counts, dtype=np.int64).tolist()
        self.mapped: dict[int, Mapping[str, Column]] = {}
        start = first_row
        for batch, ids in enumerate(flat_columns(buffer, documents, field, spec)):
            named = {**ids, "key": _RowKeys(start, counts[batch])}
            self.mapped[batch] = {name: named[name] for name in fields}
            start += counts[batch]

    @property
    def num_samples(self) -> int:
        """Its rows."""
        return self.stops[-1]

    def decode(self, batch: int) -> Mapping[str, Column]:
        """Return the columns of a batch; all are mapped."""
        return self.mapped[batch]

    columns = decode


class _RowKeys:
    """The keys of consecutive rows, made when they are asked for."""

    def __init__(self, first: int, num: int) -> None:
        self._rows = range(first, first + num)

    def __getitem__(self, rows: slice) -> pa.Array:
        return keys(np.array(self._rows[rows], np.int64))

    def take(self, rows: pa.Array) -> pa.Array:
        """Return the keys of some rows, by their place."""
        return keys(rows.to_numpy() + self._rows.start)


class MappedShard:
    """One memory-mapped shard.

    Args:
        buffer: Its bytes, which stay mapped as long as this object.
        reading: Returns where all that broken bytes raise becomes an IntegrityError.
        fields: Field -> spec of what to read.

    Attributes:
        fingerprint: Of the run that wrote it.
        stops: One past the last row of each record batch.
        mapped: Record batch -> columns; of a compressed shard none, they are decoded on demand.
    """

    def __init__(
        self,
        buffer: pa.Buffer,
        reading: Callable[[], AbstractContextManager[None]],
        fields: Mapping[str, FieldSpec],
    ) -> None:
        self._buffer, self._reading, self._fields = buffer, reading, fields
        reader = self._reader()
        self.fingerprint: str = json.loads(reader.schema.metadata[b"tokenmill"])["fingerprint"]
        self._positions = [_position(reader.schema, name) for name in fields]
        self.mapped: dict[int, Mapping[str, Column]] = {}
        numbers = range(reader.num_record_batches)
        if self._is_mapped(reader.get_batch(0)):
            batches = [reader.get_batch(i) for i in numbers]
            self.mapped = {i: self._columns(batches[i]) for i in numbers}
            sizes = [batch.num_rows for batch in batches]
        else:
            keys = self._reader([0])  # to count rows, decode no more than the keys
            sizes = [keys.get_batch(i).num_rows for i in numbers]
        self.stops: list[int] = np.cumsum(sizes).tolist()

    @property
    def num_samples(self) -> int:
        """Its rows."""
        return self.stops[-1]

    def decode(self, batch: int) -> Mapping[str, Column]:
        """Return the columns of a record batch of a compressed shard.

        Raises:
            IntegrityError: the bytes cannot be decoded.
        """
        with self._reading():
            return self._columns(self._reader(self._positions).get_batch(batch))

    def columns(self, batch: int) -> Mapping[str, Column]:
        """Return the columns of a record batch: views of the map, or decoded."""
        mapped = self.mapped.get(batch)
        return self.decode(batch) if mapped is None else mapped

    def _columns(self, batch: pa.RecordBatch) -> Mapping[str, Column]:
        return {name: _column(batch[name], spec) for name, spec in self._fields.items()}

    def _reader(self, positions: Sequence[int] = ()) -> pa.RecordBatchFileReader:
        """Return a reader of some fields, which copies; or of all, which does not."""
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=list(positions))
        return pa.ipc.open_file(pa.BufferReader(self._buffer), options=options)

    def _is_mapped(self, batch: pa.RecordBatch) -> bool:
        start, stop = self._buffer.address, self._buffer.address + self._buffer.size
        buffers = [buffer for column in batch.columns for buffer in column.buffers()]
        return all(start <= b.address < stop for b in buffers if b is not None and b.size)


def _position(schema: pa.Schema, name: str) -> int:
    position: int = schema.get_field_index(name)
    if position < 0:
        raise KeyError(f"no field {name!r}")
    return position


def _column(array: pa.Array, spec: FieldSpec) -> Column:
    """Return an Arrow column as numpy views: [N, *shape], or Ragged with int32 offsets."""
    if not spec.is_numeric:
        return array
    if spec.is_ragged:
        values = _flat(array.values, spec.shape[1:])
        return Ragged(_typed(values, spec), array.offsets.to_numpy())
    return _typed(_flat(array, spec.shape), spec)


def _typed(values: np.ndarray, spec: FieldSpec) -> np.ndarray:
    return values.view("bfloat16") if spec.dtype == "bfloat16" else values


def _flat(array: pa.Array, shape: Sequence[int | None]) -> np.ndarray:
    while pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    is_bit = pa.types.is_boolean(array.type)
    values: np.ndarray = array.to_numpy(zero_copy_only=not is_bit)
    return values.reshape(-1, *(n or 0 for n in shape))
