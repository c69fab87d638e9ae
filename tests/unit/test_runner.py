"""A run's life: begin, refuse, go on, start again, judge, finish."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import runner
from pipeline.committer import Committer
from pipeline.engines.inline import InlineEngine
from pipeline.errors import (
    BudgetExceededError,
    FingerprintMismatchError,
    IntegrityError,
    LeaseError,
    SetupError,
    SpecError,
    TokenmillError,
)
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.manifest import open_data_set
from pipeline.plan import plan_digest, read_plan, write_plan
from pipeline.protocols import Partition, PartitionResult, SourceFile, SourceRange
from pipeline.storage import Storage
from tests.corpus import (
    commit_records,
    data_files,
    ledger_files,
    manifest,
    parse,
    run_inline,
    text_job,
    write_texts,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    return text_job(write_texts(tmp_path / "in"), tmp_path / "out")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_run_leaves_exactly_these_files(job: dict[str, Any], out: Path) -> None:
    summary = run_inline(job)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    segments = {file for file in files if file.startswith("_ledger/")}
    assert list(commit_records(out)) == [0, 1, 2]
    assert segments == {f"_ledger/{name}" for name in ledger_files(out)}
    assert files - segments == {
        "_job.json",
        "_plan.jsonl",
        *(f"shards/{i:07d}-000.arrow" for i in range(3)),
        "index.arrow",
        "manifest.json",
        "report.json",
    }
    totals = manifest(out)["totals"]
    assert (totals["input_samples"], totals["samples"], totals["partitions"]) == (30, 30, 3)
    assert summary.input_samples == summary.samples == 30
    assert open_data_set(str(out)).shards["num_samples"].to_pylist() == [10, 10, 10]


def test_a_finished_run_is_left_alone(job: dict[str, Any], out: Path) -> None:
    run_inline(job)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    summary = run_inline(job)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert after == before
    assert summary.num_resumed == 3


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the driver stop when it is about to commit partition number ``count``."""
    add = Committer.add
    done: list[int] = []

    def stopping(self: Committer, result: PartitionResult) -> None:
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(result.partition)
        add(self, result)

    monkeypatch.setattr(Committer, "add", stopping)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_stopped_and_run_again_gives_the_same(
    job: dict[str, Any], out: Path, tmp_path: Path, count: int
) -> None:
    run_inline({**job, "output": str(tmp_path / "whole")})
    with pytest.MonkeyPatch.context() as patch:
        stop_after(count, patch)
        with pytest.raises(KeyboardInterrupt):
            run_inline(job)
    before, had = ledger_files(out), commit_records(out)
    assert len(had) == count
    assert not (out / "manifest.json").exists()
    summary = run_inline(job)
    assert (summary.num_resumed, summary.num_partitions) == (count, 3)
    after = ledger_files(out)
    assert {name: after[name] for name in before} == before
    assert commit_records(out).items() >= had.items()
    assert data_files(out) == data_files(tmp_path / "whole")


