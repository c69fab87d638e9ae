"""Which worker does what, and when: the policy of a cluster engine, without the cluster.

It knows neither Ray nor a clock (callers pass the time in), so that a million partitions on ten
thousand workers can be simulated, and every rule be tested by itself:

- the largest partitions go first, and only to workers that are ready;
- a worker has up to ``ahead`` partitions, so that the next is read while the last is written;
- at the tail idle workers make a second attempt at what takes too long; the first result counts;
- a worker that dies or hangs costs each partition that it had one attempt; such a partition then
  gets a worker to itself, so that no other is blamed when it happens again;
- a partition that killed two workers is searched for the row that does it.
"""

import heapq
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.engines.attempts import Attempts
from pipeline.engines.isolation import Isolation
from pipeline.errors import IntegrityError, PoisonPartitionError, TransientError
from pipeline.protocols import AttemptCounts, Partition, PartitionResult

AHEAD = 2
"""Partitions handed to a worker at a time."""

MOST_POISON = 8
"""Rows of one partition that may end a process before the run stops."""

MOST_EXCUSES = 20
"""Lost nodes that a partition is not blamed for; one that brings every node down is found then."""

STRAGGLES_AFTER = 2.0
"""An attempt straggles when it takes this many times as long as expected."""

LEAST_STRAGGLE_S = 5.0
TAIL_EVERY_S = 1.0

SILENT_AT_FIRST_S = 1800.0
"""How long a worker may show no progress while no partition was measured yet."""

LEAST_SILENCE_S = 120.0
SILENT_AFTER = 5.0
"""A worker hangs when nothing moves for this many times as long as its partition should take."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What a worker is asked to do.

    Attributes:
        partition: The partition.
        kind: ``whole`` processes it; ``count`` counts its rows; ``probe`` works on ``rows`` alone
            and writes nothing, to see whether the process survives.
        rows: The rows of a probe.
    """

    partition: Partition
    kind: Literal["whole", "count", "probe"] = "whole"
    rows: range = range(0)


@dataclass(slots=True)
class _Worker:
    """A worker that is ready.

    Attributes:
        running: Work -> time it was given.
        alone: It has a suspect and gets nothing beside it.
        moved_at: When it was last seen to get on.
    """

    name: str
    moved_at: float
    running: dict[Work, float] = field(default_factory=dict)
    alone: bool = False


