"""One worker: read | CPU operators | device operators | write, overlapping in threads."""

import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from spdl.pipeline import PipelineBuilder, StageInfo

from operators.columns import num_bytes, num_values
from pipeline.errors import SetupError
from pipeline.manifest import FORMAT_VERSION
from pipeline.model_cache import JobModelFiles, KnownFiles
from pipeline.plan import BoundStep, Chain, build_chain, fingerprint
from pipeline.protocols import (
    Partition,
    PartitionCounts,
    PartitionResult,
    Placement,
    Pull,
    SampleBlock,
)
from pipeline.quarantine import write_quarantine
from pipeline.sinks import ArrowSink
from pipeline.sources import build_source
from pipeline.spec import JobSpec
from pipeline.stages.block import Block, PartitionState, golden_sample
from pipeline.stages.cpu import CpuStage
from pipeline.stages.device import DeviceStage
from pipeline.stages.partial import group_steps
from pipeline.stages.timing import TimedQueue, Waits
from pipeline.storage import Storage


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """All that a worker must be told; picklable.

    Attributes:
        job: The job.
        fingerprint: Of its recipe.
        output: The output folder's URI.
        worker: A name for logs and reports.
        storage: How source and output are reached. Like ``urls`` it is what the driver made of
            the job: a worker may have another environment and another current directory.
        urls: The source's URLs, resolved.
        model_files: The model files that the driver found.
    """

    job: JobSpec
    fingerprint: str
    output: str
    worker: str
    storage: Storage
    urls: tuple[str, ...]
    model_files: KnownFiles

    @property
    def placement(self) -> Placement:
        """See ``EngineTask.placement``."""
        run = self.job.run
        return Placement(
            max_attempts=run.max_attempts,
            deadline_s=None if run.deadline_s == "auto" else run.deadline_s,
            accelerator_type=run.accelerator_type,
            worker_memory_bytes=run.worker_memory_bytes,
            resources=run.resources,
            search_rows=True,
        )

    @property
    def shared_files(self) -> Mapping[str, Path]:
        """See ``EngineTask.shared_files``."""
        known = [file for file in self.model_files.values() if file is not None]
        return {file.sha256: file.path for file in known if file.path}

    def named(self, worker: str) -> Self:
        """See ``EngineTask.named``."""
        return replace(self, worker=worker)

    def start(self, pull: Pull | None = None) -> "Worker":
        """See ``EngineTask.start``."""
        return Worker(self, pull)