def test_a_resume_does_not_plan_again(job: dict[str, Any], out: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            run_inline(job)
    (tmp_path / "in" / "0a.jsonl").write_text('{"text": "came later"}\n')
    assert run_inline(job).input_samples == 30
    sources = open_data_set(str(out)).shards["sources"].to_pylist()
    assert [part[0]["name"] for part in sources] == ["0.jsonl", "1.jsonl", "2.jsonl"]


def test_another_recipe_is_refused_field_by_field(job: dict[str, Any], out: Path) -> None:
    run_inline(job)
    before = data_files(out)
    other = {
        **job,
        "operators": [{"name": "byte_text", "add_eos": True}],
        "shards": {"fields": ["tokens"], "compression": "zstd"},
        "batch_size": 7,
    }
    with pytest.raises(FingerprintMismatchError) as caught:
        run_inline(other)
    message = caught.value.message.split("\n")
    assert message[0] == f"{out} belongs to another recipe:"
    for line in (
        "  recipe.batch_size: 64 -> 7",
        "  recipe.operators[0].add_eos: false -> true",
        '  recipe.shards.compression: "none" -> "zstd"',
        '  operators[0].outputs.tokens: "uint8[*] < 256" -> "uint16[*] < 257"',
    ):
        assert line in message
    assert not any("add_bos" in line or "output:" in line for line in message)
    assert caught.value.exit_code == 5
    assert "--fresh" in str(caught.value)
    assert data_files(out) == before


def test_another_number_of_operators_is_told(job: dict[str, Any]) -> None:
    run_inline(job)
    steps = [*job["operators"], {"name": "length_filter", "min_length": 3}]
    with pytest.raises(FingerprintMismatchError, match=r"recipe\.operators: \[.*length_filter"):
        run_inline({**job, "operators": steps})


def test_another_format_version_is_told(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_inline(job)
    monkeypatch.setattr("pipeline.plan.FORMAT_VERSION", 2)
    monkeypatch.setattr(runner, "FORMAT_VERSION", 2)
    with pytest.raises(
        FingerprintMismatchError, match=r"another recipe:\n  format_version: 1 -> 2"
    ):
        run_inline(job)


@pytest.mark.parametrize(
    "change", [{"run": {"cpu_threads": 2, "max_attempts": 9}}, {"storage": {"s3": {"anon": True}}}]
)
def test_what_changes_no_byte_may_change(job: dict[str, Any], change: dict[str, Any]) -> None:
    run_inline(job)
    assert run_inline({**job, **change}).num_resumed == 3


def test_fresh_starts_again(job: dict[str, Any], out: Path) -> None:
    run_inline(job)
    other = {**job, "operators": [{"name": "byte_text", "add_eos": True}], "limit": 4}
    assert run_inline(other, fresh=True).num_resumed == 0
    assert manifest(out)["totals"]["samples"] == 4
    assert [path.name for path in (out / "shards").iterdir()] == ["0000000-000.arrow"]


@pytest.mark.parametrize("fresh", [False, True])
def test_an_output_that_another_run_is_at_work_on_is_left_alone(
    job: dict[str, Any], out: Path, fresh: bool
) -> None:
    run_inline(job)
    before = data_files(out)
    with Lease(Storage(), str(out), ttl_s=0.4) as held:
        with pytest.raises(LeaseError, match=f"{out}: another run is at work on it: process "):
            run_inline(job, fresh=fresh)
        held.check()
    assert data_files(out) == before


def test_a_run_whose_lease_is_lost_stops(
    job: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has committed stays, and it writes no manifest."""
    lost = LeaseError("another run took it over")
    original = Committer.add

    def losing(self: Committer, result: PartitionResult) -> None:
        original(self, result)
        monkeypatch.setattr(Lease, "check", lambda self: fail(lost))

    monkeypatch.setattr(Committer, "add", losing)
    with pytest.raises(LeaseError):
        run_inline(job)
    assert list(commit_records(out)) == [0]
    assert not (out / "manifest.json").exists()


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("foreign", ["notes.txt", "data/a.arrow", ".manifest.json", ".ssh/key.tmp"])
def test_fresh_refuses_a_folder_with_foreign_files(
    job: dict[str, Any], out: Path, foreign: str
) -> None:
    run_inline(job)
    (out / foreign).parent.mkdir(exist_ok=True)
    (out / foreign).write_text("mine")
    before = sorted(out.rglob("*"))
    with pytest.raises(SpecError, match=rf"--fresh would remove .*{foreign}, which no run"):
        run_inline(job, fresh=True)
    assert sorted(out.rglob("*")) == before


def test_fresh_removes_what_a_killed_run_left(job: dict[str, Any], out: Path) -> None:
    run_inline(job)
    for name in (".manifest.json.x1y2z3.tmp", "._plan.jsonl.ab_c.tmp", "shards/.0-0.arrow.q.tmp"):
        (out / name).write_text("half")
    run_inline(job, fresh=True)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("written", ["./out", "out//", "file://{}/out", "{}/in/../out"])
def test_fresh_knows_a_folder_however_it_is_written(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run_inline({**job, "output": "out"})
    output = written.format(tmp_path)
    assert run_inline({**job, "output": output}).num_resumed == 3
    assert run_inline({**job, "output": output}, fresh=True).num_resumed == 0


@pytest.mark.parametrize(("limit", "partitions"), [(1, 1), (10, 1), (11, 2), (25, 3), (99, 3)])
def test_limit(job: dict[str, Any], out: Path, limit: int, partitions: int) -> None:
    run_inline({**job, "limit": limit})
    totals = manifest(out)["totals"]
    assert (totals["input_samples"], totals["partitions"]) == (min(limit, 30), partitions)
    keys = [
        batch.column("key")[i].as_py()
        for path in sorted((out / "shards").glob("*.arrow"))
        for batch in _batches(path)
        for i in range(batch.num_rows)
    ]
    assert keys == [f"{i // 10}.jsonl:{i % 10 + 1}" for i in range(min(limit, 30))]


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def test_empty_input_gives_an_empty_data_set(job: dict[str, Any], out: Path) -> None:
    for path in (out.parent / "in").iterdir():
        path.write_bytes(b"\n")
    summary = run_inline(job)
    assert (summary.input_samples, summary.num_shards, summary.num_partitions) == (0, 0, 3)
    assert manifest(out)["totals"]["tokens"] == {"tokens": 0}
    assert open_data_set(str(out)).shards.num_rows == 0
    assert not (out / "shards").exists()


def test_input_that_matches_nothing_writes_nothing(job: dict[str, Any], out: Path) -> None:
    for path in (out.parent / "in").iterdir():
        path.unlink()
    with pytest.raises(SetupError, match="matches nothing"):
        run_inline(job)
    assert not out.exists()


def test_counts_that_do_not_add_up_are_not_committed(
    job: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = InlineEngine.run

    def losing(self: InlineEngine, partitions: Any) -> Iterator[PartitionResult]:
        for result in original(self, partitions):
            if result is not None:
                yield replace(result, num_written=result.num_written - 1)

    monkeypatch.setattr(InlineEngine, "run", losing)
    message = r"10 samples read, but 9 written \+ 0 filtered \+ 0 quarantined = 9"
    with pytest.raises(IntegrityError, match=message):
        run_inline(job)
    assert commit_records(out) == {}


def test_a_faster_drivers_record_counts(
    job: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two drivers on one folder: nobody's record is replaced, both finish."""
    original = Ledger.commit

    def raced(self: Ledger, results: Sequence[PartitionResult]) -> None:
        for result in results:
            if result.partition == 1:
                other = Ledger(Storage(), str(out), self._fingerprint)
                original(other, [replace(result, worker="the other driver's")])
        original(self, results)

    monkeypatch.setattr(Ledger, "commit", raced)
    assert run_inline(job).samples == 30
    workers = [record["worker"] for record in commit_records(out).values()]
    assert workers == ["inline", "the other driver's", "inline"]
    assert len(open_data_set(str(out)).shards) == 3


def test_a_driver_that_plans_second_takes_the_firsts_plan(
    job: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Storage.create_exclusive

    def raced(self: Storage, uri: str, data: bytes) -> None:
        if uri.endswith("_job.json"):
            original(self, uri, data)  # the other driver's, a moment before
        original(self, uri, data)

    monkeypatch.setattr(Storage, "create_exclusive", raced)
    assert run_inline(job).samples == 30


FROZEN_DIGEST = "6e0575bf96209324dcc9c4eb11f7abd538acd8b25458051af148b7827012cc8d"

# -- plan and job files -------------------------------------------------------------------------


def partition(index: int, name: str = "a.tar", uri: str = "/x/a.tar", **fields: Any) -> Partition:
    found = SourceRange(SourceFile(uri, name, 9, "v1"), 9, **fields)
    return Partition(index, (found,), max_samples=index or None)


def test_the_plan_comes_back_as_it_went_in(tmp_path: Path) -> None:
    names = ["a\u2028b.tar", "c\x85d.tar", "é.tar", 'q"\\.tar']
    plan = [partition(i, name, first=i, stop=i + 1) for i, name in enumerate(names)]
    digest = write_plan(Storage(), str(tmp_path), plan)
    assert read_plan(Storage(), str(tmp_path)) == plan
    assert plan_digest(plan) == digest


@pytest.mark.parametrize(
    ("url", "uri", "written"),
    [
        ("https://me:pass@h:1/{0..2}.tar", "https://me:pass@h:1/1.tar", "https://***@h:1/1.tar"),
        ("https://me:pass@h/*.tar", "https://me:pass@h/x/y.tar", "https://***@h/x/y.tar"),
        ("https://h/1.tar?sig=pass&x=1", "https://h/1.tar?sig=pass&x=1", "https://h/1.tar"),
        ("https://h/{0..2}.tar", "https://h/1.tar", "https://h/1.tar"),
        ("s3://b/*", "s3://b/what?.tar", "s3://b/what?.tar"),
    ],
)
def test_a_plan_holds_no_password_and_gets_it_back(
    url: str, uri: str, written: str, tmp_path: Path
) -> None:
    plan = [partition(0, "other.tar", uri="https://other/1.tar"), partition(1, uri=uri)]
    write_plan(Storage(), str(tmp_path), plan)
    assert b"pass" not in (tmp_path / "_plan.jsonl").read_bytes()
    without = read_plan(Storage(), str(tmp_path))
    assert [part.ranges[0].file.uri for part in without] == ["https://other/1.tar", written]
    assert read_plan(Storage(), str(tmp_path), ["https://other/{0..2}.tar", url]) == plan


def test_an_empty_plan_comes_back(tmp_path: Path) -> None:
    write_plan(Storage(), str(tmp_path), [])
    assert read_plan(Storage(), str(tmp_path)) == []


def test_the_digest_is_of_what_is_read_not_of_where_it_lies() -> None:
    moved = partition(0, uri="s3://bucket/a.tar")
    assert plan_digest([moved]) == plan_digest([partition(0)])
    for other in (partition(0, "b.tar"), partition(0, first=1), partition(0, stop=2), partition(1)):
        assert plan_digest([other]) != plan_digest([partition(0)])
    # Frozen: manifests and job files hold it.
    assert plan_digest([partition(0)]) == FROZEN_DIGEST


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-20],
        lambda data: data[: data.rindex(b'{"index"')],
        lambda data: data.replace(b'"ranges"', b'"rangos"'),
        lambda data: data.replace(b'"index":1', b'"index":2'),
        lambda data: data.replace(b'"index":1', b'"index":"1"'),
        lambda data: b"[]\n" + data,
        lambda data: b"\n",
        lambda data: data.replace(b'"version": 1', b'"version": 2'),
        lambda data: data + b"\xff",
        lambda data: data.replace(b'"partitions"', b'"partition"'),
    ],
)
def test_a_damaged_plan_is_refused(
    job: dict[str, Any], out: Path, damage: Callable[[bytes], bytes]
) -> None:
    run_inline(job)
    (out / "_plan.jsonl").write_bytes(damage((out / "_plan.jsonl").read_bytes()))
    with pytest.raises(IntegrityError, match=r"_plan\.jsonl: ") as caught:
        run_inline(job)
    assert caught.value.hint is not None


def test_another_plan_is_refused(job: dict[str, Any], out: Path) -> None:
    run_inline(job)
    write_plan(Storage(), str(out), read_plan(Storage(), str(out))[:2])
    with pytest.raises(IntegrityError, match="not the plan that the run began with"):
        run_inline(job)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"fingerprint": "ab"}'])
