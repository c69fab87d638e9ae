"""Compare a backend with the reference while a run goes on."""

import threading

import pyarrow as pa

from operators.errors import ContractError
from operators.text.backends.base import Backend, Reference
from operators.text.backends.choose import first_difference
from operators.text.text_column import utf8_bytes

FIRST_DOCUMENTS = 32
FIRST_BYTES = 1 << 11
"""How many documents are compared when a worker begins, and how much of each."""

LATER_BYTES = 1 << 10
EVERY_BYTES = 16 << 20
"""How much of a document is compared later, and after how much text again: 1 % of the time."""


class SpotCheck:
    """Looks at the first documents of a worker, and at one in every 16 MiB from then on.

    The beginning of a document is a text of its own, so that is what both encode.

    Args:
        backend: What is used.
        reference: What it must be equal to.
        where: The tokenizer's name, for errors.
    """

    def __init__(self, backend: Backend, reference: Reference, where: str) -> None:
        self._backend, self._reference, self._where = backend, reference, where
        self._lock = threading.Lock()
        self._left = 0  # bytes until the next look
        self._is_first = True

    def look(self, texts: pa.Array) -> None:
        """Compare some of the documents that are about to be encoded.

        Raises:
            ContractError: the ids differ.
        """
        documents = utf8_bytes(texts)
        with self._lock:
            is_due, is_first = self._left <= 0, self._is_first
            self._left = EVERY_BYTES if is_due else self._left - len(documents.values)
            self._is_first = self._is_first and not is_due
        if not is_due:
            return
        rows, size = (
            (range(min(FIRST_DOCUMENTS, len(documents))), FIRST_BYTES)
            if is_first
            else (range(min(1, len(documents))), LATER_BYTES)
        )
        # A character that is cut is left out, and so is what is no UTF-8.
        starts = [documents[row][:size].tobytes().decode("utf-8", "ignore") for row in rows]
        difference = first_difference(
            self._backend, self._reference, pa.array(starts, pa.large_string())
        )
        if difference is not None:
            raise ContractError(
                f"text_tokenizer: {self._backend.library} gives other ids for {self._where!r} than "
                f"its reference: {difference}",
                hint="set backend: reference and start again with --fresh, so that all ids are "
                "those of one library",
            )
