"""The Ray engine: worker actors that own whole partitions. The only file that imports ray.

The distributed part is a queue of partitions. Actors never restart by themselves and tasks are
never retried by Ray: the engine counts the attempts, so that a partition that kills its worker
cannot do so for ever.
"""

import heapq
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from operators.base import Resources
from pipeline.engines.attempts import Attempts
from pipeline.errors import SetupError, TransientError
from pipeline.protocols import Partition, PartitionResult, StageCounts, add_counts
from pipeline.stages import Worker, WorkerTask

AHEAD = 2
"""Partitions handed to a worker at a time: the next is read while the last is written."""

POLL_S = 0.5


class RayEngine:
    """Runs partitions on Ray actors, as many as the cluster's cores or GPUs allow.

    Args:
        task: What a worker does.
        max_attempts: Attempts at a partition when storage fails or its worker dies.
        resources: What one worker needs.
        workers: Number of workers, or None for as many as fit.
        address: A running cluster, or None for a private one on this machine.
    """

    def __init__(
        self,
        task: WorkerTask,
        max_attempts: int,
        resources: Resources,
        workers: int | None = None,
        address: str | None = None,
    ) -> None:
        self._task, self._max_attempts, self._resources = task, max_attempts, resources
        self._asked, self._address = workers, address
        self._connected = False
        self._workers: list[_RemoteWorker] = []
        self._suspects: deque[Partition] = deque()
        self._progress: dict[str, StageCounts] = {}
        self._num_started = 0
        self._failed_starts = 0

    @property
    def num_workers(self) -> int:
        """Workers that are ready."""
        return sum(worker.ready for worker in self._workers)

    def run(self, partitions: Sequence[Partition]) -> Iterator[PartitionResult]:
        """Process partitions; see ``Engine.run``."""
        self._connect()
        attempts = Attempts(self._max_attempts)
        queue = deque(partitions)
        later: list[tuple[float, int, Partition]] = []
        left = len(partitions)
        wanted = min(self._fitting(), len(partitions))
        cpus = self._cpus_each(wanted)
        while left:
            while len(self._workers) < wanted:
                self._start_worker(cpus)
            now = time.monotonic()
            while later and later[0][0] <= now:
                queue.append(heapq.heappop(later)[2])
            self._dispatch(queue)
            for worker, ref in self._answers():
                if ref not in worker.running:
                    continue  # its worker died, as an answer before this one told
                partition = worker.take(ref)
                try:
                    answer = ray.get(ref)
                except RayTaskError as error:
                    cause = error.cause
                    if partition is None or not isinstance(cause, TransientError):
                        raise cause from None
                    at = time.monotonic() + attempts.after_error(partition, cause)
                    heapq.heappush(later, (at, partition.index, partition))
                except RayError as error:
                    self._workers.remove(worker)
                    for lost in ([partition] if partition else []) + worker.drop_all():
                        attempts.after_death(lost, type(error).__name__)
                        self._suspects.append(lost)
                    if partition is None:
                        self._count_failed_start(error)
                else:
                    if partition is None:
                        worker.ready = True
                    else:
                        left -= 1
                        yield answer
            self._poll_progress()

    def progress(self) -> Mapping[str, StageCounts]:
        """Return what the workers reported of partitions not yet yielded."""
        return self._progress

    def close(self) -> None:
        """Stop the workers, and the private cluster; a connection of the caller's stays."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers = []
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
            if self._asked is not None:
                needed = math.ceil(self._asked * self._resources.cpus)
                options["num_cpus"] = max(os.cpu_count() or 1, needed)
        else:
            options["address"] = self._address
        env = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        try:
            ray.init(runtime_env={"env_vars": env}, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SetupError(
                f"no Ray cluster at {self._address or 'this machine'}: {error}",
                hint="check --address, or use --engine inline",
            ) from None
        self._connected = True

    def _fitting(self) -> int:
        """Return how many workers to run."""
        total = ray.cluster_resources()
        if self._resources.gpus > 0:
            fitting = int(total.get("GPU", 0) / self._resources.gpus)
            if fitting < 1:
                raise SetupError(
                    f"a worker needs {self._resources.gpus} GPU, the cluster has "
                    f"{total.get('GPU', 0):g}",
                    hint="start GPU nodes, or set `device: cpu` in the operator",
                )
        else:
            fitting = max(1, int(total.get("CPU", 1) / self._resources.cpus))
        return fitting if self._asked is None else self._asked

    def _cpus_each(self, wanted: int) -> float:
        """Return the cores to ask for per worker: an actor that fits nowhere would wait for ever.

        On a private cluster nobody else competes for the cores, so that all workers may share
        what there is; on another no more is asked for than its largest node has.
        """
        if self._address is None:
            most = ray.cluster_resources().get("CPU", 1.0) / wanted
        else:
            most = max(node["Resources"].get("CPU", 0.0) for node in ray.nodes())
        cpus = min(self._resources.cpus, most)
        return cpus if cpus < 1 else int(cpus)

    def _start_worker(self, cpus: float) -> None:
        self._num_started += 1
        task = replace(self._task, worker=f"worker-{self._num_started}")
        actor = _WorkerActor.options(  # type: ignore[attr-defined]
            num_cpus=cpus,
            num_gpus=self._resources.gpus,
            max_concurrency=AHEAD + 1,
            max_restarts=0,
            max_task_retries=0,
        ).remote()
        worker = _RemoteWorker(actor)
        worker.running[actor.set_up.remote(task)] = None
        self._workers.append(worker)

    def _dispatch(self, queue: "deque[Partition]") -> None:
        """Give partitions to workers that answered ready, evenly.

        Partitions that lost their worker get one to themselves, so that no other is blamed when
        one of them kills it again.
        """
        for worker in self._workers:
            if self._suspects and worker.ready and not worker.running:
                worker.give(self._suspects.popleft(), alone=True)
        for depth in range(1, AHEAD + 1):
            for worker in sorted(self._workers, key=_RemoteWorker.num_bytes):
                if depth > 1 and len(queue) <= len(self._workers):
                    return  # the last ones wait for whoever is free first
                if queue and worker.ready and not worker.alone and len(worker.running) < depth:
                    worker.give(queue.popleft())

    def _answers(self) -> list[tuple["_RemoteWorker", Any]]:
        owner = {ref: worker for worker in self._workers for ref in worker.running}
        if not owner:
            time.sleep(POLL_S)  # all that is left waits for its next attempt
            return []
        done, _ = ray.wait(list(owner), num_returns=1, timeout=POLL_S)
        more, _ = ray.wait(list(owner), num_returns=len(owner), timeout=0)
        return [(owner[ref], ref) for ref in dict.fromkeys([*done, *more])]

    def _poll_progress(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.progress_ref is None:
                worker.progress_ref = worker.actor.progress.remote()
        pending = [w.progress_ref for w in self._workers if w.progress_ref is not None]
        done = set(ray.wait(pending, num_returns=len(pending), timeout=0)[0]) if pending else set()
        for worker in self._workers:
            if worker.progress_ref in done:
                try:
                    worker.counts = ray.get(worker.progress_ref)
                except RayError:
                    worker.counts = {}  # its death is noticed by the partition it had
                worker.progress_ref = None
        total: dict[str, StageCounts] = {}
        for worker in self._workers:
            total = add_counts(total, worker.counts)
        self._progress = total

    def _count_failed_start(self, error: RayError) -> None:
        self._failed_starts += 1
        if self._failed_starts >= self._max_attempts:
            raise TransientError(
                f"{self._failed_starts} workers died while starting ({type(error).__name__})",
                hint="look at the Ray logs of the node, or try --engine inline",
            )


@dataclass(slots=True)
class _RemoteWorker:
    """An actor, with the calls it has not answered; ``None`` stands for its set-up."""

    actor: Any
    ready: bool = False
    alone: bool = False
    running: dict[Any, Partition | None] = field(default_factory=dict)
    progress_ref: Any = None
    counts: Mapping[str, StageCounts] = field(default_factory=dict)

    def give(self, partition: Partition, *, alone: bool = False) -> None:
        self.alone = alone
        self.running[self.actor.process.remote(partition)] = partition

    def num_bytes(self) -> int:
        return sum(partition.num_bytes for partition in self.running.values() if partition)

    def take(self, ref: Any) -> Partition | None:
        partition = self.running.pop(ref)
        self.alone = False
        return partition

    def drop_all(self) -> list[Partition]:
        lost = [partition for partition in self.running.values() if partition is not None]
        self.running.clear()
        return lost


@ray.remote
class _WorkerActor:
    """A worker in its own process; calls run in threads, so that progress can be asked."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def __ray_shutdown__(self) -> None:
        """End the process at once: Ray calls this before a quiet end, as when the driver is gone.

        Python would wait for the worker's threads, which wait for partitions, for ever. What is
        not committed does not exist, so there is nothing to tidy up.
        """
        os._exit(0)

    def set_up(self, task: WorkerTask) -> None:
        self._worker = Worker(task)

    def process(self, partition: Partition) -> PartitionResult:
        assert self._worker is not None
        future: Future[PartitionResult] = self._worker.submit(partition)
        return future.result()

    def progress(self) -> Mapping[str, StageCounts]:
        return self._worker.progress() if self._worker is not None else {}
