"""The Ray engine: worker actors that own whole partitions. Like ``ray_jobs.py`` it imports ray.

The distributed part is a queue of partitions, whose rules are in ``schedule.py``. Actors never
restart by themselves and tasks are never retried by Ray: the schedule counts the attempts, so that
a partition that kills its worker cannot do so for ever.
"""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.metrics import Counter, Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from operators.base import Resources
from pipeline.engines.schedule import AHEAD, Schedule, Work
from pipeline.errors import SetupError, TransientError
from pipeline.model_cache import CHUNK_BYTES
from pipeline.protocols import (
    AttemptCounts,
    EngineTask,
    Partition,
    PartitionCounts,
    PartitionResult,
    PartitionWorker,
    RowWorker,
    StageCounts,
    add_counts,
)
from pipeline.report.metrics import Metric
from pipeline.spec import WorkerRange
from pipeline.stages import limit_memory

POLL_S = 0.2
NODES_EVERY_S = 2.0
PROGRESS_EVERY_S = 0.5
PROGRESS_CALLS_PER_S = 500
"""With thousands of workers each is asked for its progress less often, and all are added up less
often: that takes 30 us a worker."""

START_PATIENCE_S = 900.0
"""How long the least number of workers may take to be ready: nodes may have to be bought."""

SETUP_PATIENCE_S = 3600.0
"""How long a worker may take to load its models, once it runs."""


