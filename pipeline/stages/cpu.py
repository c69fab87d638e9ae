"""The stage of CPU operators: called on chunks as they were read, from several threads."""

import time
from collections.abc import Sequence

import numpy as np

from operators.base import Operator
from operators.columns import check_column, num_bytes, num_values
from pipeline.errors import DecisionError
from pipeline.plan import BoundStep
from pipeline.stages.block import Block, empty_column
from pipeline.stages.call import call_on_rows, check_outputs, look_at_first


class CpuStage:
    """Calls consecutive CPU operators and filters on a block, in place.

    Args:
        name: Stage name in the report.
        steps: What to call.
    """

    def __init__(self, name: str, steps: Sequence[BoundStep]) -> None:
        self._name, self._steps = name, steps

    def __call__(self, block: Block) -> Block:
        """Process a block; an error fails its partition, not the stage."""
        block.state.guard(self._run, block)
        return block

    def _run(self, block: Block) -> None:
        if not block.num_rows:
            return
        started = time.perf_counter()
        samples = block.num_rows
        bytes_in = sum(num_bytes(column) for column in block.columns.values())
        tokens = 0
        steps_s: dict[str, float] = {}
        for bound in self._steps:
            began = time.perf_counter()
            tokens += _apply(bound, block)
            steps_s[bound.label] = time.perf_counter() - began
        block.state.count(self._name, started, samples, bytes_in, tokens, steps_s)


def _apply(bound: BoundStep, block: Block) -> int:
    """Put a step's result into the block and return the ids it made."""
    if not block.num_rows:
        block.columns = {name: empty_column(bound.fields[name]) for name in bound.keep}
        return 0
    batch = {name: block.columns[field] for name, field in bound.reads.items()}
    try:
        if bound.step.first_rows and block.state.probed is None:
            look_at_first(bound.step, batch, block.rows)
        result, errors = call_on_rows(bound.step, batch, block.num_rows)
    except DecisionError as error:
        error.step = bound.label
        raise
    if errors:
        block.reject(bound.label, errors)
    tokens = 0
    if result is None:
        return _apply(bound, block)  # no row is left
    if isinstance(bound.step, Operator):
        check_outputs(bound.label, bound.step, result)
        for name, spec in bound.step.outputs.items():
            check_column(name, result[name], spec, block.num_rows, bound.label)
            block.columns[bound.writes[name]] = result[name]
            tokens += num_values(result[name]) if spec.vocab_size is not None else 0
    elif result.codes.any():
        block.state.drop(bound.label, result)
        block.select(np.flatnonzero(result.keep))
    block.columns = {name: c for name, c in block.columns.items() if name in bound.keep}
    return tokens
