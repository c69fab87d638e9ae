"""What commit records add up to."""

import random
from dataclasses import replace

from pipeline.protocols import PartitionResult, Shard, StageCounts
from pipeline.report.summary import Sums, summarize


def result(index: int, worker: str, **changes: object) -> PartitionResult:
    shard = Shard(f"shards/{index}", 100, "ab", 6, {"ids": 50, "text": 7}, ())
    stages = {
        "read": StageCounts(10, 1000, busy_s=1.0, blocked_s=3.0),
        "cpu": StageCounts(10, 900, 20, 6.0, 1.0, 0.0, 2, {"decode": 4.5, "resize": 1.5}),
    }
    found = PartitionResult(
        partition=index,
        num_input=10,
        num_written=6,
        filtered={"length_filter: too_short": 1, "length_filter: too_long": 1},
        quarantined={"decode: SampleError": 2},
        shards=(shard, shard),
        quarantine=None,
        golden=None,
        stages=stages,
        wall_s=4.0,
        worker=worker,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


RESULTS = [
    result(0, "a"),
    result(1, "b"),
    result(2, "a", filtered={}, quarantined={"read: InvalidJson": 4}, shards=()),
    result(3, "b", num_input=0, num_written=0, filtered={}, quarantined={}, shards=(), stages={}),
]


def sums(results: list[PartitionResult]) -> Sums:
    found = Sums()
    for each in results:
        found.add(each)
    return found


def test_counts_add_up_by_reason_and_field() -> None:
    summary = summarize(
        sums(RESULTS),
        name="n",
        output="o",
        fingerprint="f",
        num_resumed=1,
        started_at=0.0,
        engine="inline",
        warnings=["w"],
    )
    assert (summary.num_partitions, summary.num_resumed, summary.num_workers) == (4, 1, 2)
    assert summary.input_samples == 30
    assert (summary.samples, summary.filtered, summary.quarantined) == (18, 4, 8)
    assert summary.samples + summary.filtered + summary.quarantined == summary.input_samples
    assert list(summary.filtered_by.items()) == [
        ("length_filter: too_long", 2),
        ("length_filter: too_short", 2),
    ]
    assert list(summary.quarantined_by.items()) == [
        ("decode: SampleError", 4),
        ("read: InvalidJson", 4),
    ]
    assert summary.tokens == {"ids": 200, "text": 28}
    assert (summary.num_shards, summary.num_bytes) == (4, 400)


def test_stage_figures_are_shares_of_the_threads_time() -> None:
    read, cpu = sums(RESULTS).figures()
    assert (read.name, read.samples, read.num_bytes, read.threads) == ("read", 30, 3000, 1)
    assert (read.busy, read.starved, read.blocked) == (0.25, 0.0, 0.75)
    assert read.samples_per_s == 5.0  # 30 samples in 12 s of one thread, two workers
    # Three partitions of 6 s busy in two threads and 1 s waiting: 4 s of each thread.
    assert (cpu.busy, cpu.starved, cpu.blocked) == (0.75, 0.25, 0.0)
    assert (cpu.samples_per_s, cpu.tokens_per_s) == (5.0, 10.0)
    assert cpu.steps == {"decode": 0.75, "resize": 0.25}


def test_the_order_of_commits_does_not_matter() -> None:
    shuffled = list(RESULTS)
    random.Random(3).shuffle(shuffled)
    assert shuffled != RESULTS
    assert sums(shuffled) == sums(RESULTS)


def test_nothing_adds_up_to_nothing() -> None:
    assert sums([]).figures() == []
    assert sums([]).num_quarantined == 0
