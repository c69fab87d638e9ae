"""The operator contract as a test helper: call it from the one test a new operator needs."""

import copy
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import Batch, Column, Operator, Ragged
from operators.columns import check_column, num_rows, take_batch, to_numpy, to_torch


def assert_operator_contract(op: Operator[Any], batch: Batch, *, rows_alone: int = 4) -> Batch:
    """Check what the engine relies on, with one batch, and return the operator's outputs.

    Exactly ``outputs`` come back, of the declared dtypes and shapes, one row per row, ids below the
    vocabulary; the inputs are left alone; the same batch gives the same result twice; and a row
    gives the same result alone, in reverse order and in company.

    Args:
        op: The operator; ``setup`` is called here, on its own device.
        batch: A good batch for it, numpy and pyarrow columns (a device operator gets tensors).
        rows_alone: How many rows to repeat alone.
    """
    op.setup(op.device)
    name = op.config.name
    size = num_rows(next(iter(batch.values())))
    assert set(batch) == set(op.inputs), f"{name}: give exactly {sorted(op.inputs)}"
    before = copy.deepcopy(dict(batch))

    out = _call(op, batch)
    assert set(out) == set(op.outputs), f"{name}: adds {sorted(out)}, not {sorted(op.outputs)}"
    for field, spec in op.outputs.items():
        check_column(field, out[field], spec, size, name)
        if spec.vocab_size is not None and _flat(out[field]).size:
            assert int(_flat(out[field]).max()) < spec.vocab_size, f"{name}: id out of range"
    for field in batch:
        assert _equal(before[field], batch[field]), f"{name}: changes its input {field!r}"

    _assert_same(name, "a second call", out, _call(op, batch))
    rows = np.arange(size)[::-1].copy()
    _assert_same(name, "reverse order", take_batch(out, rows), _call(op, take_batch(batch, rows)))
    for row in np.linspace(0, size - 1, min(rows_alone, size), dtype=np.int64):
        alone = np.array([row])
        _assert_same(
            name, f"row {row} alone", take_batch(out, alone), _call(op, take_batch(batch, alone))
        )
    return out


def _call(op: Operator[Any], batch: Batch) -> Batch:
    if op.stage == "cpu":
        return op(batch)
    import torch

    tensors = {
        name: to_torch(column).to(op.device) if isinstance(column, np.ndarray) else column
        for name, column in batch.items()
    }
    out = op(tensors)
    return {
        name: to_numpy(column) if isinstance(column, torch.Tensor) else column
        for name, column in out.items()
    }


def _assert_same(name: str, what: str, want: Batch, got: Batch) -> None:
    for field in want:
        same = _equal(want[field], got[field])
        assert same, f"{name}: {what} gives another {field!r}"


def _flat(column: Column) -> np.ndarray:
    values: np.ndarray = column.values if isinstance(column, Ragged) else column
    return values


def _equal(a: Column, b: Column) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(
            x.size == y.size and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True)
        )
    if isinstance(a, pa.Array):
        return bool(a.equals(b))
    if isinstance(a, Ragged):
        return np.array_equal(a.values, b.values) and np.array_equal(a.offsets, b.offsets)
    return np.array_equal(a, b)