class Schedule:
    """Hands out partitions and takes back what became of them.

    Args:
        partitions: What is to be done.
        max_attempts: Attempts at a partition when storage fails or its worker dies.
        deadline_s: Seconds without progress after which a worker is taken to hang; None measures
            how long partitions take and allows a multiple.
        ahead: Partitions a worker has at a time.
        search_rows: Search a partition that killed two workers for the row that does it; False
            only counts its attempts.
    """

    def __init__(
        self,
        partitions: Sequence[Partition],
        max_attempts: int,
        deadline_s: float | None = None,
        ahead: int = AHEAD,
        *,
        search_rows: bool = True,
    ) -> None:
        self.left = len(partitions)
        self.counts = AttemptCounts()
        self._attempts = Attempts(max_attempts)
        self._deadline_s, self._ahead = deadline_s, ahead
        self._search_rows = search_rows
        self._waiting = [(-p.num_bytes, p.index, p) for p in partitions]
        heapq.heapify(self._waiting)
        self._later: list[tuple[float, int, Partition]] = []
        self._suspects: deque[Work] = deque()
        self._workers: dict[str, _Worker] = {}
        self._open: list[deque[_Worker]] = [deque() for _ in range(ahead)]
        self._tries: dict[int, list[_Worker]] = {}  # workers at each partition under way
        self._shared: dict[int, PartitionResult | None] = {}  # those with a second attempt
        self._searches: dict[int, Isolation] = {}
        self._excuses: Counter[int] = Counter()
        self._done_bytes, self._done_s, self._num_done = 0, 0.0, 0
        self._tail_at = 0.0

    @property
    def num_open(self) -> int:
        """Partitions that no worker has yet: more workers than these would stand idle."""
        return len(self._waiting) + len(self._later) + len(self._suspects)

    def is_under_way(self, index: int) -> bool:
        """Say whether a partition was given out and has no result yet."""
        return index in self._tries and self._shared.get(index) is None

    def add_worker(self, name: str, now: float) -> None:
        """A worker is ready."""
        worker = _Worker(name, now)
        self._workers[name] = worker
        self._open[0].append(worker)

    def remove_worker(self, name: str, cause: str, *, blame: bool = True) -> None:
        """A worker is gone; what it had goes back.

        Args:
            name: Which.
            cause: What is known of its end, for the message.
            blame: What it had may be the reason. False when its node is gone.

        Raises:
            PoisonPartitionError: a partition has ended too many workers.
        """
        worker = self._workers.pop(name)
        for work in worker.running:
            self._after_death(worker, work, cause, blame=blame)

    def assign(self, now: float) -> Iterator[tuple[str, Work]]:
        """Yield what to give to whom, now."""
        while self._later and self._later[0][0] <= now:
            partition = heapq.heappop(self._later)[2]
            heapq.heappush(self._waiting, (-partition.num_bytes, partition.index, partition))
        while self._suspects and (worker := self._next(0)) is not None:
            worker.alone = True
            yield self._give(worker, self._suspects.popleft(), now)
        for depth in range(self._ahead):
            while self._waiting:
                if depth and len(self._waiting) <= len(self._workers):
                    return  # the last ones wait for whoever is free first
                worker = self._next(depth)
                if worker is None:
                    break
                yield self._give(worker, Work(heapq.heappop(self._waiting)[2]), now)
        if not self._waiting and not self._later and now >= self._tail_at:
            self._tail_at = now + TAIL_EVERY_S
            yield from self._second_attempts(now)

    def succeeded(
        self, name: str, work: Work, answer: PartitionResult | int | None, now: float
    ) -> PartitionResult | None:
        """Take a worker's answer; return a partition's result if it is the first.

        Raises:
            IntegrityError: two attempts at one partition wrote different bytes.
            PoisonPartitionError: a partition ends workers and no row of it does so by itself.
        """
        worker = self._workers[name]
        started = self._take(worker, work, now)
        index = work.partition.index
        if work.kind != "whole":
            search = self._searches[index]
            if isinstance(answer, int):
                search.begin(answer)
            else:
                search.answer(died=False)
            self._search_on(search, "it survives every one of its rows alone")
            return None
        assert isinstance(answer, PartitionResult)
        if index in self._shared:
            first = self._shared[index]
            if first is not None:
                _check_same(first, answer)
                return None
            self._shared[index] = answer
        self._searches.pop(index, None)
        self._num_done += 1
        self._done_bytes += work.partition.num_bytes
        self._done_s += min(answer.wall_s, now - started)
        self.left -= 1
        return answer

    def failed(self, name: str, work: Work, error: TransientError, now: float) -> None:
        """Storage failed a worker; the partition waits for its next attempt.

        Raises:
            TransientError: it was the last.
        """
        self._take(self._workers[name], work, now)
        if self._is_done(work) or self._tries.get(work.partition.index):
            return  # another attempt has it, or had it
        self.counts.failed += 1
        self.counts.retried += 1
        at = now + self._attempts.after_error(work.partition, error)
        if work.kind == "whole":
            heapq.heappush(self._later, (at, work.partition.index, work.partition))
        else:
            self._suspects.append(work)

    def progressed(self, name: str, now: float) -> None:
        """A worker was seen to get on with its work."""
        self._workers[name].moved_at = now

    def hanging(self, now: float) -> list[tuple[str, float]]:
        """Return the workers that show no progress for too long, and for how many seconds."""
        found = []
        for worker in self._workers.values():
            if not worker.running:
                continue
            silent_s = now - worker.moved_at
            if silent_s > LEAST_SILENCE_S or self._deadline_s is not None:
                allowed_s = max(self._allowed_silence(work.partition) for work in worker.running)
                if silent_s > allowed_s:
                    found.append((worker.name, silent_s))
        return found

    def expected_s(self, partition: Partition) -> float | None:
        """Return how long an attempt should take, from those that are done; None before any is.

        Never less than the mean: small partitions have their fixed costs too.
        """
        if not self._num_done:
            return None
        by_bytes = partition.num_bytes * self._done_s / max(self._done_bytes, 1)
        return max(by_bytes, self._done_s / self._num_done)

    def _allowed_silence(self, partition: Partition) -> float:
        if self._deadline_s is not None:
            return self._deadline_s
        expected_s = self.expected_s(partition)
        if expected_s is None:
            return SILENT_AT_FIRST_S
        return max(LEAST_SILENCE_S, SILENT_AFTER * expected_s)

    def _next(self, depth: int) -> _Worker | None:
        """Take a worker that has ``depth`` partitions; entries of ``_open`` may be out of date."""
        line = self._open[depth]
        while line:
            worker = line.popleft()
            alive = self._workers.get(worker.name) is worker
            if alive and not worker.alone and len(worker.running) == depth:
                return worker
        return None

    def _give(self, worker: _Worker, work: Work, now: float) -> tuple[str, Work]:
        if not worker.running:
            worker.moved_at = now
        worker.running[work] = now
        self._tries.setdefault(work.partition.index, []).append(worker)
        self._stand_in_line(worker)
        return worker.name, work

    def _take(self, worker: _Worker, work: Work, now: float) -> float:
        started = worker.running.pop(work)
        worker.moved_at = now
        worker.alone = False
        self._leave(worker, work.partition.index)
        self._stand_in_line(worker)
        return started

    def _leave(self, worker: _Worker, index: int) -> None:
        tries = self._tries[index]
        tries.remove(worker)
        if not tries:
            del self._tries[index]

    def _stand_in_line(self, worker: _Worker) -> None:
        if not worker.alone and len(worker.running) < self._ahead:
            self._open[len(worker.running)].append(worker)

    def _is_done(self, work: Work) -> bool:
        return self._shared.get(work.partition.index) is not None

    def _second_attempts(self, now: float) -> Iterator[tuple[str, Work]]:
        late: list[tuple[float, Work]] = []
        for worker in self._workers.values():
            for work, started in worker.running.items():
                expected_s = self.expected_s(work.partition)
                if work.kind != "whole" or expected_s is None or self._is_done(work):
                    continue
                if len(self._tries[work.partition.index]) > 1 or worker.alone:
                    continue
                took_s = now - started
                if took_s > max(STRAGGLES_AFTER * expected_s, LEAST_STRAGGLE_S):
                    late.append((took_s / expected_s, work))
        late.sort(key=lambda item: item[0], reverse=True)
        for _, work in late:
            idle = self._next(0)
            if idle is None:
                return
            self._shared.setdefault(work.partition.index, None)
            self.counts.second += 1
            yield self._give(idle, Work(work.partition), now)

    def _after_death(self, worker: _Worker, work: Work, cause: str, *, blame: bool) -> None:
        index = work.partition.index
        self._leave(worker, index)
        if self._is_done(work):
            return
        if not blame:
            self._excuses[index] += 1
            blame = self._excuses[index] > MOST_EXCUSES
        search = self._searches.get(index)
        if work.kind == "probe" and blame and search is not None:
            search.answer(died=True)
            self._search_on(search, cause)
            return
        self.counts.failed += 1
        if self._tries.get(index):
            return  # the other attempt is still at work
        self.counts.retried += 1
        if not blame:
            self._suspects.append(Work(work.partition, work.kind, work.rows))
            return
        is_suspect = self._search_rows and self._attempts.is_suspect(work.partition)
        if work.kind == "whole" and is_suspect:
            self._begin_search(work.partition, cause)
        else:
            self._attempts.after_death(work.partition, cause)
            self._suspects.append(Work(work.partition, work.kind, work.rows))

    def _begin_search(self, partition: Partition, cause: str) -> None:
        if len(partition.masked) >= MOST_POISON:
            raise PoisonPartitionError(
                f"{partition.named}: {MOST_POISON} of its samples end the process that works on "
                f"them, at rows {', '.join(map(str, partition.masked))}, and there are more "
                f"({cause})",
                hint="mend or remove the file, or leave it out of source.urls",
            )
        self._searches[partition.index] = Isolation(partition)
        self._suspects.append(Work(partition, "count"))

    def _search_on(self, search: Isolation, cause: str) -> None:
        """Queue the next probe, or the partition with the row that was found masked."""
        partition = search.partition
        if search.found is not None:
            masked = tuple(sorted({*partition.masked, search.found}))
            del self._searches[partition.index]
            self._attempts.forgive(partition)  # each row that is found is progress
            self._suspects.append(Work(replace(partition, masked=masked)))
        elif search.failed:
            del self._searches[partition.index]
            # Perhaps rows do it together, or the machine did: count it, and try it once more.
            self._attempts.after_death(partition, cause)
            self._suspects.append(Work(partition))
        else:
            self._suspects.append(Work(partition, "probe", search.next()))


def _check_same(first: PartitionResult, second: PartitionResult) -> None:
    def digests(result: PartitionResult) -> list[tuple[str, str]]:
        return [(shard.path, shard.sha256) for shard in result.shards]

    if digests(first) != digests(second):
        raise IntegrityError(
            f"partition {first.partition}: {first.worker} and {second.worker} wrote different "
            "bytes for it",
            hint="an operator is not deterministic on these nodes; compare their libraries and "
            "hardware",
        )
