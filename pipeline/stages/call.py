"""Call an operator so that one bad row costs itself and no other."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from operators.base import Batch, Column, Operator, Step, Verdict
from operators.columns import concat, take
from pipeline.errors import ContractError, RowErrors, SampleError, SetupError, TokenmillError

Errors = dict[int, SampleError]


def call_on_rows(step: Step, batch: Batch, rows: int) -> tuple[Any, Errors]:
    """Call a CPU step; when it raises, find the rows that make it raise by halving the batch.

    Returns:
        The result for the good rows (None when there are none), and the errors of the others.
    """
    try:
        return step(batch), {}
    except RowErrors as error:
        return (error.good if rows > len(error.errors) else None), error.errors
    except BaseException as error:
        _raise_unless_a_rows_fault(step, error)
        if rows == 1:
            return None, {0: _as_sample_error(error)}
    half = rows // 2
    results = []
    errors: Errors = {}
    for start, stop in ((0, half), (half, rows)):
        part = {name: take(column, np.arange(start, stop)) for name, column in batch.items()}
        result, found = call_on_rows(step, part, stop - start)
        results += [result] if result is not None else []
        errors.update({row + start: error for row, error in found.items()})
    return _joined(results), errors


def look_at_first(step: Step, batch: Batch, positions: np.ndarray) -> None:
    """Show a CPU step those of some rows that are a partition's first, one by one.

    Args:
        step: The step.
        batch: Rows of a partition, as the step reads them.
        positions: Int64 [N], their positions in the partition's input.

    Raises:
        DecisionError: the step finds that a setting cannot hold.
    """
    for row in np.flatnonzero(positions < step.first_rows):
        alone = {name: take(column, np.array([row])) for name, column in batch.items()}
        try:
            step.look_at_first(alone)
        except BaseException as error:
            _raise_unless_a_rows_fault(step, error)  # such a fault comes again when it is called


def call_on_slots(step: Step, batch: Batch, slots: int) -> tuple[Any, Errors]:
    """Call a device step, always with full batches; find bad slots one by one when it raises.

    Returns:
        The result for all slots, where that of a bad slot is a copy of another (None when all
        are bad), and the errors of the bad ones.
    """
    try:
        return step(batch), {}
    except RowErrors as error:
        errors = error.errors
        good = np.setdiff1d(np.arange(slots), list(errors))
        if not len(good):
            return None, errors
        place = np.zeros(slots, np.int64)
        place[good] = np.arange(len(good))
        return {name: take_rows(column, place) for name, column in error.good.items()}, errors
    except BaseException as error:
        _raise_unless_a_rows_fault(step, error)
    errors = {}
    for slot in range(slots):
        alone = np.full(slots, slot)
        try:
            step({name: take_rows(column, alone) for name, column in batch.items()})
        except BaseException as error:
            _raise_unless_a_rows_fault(step, error)
            errors[slot] = _as_sample_error(error)
    good = np.setdiff1d(np.arange(slots), list(errors))
    if not len(good):
        return None, errors
    filled = np.arange(slots)
    filled[list(errors)] = good[0]
    return step({name: take_rows(column, filled) for name, column in batch.items()}), errors


def check_outputs(label: str, step: Operator[Any], result: Batch) -> None:
    """Check that an operator gave exactly the fields that it declares.

    Raises:
        ContractError: it gave others.
    """
    if set(result) != set(step.outputs):
        raise ContractError(f"{label}: adds {sorted(result)}, expected {sorted(step.outputs)}")


def take_rows(column: Column, rows: np.ndarray) -> Column:
    """Return the given rows of a column, which may be a tensor on any device."""
    if hasattr(column, "is_cuda"):
        import torch

        return column[torch.from_numpy(rows).to(column.device)]
    return take(column, rows)


def _joined(results: Sequence[Any]) -> Any:
    if not results:
        return None
    if isinstance(results[0], Verdict):
        return Verdict(np.concatenate([part.codes for part in results]), results[0].reasons)
    return {name: concat([part[name] for part in results]) for name in results[0]}


def _raise_unless_a_rows_fault(step: Step, error: BaseException) -> None:
    # Panics of libraries written in Rust are no ``Exception``, and yet a row's fault.
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
    if isinstance(error, TokenmillError) and not isinstance(error, SampleError):
        raise error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        raise SetupError(
            f"{step.config.name}: out of memory ({error})",
            hint="lower batch_size (it is part of the recipe) or give the operator more memory",
        ) from error


def _as_sample_error(error: BaseException) -> SampleError:
    if isinstance(error, SampleError):
        return error
    text = " ".join(str(error).split())[:300]
    return SampleError(f"{type(error).__name__}: {text}")
