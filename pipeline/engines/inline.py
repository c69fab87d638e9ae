"""The inline engine: one worker in this process. For debugging and for jobs under a minute."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait

from pipeline.engines.attempts import Attempts
from pipeline.errors import TransientError
from pipeline.protocols import (
    AttemptCounts,
    EngineTask,
    Partition,
    PartitionResult,
    PartitionWorker,
    StageCounts,
    add_counts,
)

AHEAD = 2
"""Partitions handed to the worker at a time: the next is read while the last is written."""

POLL_S = 1.0


class InlineEngine:
    """Runs every partition on one worker in this process, in order.

    Args:
        task: What the worker does.
        max_attempts: Attempts at a partition when storage fails.
    """

    def __init__(self, task: EngineTask, max_attempts: int) -> None:
        self._task, self._max_attempts = task, max_attempts
        self._worker: PartitionWorker | None = None
        self._counts = AttemptCounts()

    @property
    def num_workers(self) -> int:
        """Always one."""
        return 1

    def run(self, partitions: Sequence[Partition]) -> Iterator[PartitionResult | None]:
        """Process partitions; see ``Engine.run``."""
        attempts = Attempts(self._max_attempts)
        self._worker = self._task.start()
        waiting = deque(partitions)
        running: deque[tuple[Partition, Future[PartitionResult]]] = deque()
        while waiting or running:
            while waiting and len(running) < AHEAD:
                partition = waiting.popleft()
                running.append((partition, self._worker.submit(partition)))
            partition, future = running.popleft()
            while not wait([future], POLL_S).done:
                yield None
            try:
                yield future.result()
            except TransientError as error:
                self._counts.failed += 1
                self._counts.retried += 1
                time.sleep(attempts.after_error(partition, error))
                waiting.appendleft(partition)

    def progress(self) -> Mapping[str, StageCounts]:
        """Return what was done in partitions not yet yielded."""
        worker = self._worker  # asked for by another thread than the one that closes
        total: dict[str, StageCounts] = {}
        for counts in worker.progress().values() if worker is not None else ():
            total = add_counts(total, counts)
        return total

    def attempts(self) -> AttemptCounts:
        """Return what had to be done again so far."""
        return self._counts

    def close(self) -> None:
        """Stop the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
