"""What is exported: it never falls, counts nothing twice, and ends at what was committed."""

import re
import threading
import time
from collections import defaultdict
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.protocols import AttemptCounts, StageCounts
from pipeline.report import metrics
from pipeline.report.metrics import METRICS, SETTLE_S, Metric, RunMetrics
from tests.unit.fake_engine import FakeEngine, counts, partition, result

NAMES = [
    "tokenmill_samples_total",
    "tokenmill_bytes_total",
    "tokenmill_tokens_total",
    "tokenmill_busy_seconds_total",
    "tokenmill_starved_seconds_total",
    "tokenmill_blocked_seconds_total",
    "tokenmill_partitions_done_total",
    "tokenmill_partitions_failed_total",
    "tokenmill_partitions_retried_total",
    "tokenmill_quarantined_samples_total",
    "tokenmill_partitions",
    "tokenmill_partitions_left",
    "tokenmill_workers",
]
"""Dashboards and alerts use these: take none away and rename none without a new major version."""

TAKEN = {"job", "instance", "le", "quantile", "__name__"}
"""Labels that Prometheus uses itself; a scraped one is renamed, or says something else."""


class Recorder:
    """A meter that adds up, and refuses what Ray's and Prometheus would."""

    def __init__(self) -> None:
        self.totals: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def add(self, metric: Metric, value: float, tags: Mapping[str, str]) -> None:
        assert metric.kind == "counter"
        assert value > 0
        self.totals[self._key(metric, tags)] += value

    def set(self, metric: Metric, value: float, tags: Mapping[str, str]) -> None:
        assert metric.kind == "gauge"
        self.totals[self._key(metric, tags)] = value

    def _key(self, metric: Metric, tags: Mapping[str, str]) -> tuple[str, ...]:
        assert metric in METRICS
        assert set(tags) == set(metric.tag_keys)
        assert all(isinstance(value, str) for value in tags.values())
        assert tags["job_name"] == "photos"
        return (metric.name, *(value for key, value in tags.items() if key != "job_name"))


class Run:
    """A run under observation, whose clock and engine the test turns."""

    def __init__(self, num_partitions: int, done: int = 0) -> None:
        self.now = 100.0
        self.engine = FakeEngine({})
        self.meter = Recorder()
        self.metrics = RunMetrics(
            "photos",
            self.meter,
            interval_s=3600.0,
            clock=lambda: self.now,
        )
        partitions = [partition(index) for index in range(num_partitions)]
        with self.metrics:
            self.metrics.begin(partitions, set(range(done)), self.engine)

    def at_work(self, samples: int) -> None:
        """Let the workers have done so many samples of what they are at, and look."""
        self.engine.running = counts(samples, 100 * samples) if samples else {}
        self.metrics.record()

    def shown(self, name: str, *tags: str) -> float:
        return self.meter.totals.get((f"tokenmill_{name}", *tags), 0.0)


