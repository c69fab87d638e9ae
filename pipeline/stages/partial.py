"""Run the first steps of a chain in this thread, to look at what later steps are given."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from operators.base import Batch
from pipeline.plan import BoundStep
from pipeline.protocols import Partition, Source
from pipeline.stages.block import Block, PartitionState
from pipeline.stages.cpu import CpuStage
from pipeline.stages.device import DeviceStage

CHUNK_SIZE = 32


def run_steps(
    steps: Sequence[BoundStep], source: Source, partition: Partition, batch_size: int
) -> Iterator[Batch]:
    """Yield the fields of a partition's usable samples after the given steps.

    Args:
        steps: The first steps of a chain; they are set up here.
        source: Where to read.
        partition: What to read.
        batch_size: Slots a call of a device step.

    Raises:
        TokenmillError: a step failed as a whole.
    """
    for bound in steps:
        bound.step.setup(bound.step.device)
    state = PartitionState(partition, dict.fromkeys(("read", *group_steps(steps)), 1))
    yield from read_through(steps, source, state, batch_size)


def read_through(
    steps: Sequence[BoundStep],
    source: Source,
    state: PartitionState,
    batch_size: int,
    chunk_size: int = CHUNK_SIZE,
) -> Iterator[Batch]:
    """Yield the fields of a partition's usable samples after steps that are set up.

    Args:
        steps: The first steps of a chain.
        source: Where to read.
        state: The partition; counts what is read, and what is unusable.
        batch_size: Slots a call of a device step.
        chunk_size: Samples read at a time.

    Raises:
        TokenmillError: a step failed as a whole.
    """
    stages = [
        CpuStage(name, part) if part[0].step.stage == "cpu" else DeviceStage(name, part, batch_size)
        for name, part in group_steps(steps).items()
    ]
    started = time.perf_counter()
    for found in source.read(state.partition, chunk_size):
        state.add_input(found, 0)
        state.count("read", started, found.num_samples, found.num_bytes)
        state.file_names.append(found.file_name)
        files = np.full(len(found.rows), len(state.file_names) - 1, np.int32)
        dead = np.array([item.row for item in found.rejected], np.int64)
        block = Block(state, found.rows, files, found.rows, dict(found.columns), dead)
        block.mask()
        yield from (b.columns for b in _through(block, stages) if b.num_rows)
        if state.error is not None:
            raise state.error
        started = time.perf_counter()
    none = np.zeros(0, np.int64)
    end = Block(state, none, none.astype(np.int32), none, {}, none, last=True)
    yield from (b.columns for b in _through(end, stages) if b.num_rows)
    if state.error is not None:
        raise state.error


def group_steps(steps: Sequence[BoundStep]) -> dict[str, list[BoundStep]]:
    """Return stage name -> consecutive steps that run in it: ``cpu``, ``device``, ``cpu 2``."""
    groups: dict[str, list[BoundStep]] = {}
    last, counts = "", {"cpu": 0, "device": 0}
    for bound in steps:
        kind = bound.step.stage
        if not last.startswith(kind):
            counts[kind] += 1
            last = kind if counts[kind] == 1 else f"{kind} {counts[kind]}"
            groups[last] = []
        groups[last].append(bound)
    return groups


def _through(block: Block, stages: Sequence[CpuStage | DeviceStage]) -> Iterator[Block]:
    if not stages:
        yield block
        return
    out = stages[0](block)
    for part in [out] if isinstance(out, Block) else out:
        yield from _through(part, stages[1:])
