"""What a run did, as figures: the content of ``report.json`` and of the final table."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

    def to_json(self) -> bytes:
        """Return the bytes of ``report.json``."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "RunSummary":
        """Parse ``report.json``."""
        raw: dict[str, Any] = json.loads(data)
        raw["stages"] = [StageFigures(**stage) for stage in raw["stages"]]
        return cls(**raw)


def summarize(
    results: Sequence[PartitionResult],
    *,
    name: str,
    output: str,
    fingerprint: str,
    num_resumed: int,
    started_at: float,
    engine: str,
    warnings: Sequence[str],
) -> RunSummary:
    """Sum commit records up; they carry their own times, so earlier runs count too."""
    shards = [shard for result in results for shard in result.shards]
    tokens: Counter[str] = Counter()
    for shard in shards:
        tokens.update(shard.tokens)
    return RunSummary(
        name=name,
        output=output,
        fingerprint=fingerprint,
        engine=engine,
        warnings=list(warnings),
        num_partitions=len(results),
        num_resumed=num_resumed,
        num_workers=len({result.worker for result in results}),
        wall_s=round(time.time() - started_at, 3),
        input_samples=sum(result.num_input for result in results),
        samples=sum(result.num_written for result in results),
        filtered=sum(result.num_filtered for result in results),
        quarantined=sum(result.num_quarantined for result in results),
        filtered_by=add_reasons(result.filtered for result in results),
        quarantined_by=add_reasons(result.quarantined for result in results),
        tokens=dict(tokens),
        num_shards=len(shards),
        num_bytes=sum(shard.num_bytes for shard in shards),
        stages=stage_figures(results),
    )


def stage_figures(results: Sequence[PartitionResult]) -> list[StageFigures]:
    """Return the figures of every stage over finished partitions.

    A worker reads its next partition while it writes the last, so partition seconds overlap;
    the time of a stage's threads is therefore what it was busy, starved and blocked, together.
    """
    names = list(dict.fromkeys(name for result in results for name in result.stages))
    workers = len({result.worker for result in results})
    return [
        _figures(name, [r.stages[name] for r in results if name in r.stages], workers)
        for name in names
    ]


def _figures(name: str, parts: Sequence[StageCounts], workers: int) -> StageFigures:
    threads = max(part.threads for part in parts)
    busy_s = sum(part.busy_s for part in parts)
    starved_s = sum(part.starved_s for part in parts)
    blocked_s = sum(part.blocked_s for part in parts)
    # Busy seconds add up over threads, waiting is measured once for all of them.
    thread_s = max(busy_s / threads + starved_s + blocked_s, 1e-9)
    steps: Counter[str] = Counter()
    for part in parts:
        steps.update(part.steps)
    samples = sum(part.samples for part in parts)
    size = sum(part.num_bytes for part in parts)
    tokens = sum(part.tokens for part in parts)
    total_steps = sum(steps.values()) or 1.0
    return StageFigures(
        name=name,
        samples=samples,
        num_bytes=size,
        tokens=tokens,
        samples_per_s=round(samples * workers / thread_s, 1),
        bytes_per_s=round(size * workers / thread_s, 1),
        tokens_per_s=round(tokens * workers / thread_s, 1),
        busy=round(busy_s / threads / thread_s, 4),
        starved=round(starved_s / thread_s, 4),
        blocked=round(blocked_s / thread_s, 4),
        threads=threads,
        steps={step: round(seconds / total_steps, 4) for step, seconds in steps.items()},
    )


def add_reasons(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up counts by reason, sorted by reason."""
    total: Counter[str] = Counter()
    for item in counts:
        total.update(item)
    return dict(sorted(total.items()))