class RayEngine:
    """Runs partitions on Ray actors, as many as the cluster's cores or GPUs allow.

    Workers are started on nodes that join, and given up with nodes that leave.

    Args:
        task: What a worker does, and how workers are placed.
        resources: What one worker needs.
        workers: Number of workers, a range, or None for as many as fit at any time.
        address: A running cluster, or None for a private one on this machine.
    """

    def __init__(
        self,
        task: EngineTask,
        resources: Resources,
        workers: int | WorkerRange | None = None,
        address: str | None = None,
    ) -> None:
        self._task, self._resources = task, resources
        self._asked, self._address = workers, address
        self._placement = task.placement
        self._connected = False
        self._workers: dict[str, _RemoteWorker] = {}
        self._shelf: Any = None
        self._schedule = Schedule([], 1)
        self._progress: dict[str, StageCounts] = {}
        self._num_started = 0
        self._failed_starts = 0
        self._was_staffed = False
        self._nodes: list[dict[str, Any]] = []
        self._nodes_at = -math.inf
        self._added_at = -math.inf

    @property
    def num_workers(self) -> int:
        """Workers that are ready."""
        return sum(worker.ready for worker in self._workers.values())

    def run(self, partitions: Sequence[Partition]) -> Iterator[PartitionResult | None]:
        """Process partitions; see ``Engine.run``."""
        self._connect()
        self._shelf = _shelf_of(self._task.shared_files)
        self._schedule = schedule = Schedule(
            partitions,
            self._placement.max_attempts,
            self._placement.deadline_s,
            search_rows=self._placement.search_rows,
        )
        began = time.monotonic()
        while schedule.left:
            self._look_at_nodes()
            self._staff(began)
            for name, work in schedule.assign(time.monotonic()):
                self._workers[name].give(work)
            for worker, ref in self._answers():
                result = self._take(worker, ref)
                if result is not None:
                    yield result
            self._poll_progress()
            # A worker's last progress may be as old as the last time it was asked.
            for name, silent_s in schedule.hanging(time.monotonic() - self._every_s):
                self._lose(self._workers[name], f"no progress for {silent_s:,.0f} s")
            yield None

    def progress(self) -> Mapping[str, StageCounts]:
        """Return what the workers reported of partitions not yet yielded."""
        return self._progress

    def attempts(self) -> AttemptCounts:
        """Return what had to be done again so far."""
        return self._schedule.counts

    def close(self) -> None:
        """Stop the workers, and the private cluster; a connection of the caller's stays."""
        for worker in self._workers.values():
            ray.kill(worker.actor)
        self._workers = {}
        if self._shelf is not None:
            ray.kill(self._shelf)
            self._shelf = None
        if self._connected:
            ray.shutdown()
            self._connected = False

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        # Workers import the packages from where this process did.
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._address is None:
            # "local": another cluster on this machine is neither joined nor disturbed.
            options |= {"address": "local", "include_dashboard": False}
            if isinstance(self._asked, int):
                needed = math.ceil(self._asked * self._resources.cpus)
                options["num_cpus"] = max(os.cpu_count() or 1, needed)
        else:
            options["address"] = self._address
        env = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(runtime_env={"env_vars": env}, **options)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_term)  # Ray's own ends the process as it stands
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SetupError(
                f"no Ray cluster at {self._address or 'this machine'}: {error}",
                hint="check --address, or use --engine inline",
            ) from None
        self._connected = True

    def _look_at_nodes(self) -> None:
        if time.monotonic() - self._nodes_at >= NODES_EVERY_S:
            self._nodes = [node for node in ray.nodes() if node["Alive"]]
            self._nodes_at = time.monotonic()

    def _staff(self, began: float) -> None:
        """Start the workers that are missing.

        Raises:
            SetupError: the cluster has no room for what was asked for.
        """
        least, most = self._bounds()
        if self.num_workers >= least:
            self._was_staffed = True
        elif not self._was_staffed and time.monotonic() - began > START_PATIENCE_S:
            raise SetupError(
                f"{self.num_workers:,} of at least {least:,} workers were ready after "
                f"{START_PATIENCE_S / 60:.0f} minutes",
                hint="add nodes, or lower run.workers",
            )
        for _ in range(min(most, self._schedule.left) - len(self._workers)):
            self._start_worker()
        for worker in [worker for worker in self._workers.values() if not worker.ready]:
            if worker.set_up_s() > SETUP_PATIENCE_S:
                self._lose(worker, f"its set-up took more than {SETUP_PATIENCE_S:,.0f} s")

    def _bounds(self) -> tuple[int, int]:
        """Return the least and the largest number of workers at this moment."""
        if isinstance(self._asked, WorkerRange):
            return self._asked.min, self._asked.max  # those that do not fit wait for nodes
        fitting = sum(map(self._fitting, self._nodes))
        if fitting == 0 and self._num_started == 0:
            self._check_fits()
            fitting = 1  # alone, with fewer cores than it asks for
        return 1, self._asked or fitting

    def _needs(self, cpus: float) -> dict[str, float]:
        kind = self._placement.accelerator_type
        needs = {
            "CPU": cpus,
            "GPU": self._resources.gpus,
            "memory": float(self._placement.worker_memory_bytes or 0),
            **self._placement.resources,
            **({f"accelerator_type:{kind}": 0.001} if kind else {}),
        }
        return {name: amount for name, amount in needs.items() if amount > 0}

    def _fitting(self, node: Mapping[str, Any]) -> int:
        """Return how many workers a node has room for."""
        has = node["Resources"]
        needs = self._needs(self._cpus_each())
        return min(int(has.get(name, 0.0) / amount + 1e-9) for name, amount in needs.items())

    def _check_fits(self) -> None:
        """Raise SetupError when something other than cores is missing everywhere."""
        for name, amount in self._needs(0.0).items():
            most = max((node["Resources"].get(name, 0.0) for node in self._nodes), default=0.0)
            if most < amount:
                cpu = " or set `device: cpu` in the operator" if name == "GPU" else ""
                raise SetupError(
                    f"a worker needs {amount:g} {name}, the cluster's nodes have {most:g}",
                    hint=f"start nodes that have it,{cpu} or let it wait for them with "
                    "`workers: {min: 1, max: N}`",
                )

    def _cpus_each(self) -> float:
        """Return the cores to ask for per worker: an actor that fits nowhere would wait for ever.

        On a private cluster nobody else competes for the cores, so that all workers may share
        what there is; on another no more is asked for than its largest node has.
        """
        most = max((node["Resources"].get("CPU", 0.0) for node in self._nodes), default=1.0)
        if self._address is None and isinstance(self._asked, int):
            most /= self._asked
        cpus = min(self._resources.cpus, most or self._resources.cpus)
        return cpus if cpus < 1 else int(cpus)

    def _start_worker(self) -> None:
        self._num_started += 1
        name = f"worker-{self._num_started}"
        actor = _WorkerActor.options(  # type: ignore[attr-defined]
            num_cpus=self._cpus_each(),
            num_gpus=self._resources.gpus,
            memory=self._placement.worker_memory_bytes,
            resources=dict(self._placement.resources) or None,
            accelerator_type=self._placement.accelerator_type,
            max_concurrency=AHEAD + 2,
            max_restarts=0,
            max_task_retries=0,
        ).remote()
        worker = _RemoteWorker(name, actor)
        # Two calls: the first answers as soon as the process runs, wherever it was placed.
        worker.node_ref = actor.node.remote()
        worker.running[actor.set_up.remote(self._task.named(name), self._shelf)] = None
        self._workers[name] = worker

    def _answers(self) -> list[tuple["_RemoteWorker", Any]]:
        owner = {ref: worker for worker in self._workers.values() for ref in worker.running}
        if not owner:
            time.sleep(POLL_S)  # all that is left waits for its next attempt
            return []
        done, _ = ray.wait(list(owner), num_returns=1, timeout=POLL_S)
        if done:
            done, _ = ray.wait(list(owner), num_returns=len(owner), timeout=0)
        return [(owner[ref], ref) for ref in done]

    def _take(self, worker: "_RemoteWorker", ref: Any) -> PartitionResult | None:
        """Take one answer: a result to pass on, or what went wrong."""
        if ref not in worker.running:
            return None  # its worker died, as an answer before this one told
        work = worker.running[ref]
        now = time.monotonic()
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            cause = error.cause
            if work is None or not isinstance(cause, TransientError):
                raise cause from None
            del worker.running[ref]
            self._schedule.failed(worker.name, work, cause, now)
        except RayError as error:
            self._lose(worker, type(error).__name__, error)
        else:
            del worker.running[ref]
            if work is not None:
                return self._schedule.succeeded(worker.name, work, answer, now)
            worker.ready = True
            self._failed_starts = 0
            self._schedule.add_worker(worker.name, now)
        return None

    def _lose(self, worker: "_RemoteWorker", cause: str, error: RayError | None = None) -> None:
        """Give a worker up; what it had goes back to the schedule."""
        del self._workers[worker.name]
        worker.running.clear()
        ray.kill(worker.actor)  # it may only be out of reach
        self._nodes_at = -math.inf
        self._look_at_nodes()
        node = worker.node()
        alive = {found["NodeID"] for found in self._nodes}
        gone = isinstance(error, ActorUnavailableError) or (node is not None and node not in alive)
        if worker.ready:
            self._schedule.remove_worker(worker.name, cause, blame=not gone)
        elif not gone:
            self._failed_starts += 1
            if self._failed_starts >= self._placement.max_attempts:
                raise TransientError(
                    f"{self._failed_starts} workers in a row died while starting ({cause})",
                    hint="look at the Ray logs of the node, or try --engine inline",
                )

    @property
    def _every_s(self) -> float:
        """Seconds between two questions to one worker."""
        return max(PROGRESS_EVERY_S, len(self._workers) / PROGRESS_CALLS_PER_S)

    def _poll_progress(self) -> None:
        now, every_s = time.monotonic(), self._every_s
        for worker in self._workers.values():
            if worker.ready and worker.progress_ref is None and now - worker.asked_at >= every_s:
                worker.progress_ref, worker.asked_at = worker.actor.progress.remote(), now
        pending = [w.progress_ref for w in self._workers.values() if w.progress_ref is not None]
        done = set(ray.wait(pending, num_returns=len(pending), timeout=0)[0]) if pending else set()
        if not done:
            return
        for worker in self._workers.values():
            if worker.progress_ref in done:
                try:
                    counts = ray.get(worker.progress_ref)
                except RayError:
                    counts = {}  # its death is noticed by the partition it had
                if counts != worker.counts:
                    self._schedule.progressed(worker.name, now)
                worker.counts, worker.progress_ref = counts, None
        if now - self._added_at >= every_s:
            self._progress, self._added_at = self._add_up(), now

    def _add_up(self) -> dict[str, StageCounts]:
        """Add up the partitions under way; of two attempts at one the further counts."""
        furthest: dict[int, Mapping[str, StageCounts]] = {}
        for worker in self._workers.values():
            for index, counts in worker.counts.items():
                if self._schedule.is_under_way(index):
                    other = furthest.get(index)
                    if other is None or _samples(other) < _samples(counts):
                        furthest[index] = counts
        total: dict[str, StageCounts] = {}
        for counts in furthest.values():
            total = add_counts(total, counts)
        return total


