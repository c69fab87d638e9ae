"""Ray workers that die, fail or never start: what is tried again, what ends the run, and how.

All runs share one private cluster, started by ``tests/ray_runs.py`` in a process of its own.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from operators import registry
from pipeline.storage import Storage
from pipeline.verify import verify
from tests.corpus import (
    commit_records,
    data_files,
    quarantined,
    run_inline,
    text_job,
    write_texts,
)
from tests.faulty_operators import announce
from tests.ray_runs import run_all

pytestmark = pytest.mark.timeout(240)

POISON = "PoisonSampleError"
Outcomes = dict[str, dict[str, Any]]


def job(
    folder: Path, name: str, files: int, run: dict[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    """Return a job over ``files`` files whose operator misbehaves in the second, or the only, one.

    The file that it fails at is the largest, so that it is handed out first and with another.
    """
    marks = folder / name / "marks"
    marks.mkdir(parents=True)
    urls = write_texts(folder / name / "in", files=files)
    bad = min(files - 1, 1)
    with (folder / name / "in" / f"{bad}.jsonl").open("a") as file:
        file.write('{"text": "one line more"}\n')
    step = {"name": "misbehave", "marks": str(marks), "at_key": f"{bad}.jsonl:5", **settings}
    given = text_job(urls, folder / name / "out", operators=[step, {"name": "byte_text"}])
    return {**given, "run": {**given["run"], **(run or {})}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker_death")


@pytest.fixture(scope="module")
def jobs(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        "dies_once": job(folder, "dies_once", 5, how="exit"),
        "poison": job(
            folder, "poison", 3, {"max_bad_samples": 1}, how="exit", times=100, at_key="1.jsonl:1"
        ),
        "always_dies": job(
            folder, "always_dies", 3, {"max_attempts": 3}, how="exit", times=100, in_company=True
        ),
        "store_away": job(folder, "store_away", 1, how="transient", times=2),
        "no_weights": job(folder, "no_weights", 2, how="setup"),
        "placed": job(folder, "placed", 2, {"resources": {"rig": 1}}, how="sleep"),
        "nowhere": job(folder, "nowhere", 2, {"resources": {"mill": 1}}, how="sleep"),
    }


@pytest.fixture(scope="module")
def outcomes(folder: Path, jobs: dict[str, dict[str, Any]]) -> Outcomes:
    runs = [(given, 1) for given in jobs.values()]
    found = run_all(folder, runs, announce(folder / "extension"))
    return dict(zip(jobs, found, strict=True))


@pytest.fixture
def misbehave_here(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(announce(folder / "extension"))
        registry.all_classes.cache_clear()
        yield
    registry.all_classes.cache_clear()


def failures(folder: Path, name: str) -> int:
    return len(list((folder / name / "marks").iterdir()))


@pytest.mark.parametrize("name", ["dies_once", "store_away"])
def test_another_attempt_gives_the_same_bytes(
    outcomes: Outcomes,
    jobs: dict[str, dict[str, Any]],
    folder: Path,
    tmp_path: Path,
    misbehave_here: None,
    name: str,
) -> None:
    assert outcomes[name]["exit_code"] == 0, outcomes[name]
    assert failures(folder, name) == (1 if name == "dies_once" else 2)
    run_inline({**jobs[name], "output": str(tmp_path)})  # it has failed as often as it should
    assert data_files(folder / name / "out") == data_files(tmp_path)


def test_a_dead_workers_partition_goes_to_a_new_worker(outcomes: Outcomes, folder: Path) -> None:
    assert outcomes["dies_once"]["exit_code"] == 0
    records = commit_records(folder / "dies_once" / "out")
    assert len(records) == 5
    assert records[1]["worker"] == "worker-2"


def test_a_sample_that_always_kills_its_worker_is_quarantined_and_no_other_changes(
    outcomes: Outcomes,
    jobs: dict[str, dict[str, Any]],
    folder: Path,
    tmp_path: Path,
    misbehave_here: None,
) -> None:
    assert outcomes["poison"]["exit_code"] == 0, outcomes["poison"]
    out = folder / "poison" / "out"
    (line,) = quarantined(out)
    assert (line["key"], line["step"], line["error"]) == ("1.jsonl:1", "worker", POISON)
    assert "the process that works on it dies" in line["reason"]
    rows = 11
    assert failures(folder, "poison") <= 2 + math.ceil(math.log2(rows)) + 1
    for number in range(100):  # it has failed as often as it may
        (folder / "poison" / "marks" / f"failed-{number}").touch()
    run_inline({**jobs["poison"], "output": str(tmp_path)})
    other = {f"shards/000000{n}-000.arrow" for n in (0, 2)}
    found, expected = data_files(out), data_files(tmp_path)
    assert {name: found[name] for name in other} == {name: expected[name] for name in other}
    table, whole = (
        pa.ipc.open_file(str(each / "shards/0000001-000.arrow")).read_all()
        for each in (out, tmp_path)
    )
    assert table.equals(whole.filter(pc.not_equal(whole["key"], "1.jsonl:1")))


def test_verify_leaves_the_poison_alone(
    outcomes: Outcomes, folder: Path, misbehave_here: None
) -> None:
    """The golden row comes after the poisonous one, which would end this process."""
    assert outcomes["poison"]["exit_code"] == 0
    for mark in (folder / "poison" / "marks").iterdir():
        mark.unlink()
    findings = list(verify(str(folder / "poison" / "out"), Storage()))
    assert "golden sample 1.jsonl:2" in [finding.check for finding in findings]
    assert [found for found in findings if found.problem or found.skipped] == []
    assert failures(folder, "poison") == 0


def test_a_partition_that_kills_its_worker_for_no_single_row_ends_the_run(
    outcomes: Outcomes, folder: Path
) -> None:
    """And it alone is blamed, though it once died together with the partition beside it."""
    found = outcomes["always_dies"]
    assert (found["exit_code"], found["error"]) == (7, "PoisonPartitionError")
    assert found["message"].startswith("partition 1 (1.jsonl): 3 attempts failed, the last: it sur")
    assert "inline" in found["hint"]
    assert 1 not in commit_records(folder / "always_dies" / "out")


def test_what_a_workers_setup_lacks_arrives_as_it_was_said(
    outcomes: Outcomes, folder: Path
) -> None:
    assert outcomes["no_weights"] == {
        "exit_code": 3,
        "error": "SetupError",
        "message": "misbehave: the weights are gone",
        "hint": "bring them back",
    }
    assert commit_records(folder / "no_weights" / "out") == {}


def test_custom_resources_decide_where_workers_run(outcomes: Outcomes, folder: Path) -> None:
    assert outcomes["placed"]["exit_code"] == 0, outcomes["placed"]
    assert len(commit_records(folder / "placed" / "out")) == 2
    assert (outcomes["nowhere"]["exit_code"], outcomes["nowhere"]["error"]) == (3, "SetupError")
    assert "a worker needs 1 mill, the cluster's nodes have 0" in outcomes["nowhere"]["message"]
