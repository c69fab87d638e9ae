"""Small steps and blocks by hand: what the tests of the stages are made of."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import Batch, FieldSpec, Filter, Operator, OperatorConfig, Step, Verdict
from operators.errors import RowErrors, SampleError
from pipeline.plan import BoundStep
from pipeline.protocols import Partition
from pipeline.stages.block import Block, PartitionState

NUMBER = FieldSpec("int64")
SOURCE = {"x": NUMBER, "key": FieldSpec("string")}


class Times10(Operator[OperatorConfig]):
    """Adds ``target`` = 10 * ``field``; keeps what it was called with.

    Args:
        field: What it reads.
        target: What it adds.
        raises: Values that make the whole call raise this error.
        marks: Values that it names as bad rows, by ``RowErrors``.
    """

    Config = OperatorConfig

    def __init__(
        self,
        field: str = "x",
        target: str = "y",
        *,
        raises: Mapping[int, BaseException] | None = None,
        marks: Collection[int] = (),
    ) -> None:
        super().__init__(OperatorConfig(name="times_10"))
        self._field, self._target = field, target
        self._raises, self._marks = dict(raises or {}), set(marks)
        self.calls: list[list[int]] = []
        self.given: list[Any] = []
        self.gave: list[Any] = []

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        return {self._field: NUMBER}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        return {self._target: NUMBER}

    def __call__(self, batch: Batch) -> Batch:
        values = batch[self._field]
        found = values.tolist()
        self.calls.append(found)
        self.given.append(values)
        for value in found:
            if value in self._raises:
                raise self._raises[value]
        bad = {i: SampleError(f"marked {v}") for i, v in enumerate(found) if v in self._marks}
        good = values[[i for i in range(len(found)) if i not in bad]] * 10
        if bad:
            raise RowErrors(bad, {self._target: good})
        self.gave.append(good)
        return {self._target: good}


class Times10OnDevice(Times10):
    stage = "device"


class DropMultiples(Filter[OperatorConfig]):
    """Drops multiples of 3 as ``three``, else those of 5 as ``five``."""

    Config = OperatorConfig

    def __init__(self, field: str = "x", *, raises: Collection[int] = ()) -> None:
        super().__init__(OperatorConfig(name="drop_multiples"))
        self._field, self._raises = field, set(raises)

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        return {self._field: NUMBER}

    def __call__(self, batch: Batch) -> Verdict:
        values = np.asarray(batch[self._field])
        if self._raises & set(values.tolist()):
            raise ValueError("cannot judge")
        codes = np.where(values % 3 == 0, 1, np.where(values % 5 == 0, 2, 0))
        return Verdict(codes.astype(np.uint8), ("three", "five"))


class DropMultiplesOnDevice(DropMultiples):
    stage = "device"


def bind(
    *steps: Step,
    source: Mapping[str, FieldSpec] = SOURCE,
    keep: Collection[str] | None = None,
) -> list[BoundStep]:
    """Chain steps without renaming; ``keep`` (default: every field) is kept by the last."""
    fields = dict(source)
    chain = []
    for i, step in enumerate(steps):
        outputs = step.outputs if isinstance(step, Operator) else {}
        fields = {**fields, **outputs}
        last = i == len(steps) - 1
        kept = frozenset(fields if keep is None or not last else keep)
        label = step.config.name if i == 0 else f"{step.config.name}#{i + 1}"
        reads = {name: name for name in step.inputs}
        writes = {name: name for name in outputs}
        chain.append(BoundStep(step, label, reads, writes, fields, kept))
    return chain


def new_state(*stages: str, index: int = 0, payload: Sequence[str] = ()) -> PartitionState:
    """Return a partition of one file."""
    state = PartitionState(Partition(index, ()), dict.fromkeys(stages, 1), payload)
    state.file_names.append("a.tar")
    return state


def block(state: PartitionState, rows: Iterable[int], dead: Iterable[int] = ()) -> Block:
    """Return a block whose sample of input row i has the key ``k<i>`` and ``x`` = i."""
    where = np.fromiter(rows, np.int64)
    columns = {"key": pa.array([f"k{i}" for i in where], pa.large_string()), "x": where.copy()}
    return Block(
        state, where, np.zeros(len(where), np.int32), where, columns, np.fromiter(dead, np.int64)
    )


def end(state: PartitionState) -> Block:
    """Return the empty block that ends a partition."""
    none = np.zeros(0, np.int64)
    return Block(state, none, none.astype(np.int32), none, {}, none, last=True)


def through(
    stage: Callable[[Block], Iterator[Block]], state: PartitionState, blocks: Iterable[Block]
) -> list[Block]:
    """Send a partition's blocks and its end through a device stage."""
    return [out for given in (*blocks, end(state)) for out in stage(given)]


def values(blocks: Iterable[Block], field: str) -> dict[int, int]:
    """Return input row -> value of a field, over all rows that came out."""
    found: dict[int, int] = {}
    for item in blocks:
        if item.num_rows:
            found.update(zip(item.rows.tolist(), np.asarray(item.columns[field]), strict=True))
    return found
