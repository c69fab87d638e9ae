"""Row operations on columns of any kind: count, select, join, measure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import Batch, Column, FieldSpec, Ragged
from operators.errors import ContractError


def num_rows(column: Column) -> int:
    """Return the number of rows of a column."""
    return len(column)


def take(column: Column, rows: np.ndarray) -> Column:
    """Return the given rows of a column, in the given order.

    Args:
        column: Any column.
        rows: int64 [K], positions; repeats are allowed.
    """
    if isinstance(column, list):
        return [column[i] for i in rows]
    if isinstance(column, pa.Array):
        return column.take(pa.array(rows))
    if isinstance(column, Ragged):
        return _take_ragged(column, rows)
    return column[rows]


def take_batch(batch: Batch, rows: np.ndarray) -> dict[str, Column]:
    """Return the given rows of every column."""
    return {name: take(column, rows) for name, column in batch.items()}


def concat(columns: Sequence[Column]) -> Column:
    """Join columns of one kind end to end."""
    first = columns[0]
    if len(columns) == 1:
        return first
    if isinstance(first, list):
        return [item for column in columns for item in column]
    if isinstance(first, pa.Array):
        return pa.concat_arrays(columns)
    if isinstance(first, Ragged):
        bases = np.cumsum([0, *(column.offsets[-1] for column in columns)])
        tails = [column.offsets[1:] + base for column, base in zip(columns, bases, strict=False)]
        return Ragged(
            np.concatenate([column.values for column in columns]), np.concatenate([[0], *tails])
        )
    if isinstance(first, np.ndarray):
        return np.concatenate(columns)
    import torch

    return torch.cat(list(columns))


def num_bytes(column: Column) -> int:
    """Return the bytes a column holds (decoded pixels for images)."""
    if isinstance(column, list):
        return sum(image.width * image.height * 3 for image in column)
    return int(column.nbytes)


def num_values(column: Column) -> int:
    """Return the number of scalars of a numeric column: its tokens, for a token field."""
    if isinstance(column, Ragged):
        return int(column.values.size)
    return int(column.numel() if hasattr(column, "numel") else column.size)


def as_ragged(column: np.ndarray | Ragged) -> Ragged:
    """Return a dense [N, T, ...] column as rows of equal length; a ragged one as it is."""
    if isinstance(column, Ragged):
        return column
    n, length = column.shape[:2]
    values = column.reshape(n * length, *column.shape[2:])
    return Ragged(values, np.arange(n + 1, dtype=np.int64) * length)


def to_torch(values: np.ndarray) -> Any:
    """Return a tensor that shares the values' memory; torch has no bridge for bfloat16."""
    import torch

    if values.dtype.kind == "V":  # no other dtype of a field has this kind
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def to_numpy(tensor: Any) -> np.ndarray:
    """Return a tensor of any device as numpy, the other way round."""
    import torch

    values = tensor.detach().cpu()
    if values.dtype == torch.bfloat16:
        values = values.contiguous().view(torch.int16)
    found: np.ndarray = values.numpy()
    return found.view("bfloat16") if tensor.dtype == torch.bfloat16 else found


def check_column(name: str, column: Column, spec: FieldSpec, rows: int, where: str) -> None:
    """Check that a column is what its spec says.

    Raises:
        ContractError: kind, dtype, shape or row count differ; says which.
    """
    found: str
    if spec.dtype == "pillow":
        ok, found = isinstance(column, list), type(column).__name__
    elif spec.dtype in ("string", "binary"):
        want = pa.large_string() if spec.dtype == "string" else pa.large_binary()
        ok = isinstance(column, pa.Array) and column.type == want
        found = str(getattr(column, "type", type(column).__name__))
    elif spec.is_ragged:
        ok = isinstance(column, Ragged) and column.values.dtype == np.dtype(spec.dtype)
        ok = ok and tuple(column.values.shape[1:]) == tuple(spec.shape[1:])
        found = f"{column.values.dtype}{[None, *column.values.shape[1:]]}" if ok else _kind(column)
    else:
        shape = tuple(getattr(column, "shape", ()))
        dtype = str(getattr(column, "dtype", "")).removeprefix("torch.")
        ok = dtype == spec.dtype and shape[1:] == tuple(spec.shape)
        found = f"{dtype}{list(shape[1:])}" if dtype else type(column).__name__
    if not ok:
        raise ContractError(f"{where}: field {name!r} is {found}, expected {spec}")
    if num_rows(column) != rows:
        raise ContractError(
            f"{where}: field {name!r} has {num_rows(column)} rows for a batch of {rows}",
            hint="an operator returns one row for every row, in order; use a Filter to drop rows",
        )


def _take_ragged(column: Ragged, rows: np.ndarray) -> Ragged:
    lengths = column.lengths[rows]
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    if len(rows) and len(breaks) * 8 <= len(rows):  # long runs: copy each at once
        firsts, lasts = rows[np.append(0, breaks)], rows[np.append(breaks - 1, -1)]
        spans = zip(column.offsets[firsts], column.offsets[lasts + 1], strict=True)
        return Ragged(np.concatenate([column.values[a:b] for a, b in spans]), offsets)
    starts = np.repeat(column.offsets[:-1][rows] - offsets[:-1], lengths)
    return Ragged(column.values[starts + np.arange(offsets[-1])], offsets)


def _kind(column: Column) -> str:
    if isinstance(column, Ragged):
        return f"{column.values.dtype}{[None, *column.values.shape[1:]]}"
    if hasattr(column, "dtype"):
        return f"{column.dtype}{list(column.shape[1:])}"
    return type(column).__name__
