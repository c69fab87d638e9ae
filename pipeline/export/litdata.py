"""litdata's chunks of tokens, for its ``TokensLoader``."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.errors import ContractError
from pipeline.export.base import Part, PartRecord, TokenFormat
from pipeline.export.files import ExportFiles

CHUNK_BYTES = 1 << 26
DTYPE_CODES = {"uint8": 11, "int32": 15, "int64": 17, "uint16": 20}

ONE_LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'
"""How torch writes down the structure of a sample that is one tensor."""

_LARGEST = (1 << 32) - 1  # offsets are uint32


class Litdata(TokenFormat):
    """Writes ``chunk-0-0.bin`` and so on (part, chunk in it), and ``index.json``.

    A chunk is, little-endian: the number of samples N (uint32), N + 1 offsets (uint32) from the
    file's beginning, and the ids of all samples one after the other. It ends before it outgrows
    64 MiB. The reader cuts blocks out of a chunk's ids and leaves out what is left at the end of
    each chunk. Ids have the smallest of uint8, uint16, int32 and int64 that holds them.
    """

    name = "litdata"
    reader = "litdata (StreamingDataset with TokensLoader)"
    part_bytes = 1 << 30

    def write(self, part: Part, files: ExportFiles) -> Mapping[str, Any]:
        """Write one or more chunks; samples and ids of each are in the notes."""
        kind = self.signed_dtype()
        chunk = _Chunk(kind)
        notes: list[list[int]] = []

        def flush() -> None:
            with files.open(f"chunk-{part.number}-{len(notes)}.bin") as file:
                notes.append(chunk.write(file))

        for batch in part.batches():
            ids, counts = self.ids(batch, kind)
            ends = np.cumsum(counts)
            row, done = 0, 0
            while row < len(counts):
                taken = chunk.fitting(ends[row:] - done)
                if not taken:
                    flush()
                    continue
                stop = int(ends[row + taken - 1])
                chunk.add(ids[done:stop], counts[row : row + taken])
                row, done = row + taken, stop
        if chunk.num_samples:
            flush()
        return {"chunks": notes, "dtype": kind.name}

    def finish(self, records: Sequence[PartRecord], files: ExportFiles) -> None:
        """Write ``index.json``."""
        chunks = [
            {
                "chunk_bytes": file.num_bytes,
                "chunk_size": num_samples,
                "dim": num_ids,
                "filename": file.path,
            }
            for record in records
            for file, (num_samples, num_ids) in zip(
                record.files, record.notes["chunks"], strict=True
            )
        ]
        config = {
            "chunk_bytes": CHUNK_BYTES,
            "chunk_size": None,
            "compression": None,
            "data_format": [f"no_header_tensor:{DTYPE_CODES[self.signed_dtype().name]}"],
            "data_spec": ONE_LEAF,
            "encryption": None,
            "item_loader": "TokensLoader",
        }
        index = {"chunks": chunks, "config": config}
        files.write("index.json", json.dumps(index, sort_keys=True).encode())


class _Chunk:
    """What goes to the next file."""

    def __init__(self, kind: np.dtype[Any]) -> None:
        self._kind = kind
        self._clear()

    def _clear(self) -> None:
        self._ids: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self.num_samples, self._num_ids = 0, 0

    def fitting(self, ends: np.ndarray) -> int:
        """Return how many of the next samples still fit in, one at least when it is empty.

        Args:
            ends: int64 [N], ids up to the end of each of them.
        """
        per_sample = 4 * np.arange(1, len(ends) + 1)
        sizes = self._size() + ends * self._kind.itemsize + per_sample
        fitting = int(np.searchsorted(sizes, CHUNK_BYTES, side="right"))
        return fitting if fitting or self.num_samples else 1

    def add(self, ids: np.ndarray, counts: np.ndarray) -> None:
        self._ids.append(ids)
        self._counts.append(counts)
        self.num_samples += len(counts)
        self._num_ids += len(ids)

    def write(self, file: Any) -> list[int]:
        """Write it, and return the numbers of samples and ids; it is empty then."""
        counts = np.concatenate(self._counts)
        first = 4 + 4 * (self.num_samples + 1)
        offsets = first + np.concatenate(([0], np.cumsum(counts))) * self._kind.itemsize
        if offsets[-1] > _LARGEST:
            raise ContractError(
                f"a row of {int(counts.max()):,} ids: a chunk of litdata holds {_LARGEST:,} bytes",
                hint="cut long rows in the job",
            )
        file.write(np.array([self.num_samples], np.uint32))
        file.write(offsets.astype(np.uint32))
        for ids in self._ids:
            file.write(ids)
        numbers = [self.num_samples, self._num_ids]
        self._clear()
        return numbers

    def _size(self) -> int:
        return 4 + 4 * (self.num_samples + 1) + self._num_ids * self._kind.itemsize