def test_a_damaged_job_file_is_refused(job: dict[str, Any], out: Path, text: str) -> None:
    run_inline(job)
    (out / "_job.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"_job\.json: not what a run wrote there"):
        run_inline(job)


# -- the budget of bad samples ------------------------------------------------------------------


def spoil(out: Path, file: int, lines: int) -> None:
    """Make lines of a file unreadable; it becomes larger, so that it is processed first."""
    path = out.parent / "in" / f"{file}.jsonl"
    texts = path.read_text().splitlines()
    path.write_text(
        "\n".join(["no json, and more bytes than it had"] * lines + texts[lines:]) + "\n"
    )


@pytest.mark.parametrize(
    ("budget", "exceeded"), [(0, True), (1, True), (2, False), (0.05, True), (0.07, False)]
)
def test_budget(job: dict[str, Any], out: Path, budget: float, exceeded: bool) -> None:
    spoil(out, 0, 1)
    spoil(out, 2, 1)
    job["run"] = {"max_bad_samples": budget}
    if not exceeded:
        assert run_inline(job).quarantined == 2
        return
    with pytest.raises(BudgetExceededError, match=r"samples are in the quarantine.*InvalidJson"):
        run_inline(job)
    assert not (out / "manifest.json").exists()


def test_a_count_stops_the_run_as_soon_as_it_is_exceeded(job: dict[str, Any], out: Path) -> None:
    spoil(out, 0, 2)
    spoil(out, 1, 2)
    spoil(out, 2, 2)
    job["run"] = {"max_bad_samples": 1}
    for _ in range(2):  # the second time nothing more is done
        with pytest.raises(BudgetExceededError, match=r"2 samples .* allows 1: read: InvalidJson"):
            run_inline(job)
        assert len(commit_records(out)) == 1
    job["run"] = {"max_bad_samples": 6}
    summary = run_inline(job)
    assert (summary.num_resumed, summary.quarantined, summary.samples) == (1, 6, 24)


def test_a_share_is_judged_at_the_end_of_a_small_run(job: dict[str, Any], out: Path) -> None:
    spoil(out, 0, 5)  # half of the first partition, a sixth of all
    job["run"] = {"max_bad_samples": 0.2}
    assert run_inline(job).quarantined == 5


def test_a_share_is_judged_early_in_a_large_run(
    job: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "SHARE_FROM_SAMPLES", 20)
    spoil(out, 0, 9)
    job["run"] = {"max_bad_samples": 0.4}
    with pytest.raises(BudgetExceededError, match=r"9 samples .* allows 40\.000% of 20:"):
        run_inline(job)
    assert len(commit_records(out)) == 2


def test_the_message_names_the_most_frequent_reasons_and_where_to_look(
    job: dict[str, Any], out: Path
) -> None:
    spoil(out, 1, 3)
    job["run"] = {"max_bad_samples": 0}
    with pytest.raises(TokenmillError) as caught:
        run_inline(job)
    assert "read: InvalidJson (3)" in str(caught.value)
    assert os.path.join(out, "quarantine") in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_listener_hears_of_every_commit(job: dict[str, Any]) -> None:
    heard: list[Any] = []

    class Listener:
        def waiting(self, message: str) -> None:
            raise AssertionError(message)

        def decided(self, warning: str) -> None:
            raise AssertionError(warning)

        def begin(self, partitions: Any, done: Any, engine: Any) -> None:
            heard.append((len(partitions), set(done), engine.num_workers))

        def committed(self, result: PartitionResult) -> None:
            heard.append(result.partition)

    runner.run(runner.prepare(parse(job)), engine="inline", listener=Listener())
    assert heard == [(3, set(), 1), 0, 1, 2]
