"""Megatron's indexed data sets: a ``.bin`` of ids and an ``.idx`` of where each document lies."""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.export.base import Part, TokenFormat
from pipeline.export.files import ExportFiles

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES = {"uint8": 1, "int32": 4, "int64": 5, "uint16": 8}

_INDEX_CHUNK = 1 << 20  # documents whose places are computed at a time


class Megatron(TokenFormat):
    """Writes ``<field>.bin`` and ``<field>.idx``, numbered when there are several pairs.

    Every sample is a document of one sequence, an empty one included, so document i is row i.
    Ids have the smallest of the format's types that holds the vocabulary: uint8, uint16, int32
    or int64. The index is, little-endian: 9 bytes of magic, version (uint64),
    type code (uint8), number of sequences and number of document bounds (uint64 each), the
    sequences' lengths (int32), their places in the .bin in bytes (int64), and the document bounds
    (int64), which are 0 to N here.
    """

    name = "megatron"
    reader = "Megatron-LM, NeMo (IndexedDataset)"
    part_bytes = 16 << 30

    def write(self, part: Part, files: ExportFiles) -> Mapping[str, Any]:
        """Write one pair; its prefix is in the notes."""
        kind = self.signed_dtype()
        prefix = self.field if part.count == 1 else f"{self.field}_{part.number:05d}"
        lengths = [np.empty(0, np.int32)]
        with files.open(f"{prefix}.bin") as file:
            for batch in part.batches():
                ids, counts = self.ids(batch, kind)
                file.write(ids)
                lengths.append(counts.astype(np.int32))
        lengths_N = np.concatenate(lengths)
        with files.open(f"{prefix}.idx") as file:
            self._write_index(file, lengths_N, kind)
        return {"prefix": prefix, "dtype": kind.name}

    @staticmethod
    def _write_index(file: Any, lengths_N: np.ndarray, kind: np.dtype[Any]) -> None:
        num = len(lengths_N)
        file.write(MAGIC + struct.pack("<QBQQ", VERSION, DTYPE_CODES[kind.name], num, num + 1))
        file.write(lengths_N)
        place = 0
        for start in range(0, num, _INDEX_CHUNK):
            sizes = lengths_N[start : start + _INDEX_CHUNK].astype(np.int64) * kind.itemsize
            ends = np.cumsum(sizes) + place
            file.write(ends - sizes)
            place = int(ends[-1])
        for start in range(0, num + 1, _INDEX_CHUNK):
            file.write(np.arange(start, min(start + _INDEX_CHUNK, num + 1), dtype=np.int64))
