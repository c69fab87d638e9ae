"""Compare a backend with the reference while a run goes on."""

import numpy as np
import pyarrow as pa

from operators.columns import take
from operators.errors import DecisionError
from operators.text.backends.base import Backend, Reference
from operators.text.backends.choose import first_difference
from operators.text.text_column import utf8_bytes

FIRST_DOCUMENTS = 16
COMPARED_BYTES = 1 << 10
"""How many documents of a partition are compared at its beginning, and how much of any."""

EVERY_BYTES = 16 << 20
"""One more document is compared in about so much text."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class SpotCheck:
    """Compares documents; which ones depends on the documents alone, so that all runs do the same.

    The beginning of a document is a text of its own, so that is what both encode.

    Args:
        backend: What is used.
        reference: What it must be equal to.
        where: The tokenizer's name, for errors.
    """

    def __init__(self, backend: Backend, reference: Reference, where: str) -> None:
        self._backend, self._reference, self._where = backend, reference, where

    def compare(self, texts: pa.Array) -> None:
        """Compare the beginnings of documents.

        Raises:
            DecisionError: the ids differ.
        """
        if not len(texts):
            return
        documents = utf8_bytes(texts)
        # A character that is cut is left out, and so is what is no UTF-8.
        starts = [
            documents[row][:COMPARED_BYTES].tobytes().decode("utf-8", "ignore")
            for row in range(len(documents))
        ]
        difference = first_difference(
            self._backend, self._reference, pa.array(starts, pa.large_string())
        )
        if difference is not None:
            raise DecisionError(
                f"text_tokenizer: {self._backend.library} gives other ids for {self._where!r} than "
                f"its reference, {self._reference.library}, on documents of this corpus",
                found=difference,
                field="backend",
                value="reference",
            )

    def drawn(self, texts: pa.Array) -> pa.Array:
        """Return one document in every 16 MiB of text: the longer, the likelier.

        They are drawn by a hash of the document's length and eight of its bytes.
        """
        documents = utf8_bytes(texts)
        if not len(documents.values):
            return texts[:0]
        lengths = documents.lengths
        mixed = lengths.astype(np.uint64)
        last = len(documents.values) - 1
        for eighths in range(8):  # an empty document reads a neighbour's, and is never drawn
            at = documents.offsets[:-1] + ((lengths - 1) * eighths >> 3)
            mixed = (mixed ^ documents.values[at.clip(0, last)]) * _FACTOR
            mixed ^= mixed >> np.uint64(29)
        draw = mixed & np.uint64(EVERY_BYTES - 1)
        return take(texts, np.flatnonzero(draw < lengths.astype(np.uint64)))
