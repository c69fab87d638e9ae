"""A worker's life: what one bad partition costs, retries, and being stopped at work."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from operators import registry
from pipeline.engines import attempts
from pipeline.engines.inline import InlineEngine
from pipeline.errors import IntegrityError, SetupError, TokenmillError, TransientError
from pipeline.protocols import Partition, PartitionResult
from pipeline.runner import prepare, preview_plan
from pipeline.sinks import ArrowSink
from pipeline.stages import Worker, WorkerTask
from tests.corpus import data_files, parse, text_job, write_texts
from tests.faulty_operators import announce

pytestmark = pytest.mark.timeout(60)  # a worker that hangs must not hang the suite


@pytest.fixture
def misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(announce(tmp_path / "extension"))
    registry.all_classes.cache_clear()
    yield
    registry.all_classes.cache_clear()


def planned(job: dict[str, Any]) -> tuple[WorkerTask, list[Partition]]:
    prepared = prepare(parse(job))
    partitions, _ = preview_plan(prepared)
    return prepared.task("test"), partitions


def failing(folder: Path, **settings: Any) -> dict[str, Any]:
    """Return a text job whose operator misbehaves at line 5 of the second file."""
    step = {"name": "misbehave", "marks": str(folder), "at_key": "1.jsonl:5", **settings}
    operators = [step, {"name": "byte_text"}]
    return text_job(write_texts(folder / "in"), folder / "out", operators=operators)


def shards(folder: Path) -> list[str]:
    return [name for name in data_files(folder / "out") if name.startswith("shards/")]


def test_partitions_one_after_another(tmp_path: Path) -> None:
    task, partitions = planned(text_job(write_texts(tmp_path / "in"), tmp_path / "out"))
    worker = Worker(task)
    try:
        results = [f.result() for f in [worker.submit(p) for p in partitions]]
        assert worker.progress() == {}
    finally:
        worker.close()
    assert [r.partition for r in results] == [0, 1, 2]
    assert [r.num_written for r in results] == [10, 10, 10]
    assert {r.worker for r in results} == {"test"}
    assert list(results[0].stages) == ["read", "cpu", "write"]
    assert [results[0].stages[name].samples for name in results[0].stages] == [10, 10, 10]
    assert shards(tmp_path) == [f"shards/{i:07d}-000.arrow" for i in range(3)]


def test_an_error_of_the_source_fails_its_partition_alone(tmp_path: Path) -> None:
    task, partitions = planned(text_job(write_texts(tmp_path / "in"), tmp_path / "out"))
    (tmp_path / "in" / "1.jsonl").write_text('{"text": "another"}\n')
    worker = Worker(task)
    try:
        futures = [worker.submit(partition) for partition in partitions]
        assert futures[0].result().num_written == 10
        with pytest.raises(IntegrityError, match=r"1\.jsonl: the object is not the one"):
            futures[1].result()
        assert futures[2].result().num_written == 10
    finally:
        worker.close()
    assert shards(tmp_path) == ["shards/0000000-000.arrow", "shards/0000002-000.arrow"]


@pytest.mark.parametrize(
    ("how", "error"), [("transient", TransientError), ("raise", None), ("panic", None)]
)
def test_an_error_of_an_operator(
    tmp_path: Path, misbehave: None, how: str, error: type[TokenmillError] | None
) -> None:
    """Transient: the partition is worth another attempt. Anything else costs at most the row."""
    task, partitions = planned(failing(tmp_path, how=how, times=100))
    worker = Worker(task)
    try:
        futures = [worker.submit(partition) for partition in partitions]
        if error is not None:
            with pytest.raises(error, match="the store is away"):
                futures[1].result()
        else:
            assert futures[1].result().quarantined == {"misbehave: SampleError": 1}
        assert [futures[i].result().num_written for i in (0, 2)] == [10, 10]
    finally:
        worker.close()
    left = [0, 2] if error is not None else [0, 1, 2]
    assert shards(tmp_path) == [f"shards/{i:07d}-000.arrow" for i in left]


def test_an_error_while_writing_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ArrowSink.write

    def write(self: ArrowSink, columns: Any, files: Any, rows: Any) -> None:
        monkeypatch.setattr("pipeline.sinks.arrow.BATCH_BYTES", 16)  # so that a shard is open
        original(self, columns, files, rows)
        if rows[-1] > 6:
            raise TransientError("the store is away")

    monkeypatch.setattr(ArrowSink, "write", write)
    task, partitions = planned(text_job(write_texts(tmp_path / "in"), tmp_path / "out"))
    worker = Worker(task)
    try:
        with pytest.raises(TransientError, match="the store is away"):
            worker.submit(partitions[0]).result()
    finally:
        worker.close()
    assert list((tmp_path / "out").rglob("*.*")) == []


def test_a_store_that_cannot_even_drop_the_shard_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise TransientError("the store is away")

    task, partitions = planned(text_job(write_texts(tmp_path / "in"), tmp_path / "out"))
    worker = Worker(task)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ArrowSink, "write", refuse)
            patch.setattr(ArrowSink, "abort", refuse)
            with pytest.raises(TransientError):
                worker.submit(partitions[0]).result(timeout=20)
        assert worker.submit(partitions[1]).result(timeout=20).num_written == 10
    finally:
        worker.close()


def test_closing_while_at_work_drops_what_is_unfinished(tmp_path: Path, misbehave: None) -> None:
    task, partitions = planned(failing(tmp_path, how="sleep"))
    before = set(threading.enumerate())
    worker = Worker(task)
    futures = [worker.submit(partition) for partition in partitions]
    while sum(counts["read"].samples for counts in worker.progress().values()) == 0:
        pass
    worker.close()
    for future in futures:
        if not isinstance(future.exception(timeout=0), SetupError):
            assert future.result().num_written == 10
    assert isinstance(futures[2].exception(), SetupError)
    names = {thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()}
    assert not names & {"write"}
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_closing_an_idle_worker_leaves_no_thread(tmp_path: Path) -> None:
    task, partitions = planned(text_job(write_texts(tmp_path / "in"), tmp_path / "out"))
    before = set(threading.enumerate())
    worker = Worker(task)
    worker.submit(partitions[0]).result()
    worker.close()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(timeout=10)
    assert [thread.name for thread in left if thread.is_alive()] == []


def test_a_worker_refuses_other_operators_than_the_drivers(tmp_path: Path) -> None:
    task, _ = planned(text_job(write_texts(tmp_path / "in"), tmp_path / "out"))
    with pytest.raises(SetupError, match=r"test: the operators here give fingerprint .*deadbeef"):
        Worker(replace(task, fingerprint="deadbeef" * 8))


def test_what_setup_lacks_is_said_before_anything_starts(tmp_path: Path, misbehave: None) -> None:
    task, _ = planned(failing(tmp_path, how="setup"))
    before = threading.active_count()
    with pytest.raises(SetupError, match="the weights are gone"):
        Worker(task)
    assert threading.active_count() == before


def engine(task: WorkerTask, max_attempts: int) -> InlineEngine:
    return InlineEngine(task, max_attempts)


def results_of(made: InlineEngine, partitions: list[Partition]) -> dict[int, PartitionResult]:
    try:
        return {result.partition: result for result in made.run(partitions) if result is not None}
    finally:
        made.close()


def test_inline_engine_tries_a_transient_error_again(
    tmp_path: Path, misbehave: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.01)
    task, partitions = planned(failing(tmp_path, how="transient", times=2))
    found = results_of(engine(task, max_attempts=3), partitions)
    assert {index: r.num_written for index, r in found.items()} == {0: 10, 1: 10, 2: 10}
    assert sorted(path.name for path in tmp_path.glob("failed-*")) == ["failed-0", "failed-1"]


def test_inline_engine_gives_up_after_max_attempts(
    tmp_path: Path, misbehave: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.01)
    task, partitions = planned(failing(tmp_path, how="transient", times=2))
    with pytest.raises(TransientError, match=r"\(1\.jsonl\): 2 attempts failed, the last: mis"):
        results_of(engine(task, max_attempts=2), partitions)


def test_inline_engine_closed_early_leaves_no_thread_at_work(
    tmp_path: Path, misbehave: None
) -> None:
    task, partitions = planned(failing(tmp_path, how="sleep"))
    made = engine(task, max_attempts=1)
    assert (made.num_workers, made.progress()) == (1, {})
    running = made.run(partitions)
    first = next(result for result in running if result is not None)
    assert first.partition == 0
    made.close()
    assert "write" not in {thread.name for thread in threading.enumerate()}
    assert made.progress() == {}
    made.close()


def test_key_and_uri_of_bad_lines(tmp_path: Path) -> None:
    """What the source rejects and what an operator rejects stand in one file, by row."""
    urls = write_texts(tmp_path / "in", files=1)
    with (tmp_path / "in" / "0.jsonl").open("a") as file:
        file.write('{"text": 3}\n{"text": "last"}\n')
    task, partitions = planned(text_job(urls, tmp_path / "out"))
    worker = Worker(task)
    try:
        result = worker.submit(partitions[0]).result()
    finally:
        worker.close()
    assert (result.num_input, result.num_written) == (12, 11)
    assert result.quarantined == {"read: WrongType": 1}
    assert result.quarantine is not None
    line = json.loads((tmp_path / "out" / result.quarantine.path).read_text())
    assert (line["row"], line["key"], line["uri"]) == (10, "0.jsonl:11", "0.jsonl")


def rows_of(folder: Path, result: PartitionResult) -> dict[str, object]:
    """Return key -> tokens of what a partition wrote."""
    found: dict[str, object] = {}
    for shard in result.shards:
        table = pa.ipc.open_file(str(folder / shard.path)).read_all()
        found |= dict(zip(table["key"].to_pylist(), table["tokens"].to_pylist(), strict=True))
    return found


def test_only_the_rows_that_are_asked_for(tmp_path: Path) -> None:
    task, partitions = planned(text_job(write_texts(tmp_path / "in"), tmp_path / "out"))
    whole = results_of(InlineEngine(task, 1), partitions[:1])[0]
    everything = rows_of(tmp_path / "out", whole)
    some = replace(partitions[0], index=9, only=(2, 7))
    result = results_of(InlineEngine(task, 1), [some])[9]
    assert (result.num_input, result.num_written, result.num_quarantined) == (2, 2, 0)
    assert rows_of(tmp_path / "out", result) == {
        key: everything[key] for key in ("0.jsonl:3", "0.jsonl:8")
    }


def test_masked_rows_go_to_the_quarantine_as_they_are_read(tmp_path: Path) -> None:
    task, partitions = planned(text_job(write_texts(tmp_path / "in"), tmp_path / "out"))
    whole = results_of(InlineEngine(task, 1), partitions[:1])[0]
    everything = rows_of(tmp_path / "out", whole)
    masked = replace(partitions[0], masked=(0, 9))
    result = results_of(InlineEngine(task, 1), [masked])[0]
    assert result.quarantined == {"worker: PoisonSampleError": 2}
    assert result.num_input == 10
    del everything["0.jsonl:1"], everything["0.jsonl:10"]
    assert rows_of(tmp_path / "out", result) == everything


def test_a_probe_works_on_its_rows_alone_and_writes_nothing(
    tmp_path: Path, misbehave: None
) -> None:
    task, partitions = planned(failing(tmp_path, how="raise", times=100))
    worker = Worker(task)
    try:
        for rows, bad in ((range(4), 0), (range(4, 5), 1), (range(10), 1)):
            found = worker.probe(partitions[1], rows).result(timeout=20)
            assert (found.num_quarantined, found.shards) == (bad, ())
    finally:
        worker.close()
    assert not list((tmp_path / "out").rglob("*.arrow"))
