"""Arrow IPC shards: uncompressed, memory-mappable, open to every Arrow reader."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.base import Batch, Column, FieldSpec, Ragged
from operators.columns import concat, num_bytes, num_rows, num_values, take_batch
from pipeline.errors import ContractError
from pipeline.protocols import RowRange, Shard
from pipeline.storage import Storage, join

BATCH_BYTES = 32 << 20
"""A record batch ends with the row that brings it to this many bytes of column data. Part of the
format: it decides where batches end, so changing it changes bytes."""

MAX_ROW_BYTES = 1 << 30
"""Largest row. With it no record batch outgrows the 32-bit offsets of its columns."""

_FILES, _ROWS = " file", " row"  # a job cannot name fields so


class ArrowSink:
    """Writes the rows of one partition to ``shards/<partition>-<n>.arrow``.

    Record batches end at the same rows however the rows arrive, so the bytes depend on the rows
    alone. Each batch carries the source rows it covers.

    Args:
        storage: How to reach the output.
        output: The output folder's URI.
        partition: Index of the partition.
        file_names: Names of the source files, as ``write`` refers to them; may grow meanwhile.
        fields: Output fields, in file order; ``key`` comes first and is not among them.
        metadata: Schema metadata, as JSON values.
        compression: ``none`` or ``zstd``.
        shard_bytes: A shard ends with the record batch that brings it to this size.

    Raises:
        ContractError: a field has a dimension of 0.
    """

    def __init__(
        self,
        storage: Storage,
        output: str,
        partition: int,
        file_names: Sequence[str],
        fields: Mapping[str, FieldSpec],
        metadata: Mapping[str, Any],
        *,
        compression: str = "none",
        shard_bytes: int = 1 << 30,
    ) -> None:
        self._storage, self._output, self._partition = storage, output, partition
        self._file_names = file_names
        self._fields = dict(fields)
        self._schema = pa.schema(
            [pa.field("key", pa.string(), nullable=False)]
            + [_schema_field(name, spec) for name, spec in fields.items()],
            metadata={"tokenmill": json.dumps(metadata, sort_keys=True, ensure_ascii=False)},
        )
        self._options = pa.ipc.IpcWriteOptions(
            compression=None if compression == "none" else compression, use_threads=False
        )
        self._shard_bytes = shard_bytes
        self._pending: list[Batch] = []
        self._pending_bytes = 0
        self._shards: list[Shard] = []
        self._open: _OpenShard | None = None

    def write(self, columns: Batch, files: np.ndarray, rows: np.ndarray) -> None:
        """Append rows; see ``Sink.write``.

        Raises:
            ContractError: a value is null, or a row is larger than ``MAX_ROW_BYTES``.
        """
        names = ["key", *self._fields]
        count = len(rows)
        self._check_nulls(columns)
        sizes = sum((_row_bytes(columns[name]) for name in names), np.zeros(count, np.int64))
        self._check_sizes(columns, sizes)
        ends = np.cumsum(sizes)
        start, done = 0, 0
        while start < count:
            room = BATCH_BYTES - self._pending_bytes
            stop = int(np.searchsorted(ends, done + room)) + 1
            full = stop <= count
            stop = min(stop, count)
            part = {name: columns[name] for name in names}
            if stop - start < count:
                part = take_batch(part, np.arange(start, stop))
            self._pending.append({**part, _FILES: files[start:stop], _ROWS: rows[start:stop]})
            self._pending_bytes += int(ends[stop - 1]) - done
            if full:
                self._flush()
            start, done = stop, int(ends[stop - 1])

    def close(self) -> Sequence[Shard]:
        """Finish the last shard and return all of them; none when no row was written."""
        if self._pending:
            self._flush()
        self._finish()
        return self._shards

    def abort(self) -> None:
        """Drop the shard that is being written.

        Finished shards stay: another attempt at the partition may have committed the same files.
        """
        self._pending.clear()
        if self._open is not None:
            self._open.drop()
            self._open = None

    def _check_nulls(self, columns: Batch) -> None:
        for name in ("key", *self._fields):
            found = getattr(columns[name], "null_count", 0)
            if found:
                raise ContractError(
                    f"partition {self._partition}: {found:,} values of field {name!r} are null, "
                    "expected none",
                    hint="shards hold no nulls; an operator drops such rows or fills them in",
                )

    def _check_sizes(self, columns: Batch, sizes: np.ndarray) -> None:
        if len(sizes) and sizes.max() > MAX_ROW_BYTES:
            row = int(sizes.argmax())
            raise ContractError(
                f"sample {columns['key'][row].as_py()!r}: {sizes[row]:,} bytes, a row of a shard "
                f"holds at most {MAX_ROW_BYTES:,}",
                hint="write fewer fields, or drop such samples with a filter",
            )

    def _flush(self) -> None:
        joined = {name: concat([part[name] for part in self._pending]) for name in self._pending[0]}
        self._pending, self._pending_bytes = [], 0
        if self._open is None:
            path = f"shards/{self._partition:07d}-{len(self._shards):03d}.arrow"
            self._open = _OpenShard(
                self._storage, join(self._output, path), path, self._schema, self._options
            )
        arrays = [joined["key"].cast(pa.string())]
        arrays += [_array(joined[name], spec) for name, spec in self._fields.items()]
        tokens = {
            name: num_values(joined[name])
            for name, spec in self._fields.items()
            if spec.vocab_size is not None
        }
        origins = _origins(self._file_names, joined[_FILES], joined[_ROWS])
        self._open.write(pa.RecordBatch.from_arrays(arrays, schema=self._schema), origins, tokens)
        if self._open.num_bytes >= self._shard_bytes:
            self._finish()

    def _finish(self) -> None:
        if self._open is not None:
            self._shards.append(self._open.close())
            self._open = None


def arrow_type(spec: FieldSpec) -> pa.DataType:
    """Return the Arrow type that a field is stored as."""
    if spec.dtype == "string":
        return pa.string()
    if spec.dtype == "binary":
        return pa.binary()
    if 0 in spec.shape:  # pyarrow divides by it, which ends the process
        raise ContractError(f"a field of {spec} cannot be stored, expected dimensions of 1 or more")
    # Arrow has no bfloat16: its bits are stored, and the field's metadata says so.
    kind = pa.from_numpy_dtype(np.dtype("uint16" if spec.dtype == "bfloat16" else spec.dtype))
    for length in reversed(spec.shape):
        item = pa.field("item", kind, nullable=False)
        kind = pa.list_(item) if length is None else pa.list_(item, length)
    return kind


def _schema_field(name: str, spec: FieldSpec) -> pa.Field:
    about = {"dtype": spec.dtype} if spec.dtype == "bfloat16" else None
    return pa.field(name, arrow_type(spec), nullable=False, metadata=about)


class _OpenShard:
    def __init__(
        self,
        storage: Storage,
        uri: str,
        path: str,
        schema: pa.Schema,
        options: pa.ipc.IpcWriteOptions,
    ) -> None:
        self._path = path
        self._stack = ExitStack()
        self._file = _HashingFile(self._stack.enter_context(storage.open_write(uri)))
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), schema, options=options)
        self._num_samples = 0
        self._tokens: dict[str, int] = {}
        self._origins: list[RowRange] = []

    @property
    def num_bytes(self) -> int:
        return self._file.num_bytes

    def write(
        self, batch: pa.RecordBatch, origins: Sequence[RowRange], tokens: Mapping[str, int]
    ) -> None:
        sources = [[r.name, r.first, r.stop] for r in origins]
        text = json.dumps({"sources": sources}, ensure_ascii=False)
        self._writer.write_batch(batch, custom_metadata={"tokenmill": text})
        self._num_samples += batch.num_rows
        self._origins += origins
        for name, count in tokens.items():
            self._tokens[name] = self._tokens.get(name, 0) + count

    def close(self) -> Shard:
        self._writer.close()
        self._stack.close()
        return Shard(
            path=self._path,
            num_bytes=self._file.num_bytes,
            sha256=self._file.sha256,
            num_samples=self._num_samples,
            tokens=self._tokens,
            sources=tuple(_merge(self._origins)),
        )

    def drop(self) -> None:
        dropped = _DroppedError()
        self._stack.__exit__(_DroppedError, dropped, None)


class _DroppedError(Exception):
    """Tells the storage not to publish the file."""


class _HashingFile:
    """A write-only file that counts and hashes what passes through."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._hash.update(view)
        self._file.write(view)
        self.num_bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Nothing is buffered here."""

    def close(self) -> None:
        self.closed = True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _array(column: Column, spec: FieldSpec) -> pa.Array:
    kind = arrow_type(spec)
    if isinstance(column, pa.Array):
        return column.cast(kind)
    if isinstance(column, Ragged):
        values = _nested(column.values, kind.value_type)
        offsets = pa.array((column.offsets - column.offsets[0]).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, values, type=kind)
    return _nested(column, kind)


def _nested(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = np.ascontiguousarray(values).reshape(-1)
    array = pa.array(flat.view(np.uint16) if flat.dtype == np.dtype("bfloat16") else flat)
    kinds = []
    while pa.types.is_fixed_size_list(kind):
        kinds.append(kind)
        kind = kind.value_type
    for outer in reversed(kinds):
        array = pa.FixedSizeListArray.from_arrays(array, type=outer)
    return array


def _row_bytes(column: Column) -> np.ndarray:
    """Return int64 [N]: bytes of each row's values, without offsets and padding."""
    if isinstance(column, pa.Array):
        lengths = pc.binary_length(column)
        return np.asarray(lengths, dtype=np.int64)
    if isinstance(column, Ragged):
        per_value = column.values.itemsize * int(np.prod(column.values.shape[1:]))
        return column.lengths * per_value
    rows = max(num_rows(column), 1)
    return np.full(num_rows(column), num_bytes(column) // rows, np.int64)


def _origins(names: Sequence[str], files: np.ndarray, rows: np.ndarray) -> list[RowRange]:
    """Return the smallest ranges that hold the rows, one per run of rows of one file."""
    starts = np.flatnonzero(np.diff(files, prepend=-1))
    stops = np.append(starts[1:], len(files))
    return [
        RowRange(names[files[a]], int(rows[a]), int(rows[b - 1]) + 1)
        for a, b in zip(starts, stops, strict=True)
    ]


def _merge(origins: Sequence[RowRange]) -> list[RowRange]:
    """Join neighbouring ranges of one file."""
    merged: list[RowRange] = []
    for origin in origins:
        if merged and merged[-1].name == origin.name:
            merged[-1] = RowRange(origin.name, merged[-1].first, origin.stop)
        else:
            merged.append(origin)
    return merged
