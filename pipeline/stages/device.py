"""The stage of device operators: full batches, cut inside a partition, in one thread."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from operators.base import Column, Operator, Verdict
from operators.columns import (
    check_column,
    concat,
    num_bytes,
    num_values,
    take,
    to_numpy,
    to_torch,
)
from pipeline.errors import DecisionError
from pipeline.plan import BoundStep
from pipeline.stages.block import Block
from pipeline.stages.call import call_on_slots, check_outputs


class DeviceStage:
    """Cuts batches out of blocks and calls consecutive device operators on them.

    A batch is ``batch_size`` slots: one for every sample that was read and not filtered out, dead
    ones included, in input order. Dead slots, and those behind a partition's end, hold a copy of
    a live row. So a row's batch does not depend on which of its neighbours are unusable.

    Args:
        name: Stage name in the report.
        steps: What to call, all on one device.
        batch_size: Slots a call.
    """

    def __init__(self, name: str, steps: Sequence[BoundStep], batch_size: int) -> None:
        self._name, self._steps, self._batch_size = name, steps, batch_size
        self._waiting: list[Block] = []

    def __call__(self, block: Block) -> Iterator[Block]:
        """Take a block and yield the batches that it completes, as blocks."""
        state = block.state
        if block.num_rows or len(block.dead):
            self._waiting.append(block)
        while state.error is None:
            slots = sum(b.num_rows + len(b.dead) for b in self._waiting)
            if slots < self._batch_size and not (block.last and slots):
                break
            batch = state.guard(self._cut, min(slots, self._batch_size))
            if batch is not None:
                state.guard(self._run, batch)
                yield batch
        if block.last or state.error is not None:
            self._waiting = []
        if block.last:
            block.select(np.zeros(0, np.int64))
            yield block

    def _cut(self, slots: int) -> Block:
        """Take the next ``slots`` slots off the waiting blocks, as one block."""
        joined = _join(self._waiting)
        positions = np.sort(np.concatenate([joined.rows, joined.dead]))
        end = positions[slots - 1]
        self._waiting = []
        if slots < len(positions):
            self._waiting = [_part(joined, joined.rows > end, joined.dead > end)]
        return _part(joined, joined.rows <= end, joined.dead <= end)

    def _run(self, block: Block) -> None:
        if not block.num_rows:
            return
        started = time.perf_counter()
        samples = block.num_rows
        bytes_in = sum(num_bytes(column) for column in block.columns.values())
        positions = np.sort(np.concatenate([block.rows, block.dead]))
        live = np.searchsorted(positions, block.rows)  # the slot of each row
        fill = np.zeros(self._batch_size, np.int64)
        fill[live] = np.arange(block.num_rows)  # the row in each slot
        on_device: dict[str, Column] = {}
        steps_s: dict[str, float] = {}
        tokens = 0
        for bound in self._steps:
            began = time.perf_counter()
            for field in bound.reads.values():
                if field not in on_device:
                    column = take(block.columns[field], fill)
                    on_device[field] = _to_device(column, bound.step.device)
            kept = self._apply(bound, block, on_device, live)
            steps_s[bound.label] = time.perf_counter() - began
            if not len(kept):
                break
            live = live[kept]
            fill = np.zeros(self._batch_size, np.int64)  # rows that left are not there to be read
            fill[live] = np.arange(len(kept))
        if block.num_rows:
            tokens = self._fetch(block, on_device, live)
        block.state.count(self._name, started, samples, bytes_in, tokens, steps_s)

    def _apply(
        self, bound: BoundStep, block: Block, on_device: dict[str, Column], live: np.ndarray
    ) -> np.ndarray:
        """Call a step on all slots and return which rows of the block stay."""
        batch = {name: on_device[field] for name, field in bound.reads.items()}
        try:
            result, slot_errors = call_on_slots(bound.step, batch, self._batch_size)
        except DecisionError as error:
            error.step = bound.label
            raise
        rows_of = {int(slot): row for row, slot in enumerate(live)}
        errors = {rows_of[s]: error for s, error in slot_errors.items() if s in rows_of}
        kept = np.setdiff1d(np.arange(block.num_rows), list(errors)).astype(np.int64)
        if errors:
            block.reject(bound.label, errors)
        if result is None or not len(kept):
            return kept[:0]
        if isinstance(bound.step, Operator):
            check_outputs(bound.label, bound.step, result)
            on_device.update({bound.writes[name]: column for name, column in result.items()})
            return kept
        verdict = Verdict(result.codes[live[kept]], result.reasons)
        block.state.drop(bound.label, verdict)
        block.select(np.flatnonzero(verdict.keep))
        stays: np.ndarray = kept[verdict.keep]
        return stays

    def _fetch(self, block: Block, on_device: dict[str, Column], live: np.ndarray) -> int:
        """Bring what the steps made back to the block; return the ids made."""
        tokens = 0
        keep = self._steps[-1].keep
        last = {  # whoever wrote a field last: a reducer replaces what the encoder made
            field: (bound.label, name, bound.step.outputs[name])
            for bound in self._steps
            if isinstance(bound.step, Operator)
            for name, field in bound.writes.items()
            if field in keep
        }
        for field, (label, name, spec) in last.items():
            slots = _to_host(on_device[field])
            check_column(name, slots, spec, self._batch_size, label)
            block.columns[field] = take(slots, live)
            tokens += num_values(block.columns[field]) if spec.vocab_size is not None else 0
        block.columns = {name: c for name, c in block.columns.items() if name in keep}
        return tokens


def _join(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    filled = [block for block in blocks if block.num_rows] or blocks[:1]
    return Block(
        blocks[0].state,
        np.concatenate([block.rows for block in blocks]),
        np.concatenate([block.files for block in blocks]),
        np.concatenate([block.file_rows for block in blocks]),
        {name: concat([b.columns[name] for b in filled]) for name in filled[0].columns},
        np.concatenate([block.dead for block in blocks]),
    )


def _part(block: Block, rows: np.ndarray, dead: np.ndarray) -> Block:
    part = Block(
        block.state, block.rows, block.files, block.file_rows, block.columns, block.dead[dead]
    )
    if not rows.all():
        part.select(np.flatnonzero(rows))
    return part


def _to_device(column: Column, device: str) -> Column:
    if not isinstance(column, np.ndarray):
        return column
    tensor = to_torch(np.ascontiguousarray(column))
    if device == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _to_host(column: Column) -> Column:
    return to_numpy(column) if hasattr(column, "is_cuda") else column
