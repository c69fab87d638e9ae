"""What a run did, as figures: the content of ``report.json`` and of the final table."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.protocols import PartitionResult, StageCounts

REPORT_VERSION = 1


@dataclass(frozen=True, slots=True)
class StageFigures:
    """One stage's share of the work.

    Rates are those of all workers together, over the time that they were at work.

    Attributes:
        name: ``read``, ``cpu``, ``device``, ... or ``write``.
        samples, num_bytes, tokens: What it handled.
        samples_per_s, bytes_per_s, tokens_per_s: The same per second.
        busy, starved, blocked: Shares of the time of its threads, 0 to 1: working, waiting for
            input, waiting for room behind it.
        threads: Threads per worker.
        steps: Operator -> share of the stage's busy time.
    """

    name: str
    samples: int
    num_bytes: int
    tokens: int
    samples_per_s: float
    bytes_per_s: float
    tokens_per_s: float
    busy: float
    starved: float
    blocked: float
    threads: int
    steps: Mapping[str, float] = field(default_factory=dict)

    @property
    def slowest_step(self) -> str | None:
        """The operator that takes most of its time; None for ``read`` and ``write``."""
        return max(self.steps, key=self.steps.__getitem__, default=None)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in figures.

    Attributes:
        name, output, fingerprint, engine, warnings: Of the run.
        num_partitions: All of them; ``num_resumed`` were done by earlier runs.
        num_workers: Workers that did some of them.
        wall_s: Seconds from this run's beginning to its end.
        input_samples, samples, filtered, quarantined: They add up: the first is the sum of the
            others.
        filtered_by, quarantined_by: The same by reason.
        tokens: Token field -> ids written.
        num_shards, num_bytes: What was written.
        stages: In order.
    """

    name: str
    output: str
    fingerprint: str
    engine: str
    warnings: Sequence[str]
    num_partitions: int
    num_resumed: int
    num_workers: int
    wall_s: float
    input_samples: int
    samples: int
    filtered: int
    quarantined: int
    filtered_by: Mapping[str, int]
    quarantined_by: Mapping[str, int]
    tokens: Mapping[str, int]
    num_shards: int
    num_bytes: int
    stages: Sequence[StageFigures]
    version: int = REPORT_VERSION

    @property
    def limit(self) -> StageFigures | None:
        """The stage that held the others back: the busiest; None when nothing was done."""
        return max(self.stages, key=lambda stage: stage.busy, default=None)

    def to_json(self) -> bytes:
        """Return the bytes of ``report.json``."""
        limit = self.limit and {"stage": self.limit.name, "step": self.limit.slowest_step}
        content = {**asdict(self), "limit": limit}
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "RunSummary":
        """Parse ``report.json``."""
        raw: dict[str, Any] = json.loads(data)
        raw.pop("limit", None)  # follows from the rest
        raw["stages"] = [StageFigures(**stage) for stage in raw["stages"]]
        return cls(**raw)


@dataclass(slots=True)
class Sums:
    """What commit records add up to; they are added one by one, and none is kept.

    Attributes:
        num_partitions: Records that were added.
        num_input, num_written: Samples read, rows written.
        filtered, quarantined: Reason -> samples.
        tokens: Token field -> ids written.
        num_shards, num_bytes: What was written.
        workers: Who did it.
        stages: Stage name -> what it did, in order.
        superseded: Partitions whose quarantined samples were retried: they count in the records of
            the retry.
    """

    num_partitions: int = 0
    num_input: int = 0
    num_written: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    num_shards: int = 0
    num_bytes: int = 0
    workers: set[str] = field(default_factory=set)
    stages: "dict[str, StageSums]" = field(default_factory=dict)
    superseded: Set[int] = frozenset()

    @property
    def num_filtered(self) -> int:
        """Samples that filters dropped."""
        return self.filtered.total()

    @property
    def num_quarantined(self) -> int:
        """Samples that could not be used."""
        return self.quarantined.total()

    def add(self, result: PartitionResult) -> None:
        """Add a commit record."""
        self.num_partitions += 1
        is_superseded = result.partition in self.superseded
        self.num_input += result.num_input - is_superseded * result.num_quarantined
        self.num_written += result.num_written
        _add(self.filtered, result.filtered)
        if not is_superseded:
            _add(self.quarantined, result.quarantined)
        for shard in result.shards:
            self.num_shards += 1
            self.num_bytes += shard.num_bytes
            _add(self.tokens, shard.tokens)
        self.workers.add(result.worker)
        for name, counts in result.stages.items():
            sums = self.stages.get(name)
            if sums is None:
                sums = self.stages[name] = StageSums()
            sums.add(counts)

    def figures(self) -> list[StageFigures]:
        """Return the figures of every stage.

        A worker reads its next partition while it writes the last, so partition seconds overlap;
        the time of a stage's threads is therefore what it was busy, starved and blocked, together.
        """
        return [_figures(name, sums, len(self.workers)) for name, sums in self.stages.items()]


