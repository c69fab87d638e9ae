"""Put an id before and after every document."""

import numpy as np

from operators.base import Ragged


def add_ends(rows: Ragged, bos: int | None, eos: int | None, dtype: str) -> Ragged:
    """Return every row with ``bos`` before and ``eos`` after it, where they are not None.

    Args:
        rows: Ids [M] of N rows; an empty row gets its ends too.
        bos: Id of the first position of each row.
        eos: Id of the last position of each row.
        dtype: Of the result; it must hold all ids.
    """
    num_ends = (bos is not None) + (eos is not None)
    if num_ends == 0:
        return Ragged(rows.values.astype(dtype, copy=False), rows.offsets)
    offsets = rows.offsets + num_ends * np.arange(len(rows) + 1, dtype=np.int64)
    values = np.empty(offsets[-1], dtype)
    # A mask, not positions: several times faster, reading 1 byte for each id instead of 8.
    is_document = np.ones(len(values), bool)
    for end, positions in ((bos, offsets[:-1]), (eos, offsets[1:] - 1)):
        if end is not None:
            values[positions] = end
            is_document[positions] = False
    values[is_document] = rows.values
    return Ragged(values, offsets)
