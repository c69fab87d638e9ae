"""Draw a sample of documents that depends on their keys alone, and keep it on disk."""

from collections.abc import Iterator
from hashlib import blake2b
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa

from pipeline.errors import ContractError
from pipeline.spec import SampleSpec
from pipeline.storage import Storage

BATCH_BYTES = 8 << 20
_ALL = 1 << 64


class CorpusSample:
    """Those documents whose keys hash lowest, in the order in which they were added.

    Which they are does not depend on the order, nor on how the documents are cut into batches.
    One pass: a document is written to the file when it is among the lowest so far, and left out
    when it is read if others took its place later. Of N documents of which n fit, some
    n * (1 + ln(N / n)) are written. Memory is 16 bytes for each.

    Args:
        spec: How many.
        path: File to keep the texts in, on this machine's disk.

    Attributes:
        num_seen: Documents that were added.
        num_documents: Those of the sample, once the block has ended.
        num_bytes: Their UTF-8 bytes.
    """

    def __init__(self, spec: SampleSpec, path: str) -> None:
        self._spec, self._path = spec, path
        self._stop = _ALL if spec.fraction is None else round(spec.fraction * _ALL)
        self._written: list[np.ndarray] = []  # hashes of all that is in the file
        self._hashes: list[np.ndarray] = []  # of those that are in the sample so far
        self._sizes: list[np.ndarray] = []
        self._waiting: list[pa.Array] = []
        self._file = Storage().open_write(path)
        self.num_seen = 0
        self.num_documents = 0
        self.num_bytes = 0

    def __enter__(self) -> Self:
        opened: IO[bytes] = self._file.__enter__()
        schema = pa.schema([("text", pa.large_string())])
        self._writer = pa.ipc.new_file(opened, schema)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._tighten()
            self._flush()
            self._writer.close()
        self._file.__exit__(kind, error, trace)

    def add(self, keys: pa.Array, texts: pa.Array) -> None:
        """Add documents that may become part of the sample.

        Raises:
            ContractError: a text is null.
        """
        if texts.null_count:
            raise ContractError(
                f"{texts.null_count} of {len(texts)} texts are null, expected none",
                hint="an operator made them: have it give an empty string",
            )
        self.num_seen += len(keys)
        hashes = _hashes(keys, self._spec.seed)
        low = np.flatnonzero(self._are_in(hashes))
        if not len(low):
            return
        texts = texts.take(pa.array(low))
        sizes = np.diff(np.frombuffer(texts.buffers()[1], np.int64)[: len(texts) + 1])
        self._written.append(hashes[low])
        self._hashes.append(hashes[low])
        self._sizes.append(sizes)
        self.num_documents += len(low)
        self.num_bytes += int(sizes.sum())
        self._waiting.append(texts)
        if self._is_too_large(slack=1.25):
            self._tighten()
        if sum(part.nbytes for part in self._waiting) >= BATCH_BYTES:
            self._flush()

    def documents(self) -> Iterator[pa.Array]:
        """Yield the texts, as large_string arrays; to be called after the block."""
        first = 0
        with pa.memory_map(self._path) as file:
            reader = pa.ipc.open_file(file)
            hashes = np.concatenate([*self._written, np.zeros(0, np.uint64)])
            for i in range(reader.num_record_batches):
                texts = reader.get_batch(i).column(0)
                keep = self._are_in(hashes[first : first + len(texts)])
                first += len(texts)
                if keep.any():
                    yield texts if keep.all() else texts.filter(pa.array(keep))

    def _are_in(self, hashes: np.ndarray) -> np.ndarray:
        """Return bool [N]."""
        if self._stop == _ALL:
            return np.ones(len(hashes), bool)
        below: np.ndarray = hashes < np.uint64(self._stop)
        return below

    def _is_too_large(self, slack: float) -> bool:
        spec = self._spec
        if spec.max_documents is not None:
            return self.num_documents > slack * spec.max_documents
        return spec.max_bytes is not None and self.num_bytes > slack * spec.max_bytes

    def _tighten(self) -> None:
        """Leave out those with the highest hashes, until the others fit."""
        if not self._is_too_large(slack=1.0):
            return
        hashes, sizes = np.concatenate(self._hashes), np.concatenate(self._sizes)
        order = np.argsort(hashes)
        if self._spec.max_documents is not None:
            first_out = self._spec.max_documents
        else:
            num_bytes = np.cumsum(sizes[order])
            first_out = int(np.searchsorted(num_bytes, self._spec.max_bytes or 0, side="right"))
        # Documents of one hash stay or go together, so that their order is of no account.
        self._stop = int(hashes[order[first_out]])
        keep = self._are_in(hashes)
        self._hashes, self._sizes = [hashes[keep]], [sizes[keep]]
        self.num_documents = len(self._hashes[0])
        self.num_bytes = int(self._sizes[0].sum())

    def _flush(self) -> None:
        if self._waiting:
            texts = pa.concat_arrays(self._waiting)
            self._writer.write_batch(pa.record_batch([texts], names=["text"]))
            self._waiting = []


def _hashes(keys: pa.Array, seed: int) -> np.ndarray:
    """Return uint64 [N]."""
    start = blake2b(digest_size=8, key=seed.to_bytes(8, "little"))
    data = bytearray()
    for key in keys.to_pylist():
        each: Any = start.copy()
        each.update(key.encode())
        data += each.digest()
    return np.frombuffer(bytes(data), "<u8")