@dataclass(slots=True)
class StageSums:
    """``StageCounts`` of many partitions, added in place: a run has a million of them."""

    samples: int = 0
    num_bytes: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    starved_s: float = 0.0
    blocked_s: float = 0.0
    threads: int = 1
    steps: dict[str, float] = field(default_factory=dict)

    def add(self, counts: StageCounts) -> None:
        """Add what one partition's stage did."""
        self.samples += counts.samples
        self.num_bytes += counts.num_bytes
        self.tokens += counts.tokens
        self.busy_s += counts.busy_s
        self.starved_s += counts.starved_s
        self.blocked_s += counts.blocked_s
        self.threads = max(self.threads, counts.threads)
        for step, seconds in counts.steps.items():
            self.steps[step] = self.steps.get(step, 0.0) + seconds


def summarize(
    sums: Sums,
    *,
    name: str,
    output: str,
    fingerprint: str,
    num_resumed: int,
    started_at: float,
    engine: str,
    warnings: Sequence[str],
) -> RunSummary:
    """Return the figures of a run; records carry their own times, so earlier runs count too."""
    return RunSummary(
        name=name,
        output=output,
        fingerprint=fingerprint,
        engine=engine,
        warnings=list(warnings),
        num_partitions=sums.num_partitions,
        num_resumed=num_resumed,
        num_workers=len(sums.workers),
        wall_s=round(time.time() - started_at, 3),
        input_samples=sums.num_input,
        samples=sums.num_written,
        filtered=sums.num_filtered,
        quarantined=sums.num_quarantined,
        filtered_by=by_reason(sums.filtered),
        quarantined_by=by_reason(sums.quarantined),
        tokens=dict(sums.tokens),
        num_shards=sums.num_shards,
        num_bytes=sums.num_bytes,
        stages=sums.figures(),
    )


def by_reason(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts sorted by reason."""
    return dict(sorted(counts.items()))


def _add(total: Counter[str], counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        total[name] += count


def _figures(name: str, sums: StageSums, workers: int) -> StageFigures:
    threads = sums.threads
    # Busy seconds add up over threads, waiting is measured once for all of them.
    thread_s = max(sums.busy_s / threads + sums.starved_s + sums.blocked_s, 1e-9)
    total_steps = sum(sums.steps.values()) or 1.0
    return StageFigures(
        name=name,
        samples=sums.samples,
        num_bytes=sums.num_bytes,
        tokens=sums.tokens,
        samples_per_s=round(sums.samples * workers / thread_s, 1),
        bytes_per_s=round(sums.num_bytes * workers / thread_s, 1),
        tokens_per_s=round(sums.tokens * workers / thread_s, 1),
        busy=round(sums.busy_s / threads / thread_s, 4),
        starved=round(sums.starved_s / thread_s, 4),
        blocked=round(sums.blocked_s / thread_s, 4),
        threads=threads,
        steps={step: round(seconds / total_steps, 4) for step, seconds in sums.steps.items()},
    )
