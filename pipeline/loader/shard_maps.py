"""Shards as memory maps: checked against manifest and index, columns as numpy views."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import numpy as np
import pyarrow as pa

from operators.base import Column, FieldSpec, Ragged
from pipeline.errors import IntegrityError
from pipeline.flat_shards import Documents, flat_columns, is_flat, keys
from pipeline.loader.files import ShardFiles
from pipeline.manifest import DataSet

OPEN_SHARDS = 1024
"""Shards kept mapped. A map holds address space and about 30 KB of views, no file handle."""

DECODED_BATCHES = 4
"""Record batches of compressed shards kept decoded, about 32 MiB each."""

CHANGED = "the bytes changed after the commit; verify=True checks the hash of every shard"


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
        return OPEN_SHARDS

    def uri(self, number: int) -> str:
        """Return the address of a shard, for messages."""
        return self._files.uri(number)

    def reading(self, number: int) -> AbstractContextManager[None]:
        """Return where all that broken bytes of a shard raise becomes an IntegrityError."""
        return _integrity_errors(self._files.uri(number))

    def open(self, number: int) -> "OpenShard":
        """Map a shard.

        Raises:
            IntegrityError: it is not what the index says, or not an Arrow file.
        """
        expected = int(self._num_samples[number])
        path, uri = str(self._files.path(number)), self._files.uri(number)
        if is_flat(self._data_set, number):
            return self._open_flat(number, path, uri)
        with _integrity_errors(uri):
            shard = MappedShard(path, uri, self._fields)
        fingerprint = self._manifest.fingerprint_of(int(self._partitions[number]))
        if shard.fingerprint != fingerprint:
            raise IntegrityError(
                f"{uri}: fingerprint {shard.fingerprint[:12]}, the manifest says "
                f"{fingerprint[:12]}",
                hint="the folder mixes two data sets; copy the right one whole",
            )
        if shard.num_samples != expected:
            raise IntegrityError(
                f"{uri}: {shard.num_samples:,} samples, the index says {expected:,}",
                hint=CHANGED,
            )
        return shard

    def _open_flat(self, number: int, path: str, uri: str) -> "FlatShard":
        ((field, spec),) = self._manifest.fields.items()
        documents = Documents(self._data_set, number)
        expected = self._data_set.shards[f"tokens.{field}"][number].as_py()
        if documents.num_ids != expected:
            raise IntegrityError(
                f"{uri}: its documents have {documents.num_ids:,} ids, the index says {expected:,}",
                hint=CHANGED,
            )
        first_row = int(self.stops[number] - self._num_samples[number])
        with _integrity_errors(uri):
            return FlatShard(path, uri, documents, self._fields, field, spec, first_row)


class OpenShard(Protocol):
    """A shard whose rows can be read.

    Attributes:
        uri: Its address, for messages.
        stops: One past the last row of each record batch.
        mapped: Record batch -> columns; none when they are decoded on demand.
    """

    uri: str
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
    """A file of ids that another program wrote, mapped where it lies; see ``flat_shards``."""

    def __init__(
        self,
        path: str,
        uri: str,
        documents: Documents,
        fields: Mapping[str, FieldSpec],
        field: str,
        spec: FieldSpec,
        first_row: int,
    ) -> None:
        self.uri = uri
        counts = [len(offsets) - 1 for offsets in documents.batches]
        self.stops: list[int] = np.cumsum(counts, dtype=np.int64).tolist()
        self.mapped: dict[int, Mapping[str, Column]] = {}
        start = first_row
        for batch, ids in enumerate(flat_columns(path, documents, field, spec)):
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

    Attributes:
        uri: Its address, for messages.
        fingerprint: Of the run that wrote it.
        stops: One past the last row of each record batch.
        mapped: Record batch -> columns; of a compressed shard none, they are decoded on demand.
    """

    def __init__(self, path: str, uri: str, fields: Mapping[str, FieldSpec]) -> None:
        self.uri = uri
        self._fields = fields
        with pa.memory_map(path) as file:
            # The buffer keeps the map when the file is closed: maps are many, handles are few.
            self._buffer = file.read_buffer()
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
        with _integrity_errors(self.uri):
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


@contextmanager
def _integrity_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{uri}: not a shard ({error})", hint=CHANGED) from None
