"""MDS, the shards of mosaicml-streaming."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import FieldSpec
from pipeline.errors import ContractError
from pipeline.export.base import ExportFormat, Part, PartRecord
from pipeline.export.files import ExportFiles
from pipeline.export.rows import row_bytes
from pipeline.manifest import Manifest

VERSION = 2
SHARD_BYTES = 1 << 26
HASH = "sha256"

_LARGEST = (1 << 32) - 1  # offsets are uint32


class Mds(ExportFormat):
    """Writes ``shard.00000.00000.mds`` and so on, and ``index.json``.

    A shard is, little-endian: the number of samples N (uint32), N + 1 offsets (uint32) from the
    file's beginning, the columns' description as JSON, and the samples. A sample is the sizes
    (uint32) of its values of varying size, then all values, in the columns' alphabetical order.
    Fields of fixed shape are ``ndarray:<dtype>:<shape>``, of varying length ``ndarray:<dtype>``,
    numbers by themselves ``<dtype>``; bool becomes uint8. A shard ends before it outgrows 64 MiB.
    The index holds every shard's SHA-256, which the reader checks when asked to.
    """

    name = "mds"
    reader = "mosaicml-streaming (StreamingDataset)"
    part_bytes = 1 << 30

    def __init__(self, manifest: Manifest, fields: Mapping[str, FieldSpec]) -> None:
        super().__init__(manifest, fields)
        self._names = sorted(fields)
        self._encodings = [_encoding(fields[name]) for name in self._names]
        self._sizes = [_size(fields[name]) for name in self._names]

    def write(self, part: Part, files: ExportFiles) -> Mapping[str, Any]:
        """Write one or more shards; how many samples each has is in the notes."""
        head = json.dumps(self._description(), sort_keys=True).encode()
        counts: list[int] = []
        samples: list[bytes] = []
        filled = len(head) + 8

        def flush() -> None:
            path = f"shard.{part.number:05d}.{len(counts):05d}.mds"
            with files.open(path) as file:
                sizes = np.array([len(sample) for sample in samples], np.int64)
                first = 4 + 4 * (len(samples) + 1) + len(head)
                offsets = first + np.concatenate(([0], np.cumsum(sizes)))
                if offsets[-1] > _LARGEST:
                    raise ContractError(
                        f"row of {int(sizes.max()):,} bytes: an MDS shard holds {_LARGEST:,}",
                        hint="leave a field out with --field",
                    )
                file.write(struct.pack("<I", len(samples)))
                file.write(offsets.astype(np.uint32))
                file.write(head)
                file.write(b"".join(samples))
            counts.append(len(samples))
            samples.clear()

        for batch in part.batches():
            for sample in self._samples(batch):
                if samples and filled + len(sample) + 4 > SHARD_BYTES:
                    flush()
                    filled = len(head) + 8
                samples.append(sample)
                filled += len(sample) + 4
        if samples:
            flush()
        return {"samples": counts}

    def finish(self, records: Sequence[PartRecord], files: ExportFiles) -> None:
        """Write ``index.json``."""
        shards = [
            {
                **self._description(),
                "raw_data": {
                    "basename": file.path,
                    "bytes": file.num_bytes,
                    "hashes": {HASH: file.sha256},
                },
                "samples": samples,
                "zip_data": None,
            }
            for record in records
            for file, samples in zip(record.files, record.notes["samples"], strict=True)
        ]
        index = {"version": VERSION, "shards": shards}
        files.write("index.json", json.dumps(index, sort_keys=True).encode())

    def _description(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "format": "mds",
            "compression": None,
            "hashes": [HASH],
            "size_limit": SHARD_BYTES,
            "column_names": self._names,
            "column_encodings": self._encodings,
            "column_sizes": self._sizes,
        }

    def _samples(self, batch: pa.RecordBatch) -> Iterator[bytes]:
        columns = []
        for name, size in zip(self._names, self._sizes, strict=True):
            spec = self.fields[name]
            values, counts = row_bytes(batch, name, spec)
            heads = [b""] * len(values)
            if spec.is_ragged:
                shapes = {count: _shape_head((count, *spec.shape[1:])) for count in set(counts)}
                heads = [shapes[count] for count in counts]
            columns.append((size is None, heads, values))
        for row in range(batch.num_rows):
            sizes, body = [], []
            for varies, heads, values in columns:
                if varies:
                    sizes.append(len(heads[row]) + len(values[row]))
                body += [heads[row], values[row]]
            yield b"".join([struct.pack(f"<{len(sizes)}I", *sizes), *body])


def _encoding(spec: FieldSpec) -> str:
    if not spec.is_numeric:
        return "bytes" if spec.dtype == "binary" else "str"
    dtype = "uint8" if spec.dtype == "bool" else spec.dtype
    if not spec.shape:
        return dtype
    if spec.is_ragged:
        return f"ndarray:{dtype}"
    return f"ndarray:{dtype}:{','.join(map(str, spec.shape))}"


def _size(spec: FieldSpec) -> int | None:
    """Return the bytes of every value, or None when they vary."""
    if not spec.is_numeric or spec.is_ragged:
        return None
    return int(np.prod([length or 0 for length in spec.shape], dtype=np.int64)) * int(
        np.dtype(spec.dtype).itemsize
    )


def _shape_head(shape: tuple[int | None, ...]) -> bytes:
    """Return how an array of varying shape begins: dimensions, and their lengths."""
    lengths = [length or 0 for length in shape]
    code = next(i for i in range(4) if max(lengths) < 1 << 8 * 2**i)
    return bytes([len(lengths) << 2 | code]) + np.array(lengths, f"<u{2**code}").tobytes()
