"""Text columns seen as bytes, without a Python object per document."""

import numpy as np
import pyarrow as pa

from operators.base import Ragged
from operators.errors import ContractError


def check_no_nulls(column: pa.Array, where: str) -> None:
    """Check that every document is there.

    Raises:
        ContractError: some are null; sources quarantine samples that lack a field.
    """
    if column.null_count:
        raise ContractError(
            f"{where}: {column.null_count} of {len(column)} texts are null, expected none",
            hint="an earlier operator made them: have it raise RowErrors, or give an empty string",
        )


def utf8_bytes(column: pa.Array) -> Ragged:
    """Return the UTF-8 bytes of N texts without nulls: values uint8 [M], a view of the column.

    Args:
        column: large_string or large_binary [N]; a slice is read from where it starts.
    """
    _, offsets_buffer, data = column.buffers()
    if len(column) == 0 or data is None:
        return Ragged(np.empty(0, np.uint8), np.zeros(len(column) + 1, np.int64))
    # A slice shares its parent's buffers and only says at which row it starts.
    offsets = np.frombuffer(offsets_buffer, np.int64)[column.offset :][: len(column) + 1]
    values = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    return Ragged(values, offsets - offsets[0])


def text_of_bytes(rows: Ragged) -> pa.Array:
    """Return rows of UTF-8 bytes (uint8) as large_string [N]; the inverse of ``utf8_bytes``.

    Bytes that are no UTF-8, such as a character that was cut, become U+FFFD.
    """
    buffers = [None, pa.py_buffer(rows.offsets.astype(np.int64)), pa.py_buffer(rows.values)]
    column = pa.Array.from_buffers(pa.large_binary(), len(rows), buffers)
    try:
        return column.cast(pa.large_string())
    except pa.ArrowInvalid:
        texts = [document.decode("utf-8", errors="replace") for document in column.to_pylist()]
        return pa.array(texts, pa.large_string())
