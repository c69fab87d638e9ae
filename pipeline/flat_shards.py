"""Flat shards: the ids of a field, one after another, in a file that another program wrote.

The file is used where it lies. Beside it stands a *documents* file, which says where samples begin:
an Arrow IPC file with a single column, ``offsets`` (int32). Each of its record batches covers
consecutive samples: entry i is where sample i begins, in ids from the batch's first id, and the
last entry is where the last sample ends. ``FORMAT.md`` has the details.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from operators.base import FieldSpec, Ragged
from pipeline.errors import ContractError, IntegrityError
from pipeline.manifest import DataSet

LAYOUT = "flat"
BATCH_BYTES = 32 << 20
"""Ids that a batch covers: it ends with the sample that brings them to this many bytes."""

MAX_ROW_BYTES = 1 << 30

_OFFSETS = pa.schema([pa.field("offsets", pa.int32(), nullable=False)])


class Readable(Protocol):
    """What a flat file is read from, front to back."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, fewer only at the end."""
        ...


def is_flat(data_set: DataSet, shard: int) -> bool:
    """Say whether a shard, by its row in the index, is a flat one."""
    columns = data_set.shards.column_names
    return "layout" in columns and data_set.shards["layout"][shard].as_py() == LAYOUT


def documents_bytes(offsets_N: np.ndarray, itemsize: int, fingerprint: str) -> bytes:
    """Return the documents file of a flat shard.

    Args:
        offsets_N: int64 [N + 1], where samples begin, in ids, and the end of the last.
        itemsize: Bytes of an id.
        fingerprint: Of the data set.

    Raises:
        ContractError: a sample is larger than a row may be.
    """
    largest = int(np.diff(offsets_N).max(initial=0)) * itemsize
    if largest > MAX_ROW_BYTES:
        raise ContractError(
            f"a document of {largest:,} bytes, a row holds at most {MAX_ROW_BYTES:,}",
            hint="cut it with the program that wrote it",
        )
    about = {"format_version": 1, "fingerprint": fingerprint, "layout": LAYOUT}
    schema = _OFFSETS.with_metadata({"tokenmill": json.dumps(about, sort_keys=True)})
    out = pa.BufferOutputStream()
    with pa.ipc.new_file(out, schema) as writer:
        start, num = 0, len(offsets_N) - 1
        while start < num:
            full = offsets_N[start] + -(-BATCH_BYTES // itemsize)
            stop = min(int(np.searchsorted(offsets_N, full)), num)
            offsets = (offsets_N[start : stop + 1] - offsets_N[start]).astype(np.int32)
            writer.write_batch(pa.record_batch([pa.array(offsets)], schema=schema))
            start = stop
    data: bytes = out.getvalue().to_pybytes()
    return data


class Documents:
    """The documents file of a flat shard, checked against the index; a local one is mapped.

    Args:
        data_set: The data set.
        shard: The shard's row in the index.

    Attributes:
        batches: int32 [n + 1] per batch of samples.

    Raises:
        NotFoundError: there is no such file.
        IntegrityError: it is not the one that the index names.
    """

    def __init__(self, data_set: DataSet, shard: int) -> None:
        named: Mapping[str, Any] = data_set.shards["documents"][shard].as_py()
        self._uri = data_set.shard_uri(named["path"])
        partition = data_set.shards["partition"][shard].as_py()
        local = data_set.storage.local_path(self._uri)
        buffer = self._mapped(local) if local is not None and local.is_file() else None
        if buffer is None:
            buffer = pa.py_buffer(data_set.storage.read(self._uri))
            self._check("sha256", hashlib.sha256(buffer).hexdigest(), named["sha256"])
        self._check("bytes", buffer.size, named["num_bytes"])
        try:
            with pa.ipc.open_file(pa.BufferReader(buffer)) as reader:
                about = json.loads(reader.schema.metadata[b"tokenmill"])
                self._check(
                    "fingerprint",
                    about["fingerprint"],
                    data_set.manifest.fingerprint_of(partition),
                )
                self.batches: list[np.ndarray] = [
                    reader.get_batch(i).column("offsets").to_numpy()
                    for i in range(reader.num_record_batches)
                ]
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"{self._uri}: not a documents file ({error})", hint=_IMPORT_AGAIN
            ) from None
        self._check("samples", self.num_samples, data_set.shards["num_samples"][shard].as_py())

    @property
    def num_samples(self) -> int:
        """Samples of the shard."""
        return sum(len(offsets) - 1 for offsets in self.batches)

    @property
    def num_ids(self) -> int:
        """Ids of the shard."""
        return sum(int(offsets[-1]) for offsets in self.batches)

    @staticmethod
    def _mapped(path: Path) -> pa.Buffer:
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()

    def _check(self, what: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise IntegrityError(
                f"{self._uri}: {what} {found}, expected {expected}", hint=_IMPORT_AGAIN
            )


def flat_columns(
    buffer: pa.Buffer, documents: Documents, field: str, spec: FieldSpec
) -> list[Mapping[str, Ragged]]:
    """Return the ids of a flat file per batch, as views of its bytes.

    Raises:
        ValueError: there are fewer than the documents have.
    """
    kind = np.dtype(spec.dtype).newbyteorder("<")
    ids = np.empty(0, kind)
    if documents.num_ids:
        ids = np.frombuffer(buffer, kind, documents.num_ids)
    columns: list[Mapping[str, Ragged]] = []
    start = 0
    for offsets in documents.batches:
        stop = start + int(offsets[-1])
        columns.append({field: Ragged(ids[start:stop], offsets)})
        start = stop
    return columns


def flat_batches(
    file: Readable,
    documents: Documents,
    fields: Sequence[str],
    field: str,
    spec: FieldSpec,
    first_row: int,
) -> Iterator[pa.RecordBatch]:
    """Yield a flat shard as record batches of ordinary shards, reading it once from its beginning.

    Args:
        file: The ids.
        documents: Where samples begin.
        fields: Which columns, in order: ``field``, ``key``, or both.
        field: What the ids are called.
        spec: Of the ids.
        first_row: Number of the first row in the data set, from which keys are made.

    Raises:
        ValueError: the file is too short.
    """
    kind = pa.from_numpy_dtype(np.dtype(spec.dtype))
    item = pa.field("item", kind, nullable=False)
    types = {"key": pa.string(), field: pa.list_(item)}
    schema = pa.schema([pa.field(name, types[name], nullable=False) for name in fields])
    row = first_row
    for offsets in documents.batches:
        num_ids, num = int(offsets[-1]), len(offsets) - 1
        data = _read(file, num_ids * np.dtype(spec.dtype).itemsize)
        ids = pa.Array.from_buffers(kind, num_ids, [None, pa.py_buffer(data)])
        columns = [
            pa.ListArray.from_arrays(pa.array(offsets), ids, type=types[field])
            if name == field
            else keys(np.arange(row, row + num))
            for name in fields
        ]
        yield pa.record_batch(columns, schema=schema)
        row += num


def keys(rows: np.ndarray) -> pa.Array:
    """Return the keys of rows: their numbers, since the foreign file names no sample."""
    return pa.array(np.char.zfill(rows.astype(str), 10).tolist(), pa.string())


def _read(file: Readable, size: int) -> bytes:
    data = file.read(size)
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            raise ValueError(f"ends {size - len(data):,} bytes before its last sample does")
        data += more
    return data


_IMPORT_AGAIN = "run the same `pipeline import` again: it writes it anew"
