"""What a run exports as metrics: the definitions, and how they follow from what the driver knows.

A ``Meter`` takes the values; the Ray engine's hands them to Prometheus. Ray writes ``ray_`` before
every name.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from pipeline.protocols import Engine, Partition, PartitionResult, StageCounts, add_counts

INTERVAL_S = 5.0
SETTLE_S = 10.0
"""A commit joins the stages' counts this long after it came. Until then the engine's last look at
its workers may still hold the partition, which would count it twice."""

JOB = "job_name"
"""Not ``job``: Prometheus gives every series a ``job`` of its own, the name of what it scraped."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: As it is exported, but for the exporter's prefix.
        kind: A counter only grows while a driver lives; a gauge is how things stand.
        description: One line, for people.
        unit: What it counts.
        tag_keys: What every value of it is told apart by.
    """

    name: str
    kind: Literal["counter", "gauge"]
    description: str
    unit: str
    tag_keys: tuple[str, ...]


def _counter(name: str, unit: str, description: str, *tags: str) -> Metric:
    return Metric(f"tokenmill_{name}_total", "counter", description, unit, (JOB, *tags))


def _gauge(name: str, unit: str, description: str) -> Metric:
    return Metric(f"tokenmill_{name}", "gauge", description, unit, (JOB,))


SAMPLES = _counter("samples", "samples", "Samples that a stage finished.", "stage")
BYTES = _counter("bytes", "bytes", "Bytes that a stage read, took in or wrote.", "stage")
TOKENS = _counter("tokens", "tokens", "Ids that a stage produced.", "stage")
BUSY = _counter(
    "busy_seconds",
    "seconds",
    "Seconds of work of a stage, over its threads: busy, starved and blocked add up to its time.",
    "stage",
)
STARVED = _counter("starved_seconds", "seconds", "Seconds that a stage waited for input.", "stage")
BLOCKED = _counter(
    "blocked_seconds", "seconds", "Seconds that a stage waited for room behind it.", "stage"
)
DONE = _counter("partitions_done", "partitions", "Partitions that this driver committed.")
FAILED = _counter("partitions_failed", "attempts", "Attempts at a partition that failed.")
RETRIED = _counter("partitions_retried", "attempts", "Attempts at a partition beyond its first.")
QUARANTINED = _counter(
    "quarantined_samples", "samples", "Samples that could not be used, by reason.", "reason"
)
PARTITIONS = _gauge("partitions", "partitions", "Partitions of the plan.")
LEFT = _gauge(
    "partitions_left", "partitions", "Partitions that neither this driver nor one before did."
)
WORKERS = _gauge("workers", "workers", "Workers that are ready.")

METRICS: tuple[Metric, ...] = (
    SAMPLES,
    BYTES,
    TOKENS,
    BUSY,
    STARVED,
    BLOCKED,
    DONE,
    FAILED,
    RETRIED,
    QUARANTINED,
    PARTITIONS,
    LEFT,
    WORKERS,
)


class Meter(Protocol):
    """Takes values of metrics to wherever they are looked at."""

    def add(self, metric: Metric, value: float, tags: Mapping[str, str]) -> None:
        """Raise a counter by ``value``, which is above 0."""
        ...

    def set(self, metric: Metric, value: float, tags: Mapping[str, str]) -> None:
        """Say how a gauge stands."""
        ...


class RunMetrics:
    """Records a run while it goes on. Use it as a context manager around the run.

    What the stages did is what is committed and what the workers report of the rest. The latter
    falls when a worker dies; its work is then done again. So a counter stands still until there is
    more than it ever showed, and after the last commit it holds what the commits say.

    Args:
        job: The job's name.
        meter: Takes the values.
        interval_s: Seconds between two looks at the engine.
        clock: Tells seconds.
    """

    def __init__(
        self,
        job: str,
        meter: Meter,
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tags = {JOB: job}
        self._meter = meter
        self._interval_s, self._clock = interval_s, clock
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._num_partitions = 0
        self._num_left = 0
        self._finished: dict[str, StageCounts] = {}
        self._recent: deque[tuple[float, Mapping[str, StageCounts]]] = deque()
        self._shown: dict[tuple[str, ...], float] = {}

    def waiting(self, message: str) -> None:
        """Nothing is recorded before a run begins."""

    def decided(self, warning: str) -> None:
        """It is no figure."""

    def begin(self, partitions: Sequence[Partition], done: Set[int], engine: Engine) -> None:
        """Start recording; ``done`` are partitions of earlier runs."""
        with self._lock:  # what was recorded of a beginning before this one is done anew
            self._num_partitions, self._num_left = len(partitions), len(partitions) - len(done)
            self._engine, self._finished = engine, {}
            self._recent.clear()
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._record_often, name="metrics", daemon=True)
        self._thread.start()

    def committed(self, result: PartitionResult) -> None:
        """Count a committed partition."""
        with self._lock:
            self._recent.append((self._clock(), result.stages))
            self._num_left -= 1
            self._meter.add(DONE, 1, self._tags)
            for reason, number in result.quarantined.items():
                self._meter.add(QUARANTINED, number, {**self._tags, "reason": reason})
        if not self._num_left:
            self.record()  # nobody may ask again before the engine is closed

    def record(self) -> None:
        """Look at the engine once."""
        if self._engine is None:
            return
        running, attempts = self._engine.progress(), self._engine.attempts()
        with self._lock:
            if self._num_left:
                self._settle(self._clock() - SETTLE_S)
                counts = add_counts(self._finished, running)
            else:
                self._settle(self._clock())
                counts = self._finished
            for stage, part in counts.items():
                for metric, total in _totals(part).items():
                    self._raise(metric, total, {**self._tags, "stage": stage})
            self._raise(FAILED, attempts.failed, self._tags)
            self._raise(RETRIED, attempts.retried, self._tags)
            self._meter.set(PARTITIONS, self._num_partitions, self._tags)
            self._meter.set(LEFT, self._num_left, self._tags)
            self._meter.set(WORKERS, self._engine.num_workers, self._tags)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _record_often(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.record()

    def _settle(self, until: float) -> None:
        """Let commits up to ``until`` join the stages' counts."""
        while self._recent and self._recent[0][0] <= until:
            self._finished = add_counts(self._finished, self._recent.popleft()[1])

    def _raise(self, metric: Metric, total: float, tags: Mapping[str, str]) -> None:
        """Bring a counter up to ``total``, unless it is there already."""
        key = (metric.name, *tags.values())
        grown = total - self._shown.get(key, 0.0)
        if grown > 0:
            self._shown[key] = total
            self._meter.add(metric, grown, tags)


def _totals(counts: StageCounts) -> dict[Metric, float]:
    return {
        SAMPLES: counts.samples,
        BYTES: counts.num_bytes,
        TOKENS: counts.tokens,
        # Busy seconds add up over threads, waiting is measured once for all of them.
        BUSY: counts.busy_s / counts.threads,
        STARVED: counts.starved_s,
        BLOCKED: counts.blocked_s,
    }
