"""Reads shards from front to back, each checked against its hash before it is trusted."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.errors import IntegrityError
from pipeline.flat_shards import Documents, flat_batches, is_flat
from pipeline.manifest import DataSet

_CHUNK_BYTES = 8 << 20
_HINT = "`pipeline verify` tells what is damaged, and with --repair mends it"


class ShardRange:
    """The rows of consecutive shards; a ``Part``.

    A shard on this machine's disk is mapped. A remote one is copied to the temporary folder, and
    removed from it before the next is read. Compressed record batches are decoded one at a time.

    Args:
        data_set: The data set.
        fields: The columns, in order.
        shards: Which rows of the index.
        number: The part's number.
        count: How many parts there are.
        first_row: Number of its first row in the data set.
    """

    def __init__(
        self,
        data_set: DataSet,
        fields: Sequence[str],
        shards: range,
        *,
        number: int,
        count: int,
        first_row: int,
    ) -> None:
        self._data_set, self._fields, self._shards = data_set, list(fields), shards
        self.number, self.count, self.first_row = number, count, first_row

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield record batches.

        Raises:
            NotFoundError: a shard is not there.
            IntegrityError: a shard is not what manifest and index say.
        """
        rows = self._data_set.shards.slice(self._shards.start, len(self._shards))
        first_row = self.first_row
        names = ["path", "partition", "sha256", "num_samples"]
        for number, shard in zip(self._shards, rows.select(names).to_pylist(), strict=True):
            uri = self._data_set.shard_uri(shard["path"])
            expected = self._data_set.manifest.fingerprint_of(shard["partition"])
            with _checked(self._data_set, uri, shard["sha256"]) as path, _our_errors(uri):
                if is_flat(self._data_set, number):
                    yield from self._read_flat(path, number, first_row)
                else:
                    yield from self._read(path, expected, shard["num_samples"])
            first_row += shard["num_samples"]

    def _read_flat(self, path: Path, shard: int, first_row: int) -> Iterator[pa.RecordBatch]:
        documents = Documents(self._data_set, shard)
        ((field, spec),) = self._data_set.manifest.fields.items()
        with path.open("rb") as file:
            yield from flat_batches(file, documents, self._fields, field, spec, first_row)

    def _read(self, path: Path, fingerprint: str, num_samples: int) -> Iterator[pa.RecordBatch]:
        options = pa.ipc.IpcReadOptions(use_threads=False)
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file, options=options)
            positions = [reader.schema.get_field_index(name) for name in self._fields]
            found = json.loads(reader.schema.metadata[b"tokenmill"])["fingerprint"]
            if found != fingerprint:
                raise ValueError(
                    f"fingerprint {found[:12]}, the manifest says {fingerprint[:12]}: the folder "
                    "mixes two data sets"
                )
            seen = 0
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                seen += batch.num_rows
                yield self._widened(batch.select(positions))
        if seen != num_samples:
            raise ValueError(f"{seen:,} samples, the index says {num_samples:,}")

    def _widened(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a record batch with float32 where bits of bfloat16 are stored."""
        fields = self._data_set.manifest.fields
        for place, name in enumerate(self._fields):
            if name in fields and fields[name].dtype == "bfloat16":
                column = _wide(batch.column(place))
                batch = batch.set_column(place, pa.field(name, column.type, False), column)
        return batch


def _wide(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        values = _wide(array.flatten())
        return pa.FixedSizeListArray.from_arrays(
            values, type=pa.list_(kind.value_field.with_type(values.type), kind.list_size)
        )
    if pa.types.is_list(kind):
        values = _wide(array.values)
        whole = pa.list_(kind.value_field.with_type(values.type))
        return pa.ListArray.from_arrays(array.offsets, values, type=whole)
    return pa.array(array.to_numpy().view("bfloat16").astype(np.float32))


@contextmanager
def _checked(data_set: DataSet, uri: str, sha256: str) -> Iterator[Path]:
    """Give a file on this machine's disk that has the bytes of a shard."""
    local = data_set.storage.local_path(uri)
    with ExitStack() as stack:
        source = stack.enter_context(data_set.storage.open_read(uri))
        target: BinaryIO | None = None
        if local is None:
            local = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "shard.arrow"
            target = stack.enter_context(local.open("wb"))
        digest = hashlib.sha256()
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            if target is not None:
                target.write(chunk)
        if target is not None:
            target.flush()
        found = digest.hexdigest()
        if found != sha256:
            raise IntegrityError(
                f"{uri}: sha256 {found[:12]}, the index says {sha256[:12]}", hint=_HINT
            )
        yield local


@contextmanager
def _our_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, KeyError) as error:
        raise IntegrityError(f"{uri}: not a shard ({error})", hint=_HINT) from None
    except ValueError as error:
        raise IntegrityError(f"{uri}: {error}", hint=_HINT) from None
