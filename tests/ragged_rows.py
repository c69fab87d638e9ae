"""Rows of numbers as tests write them, and back."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from operators.base import Ragged

Rows = list[list[int]]


def ragged(rows: Sequence[Sequence[int]], dtype: str = "uint16") -> Ragged:
    """Return rows as a column."""
    offsets = np.cumsum([0, *map(len, rows)])
    return Ragged(np.array([i for row in rows for i in row], dtype), offsets)


def rows_of(column: Ragged) -> Rows:
    """Return a column as rows."""
    return [column[i].tolist() for i in range(len(column))]


def texts(*documents: str) -> pa.Array:
    """Return documents as a column."""
    return pa.array(documents, pa.large_string())