def test_names_are_frozen() -> None:
    assert [metric.name for metric in METRICS] == NAMES


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_definitions_are_what_prometheus_takes(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.tag_keys[0] == "job_name"
    assert not TAKEN & set(metric.tag_keys)
    assert metric.description.endswith(".")
    assert metric.unit


def test_what_workers_are_at_counts_before_it_is_committed() -> None:
    run = Run(3)
    run.at_work(5)
    assert run.shown("samples_total", "read") == 5
    assert run.shown("bytes_total", "cpu") == 500
    assert run.shown("tokens_total", "write") == 5 * 256
    assert run.shown("starved_seconds_total", "write") == 1.0
    assert run.shown("workers") == 2


def test_a_commit_that_the_engine_still_shows_is_not_counted_twice() -> None:
    run = Run(3)
    run.at_work(10)
    run.metrics.committed(result(0))
    run.at_work(10)  # the engine has not looked at its workers since
    run.now += SETTLE_S / 2
    run.at_work(0)
    assert run.shown("samples_total", "read") == 10
    run.now += SETTLE_S / 2
    run.at_work(3)
    assert run.shown("samples_total", "read") == 13


def test_a_dead_worker_takes_nothing_back() -> None:
    run = Run(3)
    seen = []
    for samples in (8, 0, 5, 9):
        run.at_work(samples)
        seen.append(run.shown("samples_total", "read"))
    assert seen == [8, 8, 8, 9]


def test_the_last_commit_makes_the_counters_whole_at_once() -> None:
    """The engine is closed right after it, and nobody looks again."""
    run = Run(2)
    run.at_work(4)
    run.metrics.committed(result(0))
    run.metrics.committed(result(1))
    assert run.shown("samples_total", "read") == 20
    assert run.shown("busy_seconds_total", "cpu") == 8.0
    assert run.shown("partitions_done_total") == 2
    assert run.shown("partitions_left") == 0


def test_busy_starved_and_blocked_add_up_to_a_stages_time() -> None:
    run = Run(1)
    stage = StageCounts(1, 1, busy_s=8.0, starved_s=1.0, blocked_s=0.5, threads=4)
    run.metrics.committed(result(0, stages={"cpu": stage}))
    names = ("busy", "starved", "blocked")
    assert [run.shown(f"{name}_seconds_total", "cpu") for name in names] == [2.0, 1.0, 0.5]


def test_a_resumed_run_counts_its_own_partitions_only() -> None:
    run = Run(4, done=2)
    run.metrics.committed(result(2))
    run.metrics.record()
    assert run.shown("partitions") == 4
    assert run.shown("partitions_left") == 1
    assert run.shown("partitions_done_total") == 1


def test_quarantine_is_told_by_reason() -> None:
    run = Run(3)
    run.metrics.committed(result(0, quarantined=2))
    run.metrics.committed(result(1, quarantined=1))
    assert run.shown("quarantined_samples_total", "decode_image: SampleError") == 3


def test_failed_attempts_are_taken_from_the_engine() -> None:
    run = Run(3)
    for failed, retried in ((0, 0), (2, 1), (2, 2)):
        run.engine.tried = AttemptCounts(failed, retried)
        run.metrics.record()
    assert run.shown("partitions_failed_total") == 2
    assert run.shown("partitions_retried_total") == 2


def test_it_looks_by_itself_until_the_run_ends() -> None:
    meter, engine = Recorder(), FakeEngine(counts(5, 500))
    with RunMetrics("photos", meter, interval_s=0.01) as recorded:
        recorded.begin([partition(0)], set(), engine)
        while ("tokenmill_samples_total", "write") not in meter.totals:
            time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]


def test_a_run_with_nothing_to_do_records_nothing() -> None:
    meter = Recorder()
    with RunMetrics("photos", meter) as recorded:
        recorded.record()
    assert not meter.totals


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    events=st.lists(
        st.tuples(st.sampled_from(["work", "die", "commit", "wait"]), st.integers(0, 5))
    ),
)
def test_whatever_happens_counters_end_at_what_was_committed(
    sizes: list[int], events: list[tuple[str, int]]
) -> None:
    """The engine's last look is as old as the last wait; every wait is shorter than it may be."""
    run = Run(len(sizes))
    at_work = dict.fromkeys(range(len(sizes)), 0)
    most = 0.0

    def commit(index: int) -> None:
        del at_work[index]
        run.metrics.committed(result(index, stages={"read": StageCounts(samples=sizes[index])}))

    for event, index in events:
        if event == "wait":
            run.now += SETTLE_S
            run.engine.running = {"read": StageCounts(samples=sum(at_work.values()))}
        elif index in at_work and event == "commit":
            commit(index)
        elif index in at_work:
            at_work[index] = min(at_work[index] + 1, sizes[index]) if event == "work" else 0
        run.metrics.record()
        assert most <= run.shown("samples_total", "read") <= sum(sizes)
        most = run.shown("samples_total", "read")
    for index in list(at_work):
        commit(index)
    assert run.shown("samples_total", "read") == sum(sizes)
    assert run.shown("partitions_done_total") == len(sizes)


def test_every_metric_is_exported() -> None:
    run = Run(2)
    run.engine.tried = AttemptCounts(1, 1)
    stage = StageCounts(1, 1, 1, 1.0, 1.0, 1.0)
    run.metrics.committed(result(0, quarantined=1))
    run.metrics.committed(result(1, stages={"cpu": stage}))
    assert {key[0] for key in run.meter.totals} == {metric.name for metric in metrics.METRICS}