def _samples(counts: Mapping[str, StageCounts]) -> int:
    return sum(part.samples for part in counts.values())


class RayMeter:
    """Exports metrics by Ray's agent on the driver's node, which Prometheus scrapes.

    What comes before the cluster is joined or after it is left is dropped: there is no agent then.
    """

    def __init__(self) -> None:
        self._made: dict[str, Counter | Gauge] = {}

    def add(self, metric: Metric, value: float, tags: Mapping[str, str]) -> None:
        """Raise a counter."""
        if ray.is_initialized():
            self._of(metric).inc(value, tags=dict(tags))

    def set(self, metric: Metric, value: float, tags: Mapping[str, str]) -> None:
        """Say how a gauge stands."""
        if ray.is_initialized():
            self._of(metric).set(value, tags=dict(tags))

    def _of(self, metric: Metric) -> Counter | Gauge:
        if metric.name not in self._made:
            kind = Counter if metric.kind == "counter" else Gauge
            self._made[metric.name] = kind(metric.name, metric.description, metric.tag_keys)
        return self._made[metric.name]


@dataclass(slots=True)
class _RemoteWorker:
    """An actor, with the calls it has not answered; ``None`` stands for its set-up."""

    name: str
    actor: Any
    ready: bool = False
    running: dict[Any, Work | None] = field(default_factory=dict)
    node_ref: Any = None
    progress_ref: Any = None
    asked_at: float = -math.inf
    placed_at: float = math.inf
    counts: PartitionCounts = field(default_factory=dict)

    def give(self, work: Work) -> None:
        if work.kind == "whole":
            ref = self.actor.process.remote(work.partition)
        elif work.kind == "count":
            ref = self.actor.count.remote(work.partition)
        else:
            ref = self.actor.probe.remote(work.partition, work.rows)
        self.running[ref] = work

    def set_up_s(self) -> float:
        """Return for how long its process has run, 0 before it does."""
        if self.placed_at == math.inf and self.node() is not None:
            self.placed_at = time.monotonic()
        return max(time.monotonic() - self.placed_at, 0.0)

    def node(self) -> str | None:
        """Return the node it runs on, or None when it never ran."""
        try:
            found: str = ray.get(self.node_ref, timeout=0)
        except RayError:  # GetTimeoutError among them
            return None
        return found


