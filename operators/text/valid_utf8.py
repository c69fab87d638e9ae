"""Find texts that are no UTF-8: what was cast to text without a look may hold any bytes."""

import numpy as np
import pyarrow as pa

from operators.errors import SampleError
from operators.text.text_column import utf8_bytes


def undecodable(column: pa.Array, where: str) -> dict[int, SampleError]:
    """Return what is wrong with the rows of a column that are no UTF-8.

    Args:
        column: large_string [N] without nulls.
        where: The operator's name, for the messages.
    """
    try:
        column.validate(full=True)
        return {}
    except pa.ArrowInvalid:
        documents = utf8_bytes(column)
    errors = {}
    for row in range(len(documents)):
        try:
            documents[row].tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            errors[row] = SampleError(f"{where}: the text is no UTF-8: {error}")
    return errors


def other_rows(num_rows: int, errors: dict[int, SampleError]) -> np.ndarray:
    """Return int64 [K], the rows without errors."""
    return np.setdiff1d(np.arange(num_rows), list(errors))
