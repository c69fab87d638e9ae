"""Work on every distinct piece of text once: cut documents, encode what is new, join the rest."""

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import Batch, Operator, Ragged
from operators.columns import take
from operators.errors import RowErrors
from operators.text.text_column import check_no_nulls, utf8_bytes
from operators.text.valid_utf8 import other_rows, undecodable

MAX_REMEMBERED_CHUNKS = 131_072
MAX_REMEMBERED_CHARACTERS = 64
"""Longer chunks are rare and seldom come again; with both bounds the memory stays below 100 MB."""


_TYPECODES = {"uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q"}


def check_texts(operator: Operator[Any], batch: Batch) -> None:
    """Check that every ``text`` is there and is UTF-8: a column cast from bytes may hold anything.

    Raises:
        ContractError: some are null.
        RowErrors: some are no UTF-8; the others are done.
    """
    column, name = batch["text"], operator.config.name
    check_no_nulls(column, name)
    errors = undecodable(column, name)
    if errors:
        good = other_rows(len(column), errors)
        raise RowErrors(errors, operator({"text": take(column, good)}))


def cut_after(documents: pa.Array, separators: bytes) -> tuple[pa.Array, np.ndarray]:
    """Cut documents after each separator; nothing is lost and nothing copied.

    Args:
        documents: large_string [N] without nulls.
        separators: ASCII characters; each ends a chunk, of which it is the last character.

    Returns:
        chunks: large_string [C], of all documents one after another, none empty.
        firsts: int64 [N + 1]; document i is ``chunks[firsts[i]:firsts[i + 1]]``.
    """
    rows = utf8_bytes(documents)
    is_separator = np.zeros(256, bool)
    is_separator[list(separators)] = True
    is_cut = np.zeros(len(rows.values) + 1, bool)
    is_cut[1:] = is_separator[rows.values]
    is_cut[rows.offsets] = True
    cuts = np.flatnonzero(is_cut)
    buffers = [None, pa.py_buffer(cuts), pa.py_buffer(rows.values)]
    chunks = pa.Array.from_buffers(pa.large_string(), len(cuts) - 1, buffers)
    return chunks, np.searchsorted(cuts, rows.offsets)


class ChunkEncoder:
    """Encode documents chunk by chunk, where a chunk's result depends on the chunk alone.

    Each distinct chunk of a batch is encoded once and the short ones are remembered, so that the
    cost per word is that of Arrow's hashing and copying. Several threads may call it.

    Args:
        encode: What one chunk becomes, as bytes.
        separators: See ``cut_after``.
    """

    def __init__(self, encode: Callable[[str], bytes], separators: bytes) -> None:
        self._encode = encode
        self._separators = separators
        self._remembered: dict[str, bytes] = {}

    def __call__(self, documents: pa.Array) -> Ragged:
        """Return uint8 rows: the results of each document's chunks, joined.

        Args:
            documents: large_string [N] of valid UTF-8, without nulls.
        """
        chunks, firsts = cut_after(documents, self._separators)
        encoded = chunks.dictionary_encode()
        results = [self._result(chunk) for chunk in encoded.dictionary.to_pylist()]
        joined = utf8_bytes(pa.array(results, pa.large_binary()).take(encoded.indices))
        return Ragged(joined.values, joined.offsets[firsts])

    def _result(self, chunk: str) -> bytes:
        found = self._remembered.get(chunk)
        if found is None:
            found = self._encode(chunk)
            if len(self._remembered) >= MAX_REMEMBERED_CHUNKS:
                self._remembered = {}  # not cleared in place: other threads may be reading it
            if len(chunk) <= MAX_REMEMBERED_CHARACTERS:
                self._remembered[chunk] = found
        return found


def bytes_of_ids(ids: Sequence[int], dtype: str) -> bytes:
    """Return ids as the bytes of their unsigned type; for a few ids ten times as fast as numpy."""
    return array(_TYPECODES[dtype], ids).tobytes()


def ids_of_bytes(rows: Ragged, dtype: str, width: int = 1) -> Ragged:
    """Return rows of bytes as ids: [T], or [T, width] where that is above 1."""
    values = rows.values.view(dtype)
    shaped = values if width == 1 else values.reshape(-1, width)
    return Ragged(shaped, rows.offsets // (values.itemsize * width))