@ray.remote
class _WorkerActor:
    """A worker in its own process; calls run in threads, so that progress can be asked."""

    def __init__(self) -> None:
        self._worker: PartitionWorker | None = None

    def __ray_shutdown__(self) -> None:
        """End the process at once: Ray calls this before a quiet end, as when the driver is gone.

        Python would wait for the worker's threads, which wait for partitions, for ever. What is
        not committed does not exist, so there is nothing to tidy up.
        """
        os._exit(0)

    def node(self) -> str:
        found: str = ray.get_runtime_context().get_node_id()
        return found

    def set_up(self, task: EngineTask, shelf: Any) -> None:
        limit_memory(task.placement.worker_memory_bytes)
        self._worker = task.start(None if shelf is None else partial(_pull, shelf))

    def process(self, partition: Partition) -> PartitionResult:
        assert self._worker is not None
        future: Future[PartitionResult] = self._worker.submit(partition)
        return future.result()

    def probe(self, partition: Partition, rows: range) -> None:
        assert isinstance(self._worker, RowWorker)
        self._worker.probe(partition, rows).result()

    def count(self, partition: Partition) -> int:
        assert isinstance(self._worker, RowWorker)
        return self._worker.count(partition)

    def progress(self) -> PartitionCounts:
        return self._worker.progress() if self._worker is not None else {}


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class _Shelf:
    """The model files of the driver's node, for nodes that lack them.

    A piece of a file goes to the object store when it is first asked for, and stays there: nodes
    that ask later may copy it from each other.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._refs: dict[tuple[str, int], Any] = {}

    def piece(self, sha256: str, index: int) -> list[Any]:
        """Return the reference to a piece of a file, in a list; nothing past its end."""
        if (sha256, index) not in self._refs:
            with self._paths[sha256].open("rb") as file:
                data = np.fromfile(file, np.uint8, CHUNK_BYTES, offset=index * CHUNK_BYTES)
            if not len(data):
                return []
            self._refs[sha256, index] = ray.put(data)  # arrays are read where they lie
        return [self._refs[sha256, index]]


def _shelf_of(paths: Mapping[str, Path]) -> Any:
    """Start an actor on this node that hands out files, or None when there are none."""
    if not paths:
        return None
    here = ray.get_runtime_context().get_node_id()
    on_this_node = NodeAffinitySchedulingStrategy(here, soft=False)
    return _Shelf.options(scheduling_strategy=on_this_node).remote(paths)  # type: ignore[attr-defined]


def _pull(shelf: Any, sha256: str) -> Iterator[memoryview]:
    """Yield a file of the shelf, one piece being put while the last is written."""
    try:
        coming = shelf.piece.remote(sha256, 0)
        for index in count(1):
            found = ray.get(coming)
            if not found:
                return
            coming = shelf.piece.remote(sha256, index)
            yield ray.get(found[0]).data
    except RayError as error:
        raise TransientError(
            f"model file {sha256[:12]} did not arrive from the driver's node "
            f"({type(error).__name__})",
            hint="run the same command again",
        ) from error
