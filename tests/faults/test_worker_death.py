"""Ray workers that die, fail or never start: what is tried again, what ends the run, and how.

All runs share one private cluster, started by ``tests/ray_runs.py`` in a process of its own.
"""

from pathlib import Path
from typing import Any

import pytest

from operators import registry
from tests.corpus import (
    commit_records,
    data_files,
    run_inline,
    text_job,
    write_texts,
)
from tests.faulty_operators import announce
from tests.ray_runs import run_all

pytestmark = pytest.mark.timeout(240)

Outcomes = dict[str, dict[str, Any]]


def job(folder: Path, name: str, files: int, **settings: Any) -> dict[str, Any]:
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
    return text_job(urls, folder / name / "out", operators=[step, {"name": "byte_text"}])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker_death")


@pytest.fixture(scope="module")
def jobs(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        "dies_once": job(folder, "dies_once", 5, how="exit"),
        "always_dies": job(folder, "always_dies", 3, how="exit", times=100),
        "store_away": job(folder, "store_away", 1, how="transient", times=2),
        "no_weights": job(folder, "no_weights", 2, how="setup"),
    }


@pytest.fixture(scope="module")
def outcomes(folder: Path, jobs: dict[str, dict[str, Any]]) -> Outcomes:
    runs = [(given, 1) for given in jobs.values()]
    found = run_all(folder, runs, announce(folder / "extension"))
    return dict(zip(jobs, found, strict=True))


@pytest.fixture
def misbehave_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(announce(folder / "extension"))
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


def test_a_partition_that_always_kills_its_worker_ends_the_run(
    outcomes: Outcomes, folder: Path
) -> None:
    """And it alone is blamed, though it once died together with the partition beside it."""
    found = outcomes["always_dies"]
    assert (found["exit_code"], found["error"]) == (7, "PoisonPartitionError")
    assert found["message"].startswith("partition 1 (1.jsonl): its worker died 3 times (Actor")
    assert "inline" in found["hint"]
    assert failures(folder, "always_dies") == 3
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