class Worker:
    """Processes partitions one after another, the next being read while the last is written.

    Loads the operators when it is made. One caller submits.

    Args:
        task: What to do.
        pull: How to get model files from the driver when this node does not have them.

    Raises:
        SetupError: an operator lacks what it needs.
    """

    def __init__(self, task: WorkerTask, pull: Pull | None = None) -> None:
        job = task.job
        self._task = task
        self._storage = task.storage
        self._source = build_source(job.source, task.storage, task.urls)
        model_files = JobModelFiles(task.storage, task.model_files, pull)
        self._chain = build_chain(job, self._source.fields, model_files)
        _check_identity(self._chain, task)
        _set_up(self._chain)
        asked = job.run.chunk_size
        self._chunk_size = self._source.chunk_size if asked == "auto" else asked
        self._payload_fields = (
            [name for name in self._chain.source_fields if name != "key"]
            if job.run.keep_bad_bytes
            else []
        )
        if job.run.cpu_threads > 1:
            # Decode threads keep the interpreter lock from each other for the default 5 ms. With
            # one of them a shorter time only makes it change cores: 10 % slower, measured.
            sys.setswitchinterval(1e-4)
        self._inbox: queue.SimpleQueue[PartitionState | None] = queue.SimpleQueue()
        self._running: list[PartitionState] = []
        groups = group_steps(self._chain.steps)
        self._threads = {"read": 1, **{name: self._threads_of(s) for name, s in groups.items()}}
        self._threads["write"] = 1
        self._waits = Waits(list(groups))
        self._executors: list[ThreadPoolExecutor] = []
        self._pipeline = self._build(groups)
        self._pipeline.start()
        self._writer = threading.Thread(target=self._write_all, name="write", daemon=True)
        self._writer.start()

    def submit(self, partition: Partition) -> "Future[PartitionResult]":
        """Queue a partition; the future gives its result, or the error that stopped it."""
        return self._queue(partition, None)

    def probe(self, partition: Partition, rows: range) -> "Future[PartitionResult]":
        """Work on these rows alone and write nothing, to see whether the process lives."""
        return self._queue(partition, rows)

    def _queue(self, partition: Partition, probed: range | None) -> "Future[PartitionResult]":
        state = PartitionState(partition, self._threads, self._payload_fields, probed)
        self._running.append(state)
        self._inbox.put(state)
        return state.future

    def count(self, partition: Partition) -> int:
        """Return how many rows a partition has."""
        return self._source.count_samples(partition, 1 << 62)

    def progress(self) -> PartitionCounts:
        """Return what was done so far in the partitions that are not finished."""
        running = [state for state in list(self._running) if state.probed is None]
        return {state.partition.index: state.snapshot() for state in running}

    def close(self) -> None:
        """Stop the threads; partitions that are not finished are dropped."""
        for state in list(self._running):
            state.fail(SetupError("the worker was stopped"))
        self._inbox.put(None)
        self._writer.join(timeout=30)
        self._pipeline.stop()
        for executor in self._executors:
            executor.shutdown(wait=False)

    def _threads_of(self, steps: Sequence[BoundStep]) -> int:
        return self._task.job.run.cpu_threads if steps[0].step.stage == "cpu" else 1

    def _build(self, groups: Mapping[str, Sequence[BoundStep]]) -> Any:
        queues = self._waits.queues

        class Queue(TimedQueue):
            def __init__(self, info: StageInfo, *, buffer_size: int = 1) -> None:
                super().__init__(info, buffer_size=buffer_size)
                queues[info.stage_name] = self

        builder = PipelineBuilder().add_source(self._read_all())
        for name, steps in groups.items():
            threads = self._threads[name]
            executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
            self._executors.append(executor)
            if steps[0].step.stage == "cpu":
                builder = builder.pipe(
                    CpuStage(name, steps).__call__,
                    executor=executor,
                    concurrency=threads,
                    output_order="input",
                    name=name,
                )
            else:
                stage = DeviceStage(name, steps, self._task.job.batch_size)
                builder = builder.pipe(stage.__call__, executor=executor, name=name)
        return builder.add_sink(2).build(
            num_threads=1, queue_class=Queue, task_hook_factory=lambda _: []
        )

    def _read_all(self) -> Iterator[Block]:
        while True:
            waited = time.perf_counter()
            state = self._inbox.get()
            self._waits.read_s += time.perf_counter() - waited
            if state is None:
                return
            yield from self._read(state)

    def _read(self, state: PartitionState) -> Iterator[Block]:
        state.start()
        blocks = self._source.read(state.partition, self._chunk_size)
        shift = 0  # from a position in the partition to a row number in the file
        end, done = state.stop, 0
        while state.error is None and (end is None or done < end):
            started = time.perf_counter()
            found: SampleBlock | None = state.guard(next, blocks, None)
            if found is None:
                break
            if not state.file_names or state.file_names[-1] != found.file_name:
                state.file_names.append(found.file_name)
                named = (r for r in state.partition.ranges if r.file.name == found.file_name)
                shift = next((r.first_row for r in named), 0) - found.first_row
            state.add_input(found, shift)
            done += found.num_samples
            state.count("read", started, found.num_samples, found.num_bytes)
            block = Block(
                state,
                rows=found.rows,
                files=np.full(len(found.rows), len(state.file_names) - 1, np.int32),
                file_rows=found.rows + shift,
                columns=dict(found.columns),
                dead=np.array([item.row for item in found.rejected], np.int64),
            )
            state.guard(block.mask)
            yield block
        state.guard(state.check_reached)
        none = np.zeros(0, np.int64)
        yield Block(state, none, none.astype(np.int32), none, {}, none, last=True)

    def _write_all(self) -> None:
        blocks = self._pipeline.get_iterator()
        while True:
            waited = time.perf_counter()
            block: Block | None = next(blocks, None)
            self._waits.write_s += time.perf_counter() - waited
            if block is None:
                return
            state = block.state
            state.guard(self._write, block)
            if block.last:
                self._running.remove(state)
                state.finish(self._waits.since_last(), self._task.worker)

    def _write(self, block: Block) -> None:
        state = block.state
        if state.probed is not None:
            return
        started = time.perf_counter()
        if state.sink is None:
            state.sink = self._new_sink(state)
        if block.num_rows:
            output = self._chain.output
            columns = {name: block.columns[name] for name in ("key", *output)}
            if state.golden is None:
                state.golden = golden_sample(block, output)
            state.sink.write(columns, block.files, block.file_rows)
            state.num_written += block.num_rows
            size = sum(num_bytes(column) for column in columns.values())
            ids = sum(num_values(columns[n]) for n, s in output.items() if s.vocab_size is not None)
            state.count("write", started, block.num_rows, size, ids)
        if block.last:
            state.shards = state.sink.close()
            state.quarantine = write_quarantine(
                self._storage, self._task.output, state.partition.index, state.rejected
            )
            state.count("write", started)

    def _new_sink(self, state: PartitionState) -> ArrowSink:
        output = self._chain.output
        metadata = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self._task.fingerprint,
            "partition": state.partition.index,
            "fields": {
                name: {"dtype": s.dtype, "shape": s.shape, "vocab_size": s.vocab_size}
                for name, s in output.items()
            },
        }
        shards = self._task.job.shards
        return ArrowSink(
            self._storage,
            self._task.output,
            state.partition.index,
            state.file_names,
            output,
            metadata,
            compression=shards.compression,
            shard_bytes=shards.shard_bytes,
        )


def _check_identity(chain: Chain, task: WorkerTask) -> None:
    """Refuse to work with other operators, versions or weights than the driver planned with."""
    found = fingerprint(task.job, chain.identities())
    if found != task.fingerprint:
        raise SetupError(
            f"{task.worker}: the operators here give fingerprint {found[:12]}, the run's is "
            f"{task.fingerprint[:12]}",
            hint="give every node the same version of the program and of the weights (pin "
            "`revision` to a full commit)",
        )


def _set_up(chain: Chain) -> None:
    on_cpu = [b.step for b in chain.steps if b.step.stage == "device" and b.step.device == "cpu"]
    if on_cpu:
        import torch

        # Sums are cut between threads, so another number of threads may round to other ids.
        torch.set_num_threads(max(1, int(chain.resources.cpus)))
    for bound in chain.steps:
        bound.step.setup(bound.step.device)
