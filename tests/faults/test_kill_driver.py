"""kill -9 of the driver at some moment, then the same command again: as if nothing had happened."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operators import registry
from pipeline import maintenance
from pipeline.storage import Storage
from tests.corpus import (
    command,
    commit_records,
    data_files,
    environment,
    ledger_files,
    manifest,
    picture_job,
    quarantined,
    run_command,
    run_inline,
    samples,
    write_corpus,
    write_tar,
)
from tests.faulty_operators import announce
from tests.ray_runs import alive, wait_for_end

pytestmark = pytest.mark.timeout(240)

TARS = 12
"""Some 3 s of work for one worker: the second segment of the ledger is not yet the last."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill_driver")


@pytest.fixture(scope="module")
def extension(folder: Path) -> Path:
    return announce(folder / "extension")


@pytest.fixture(scope="module")
def job(folder: Path) -> dict[str, Any]:
    """Pictures, a bad one in every second tar, and a step that takes some time over each."""
    urls = write_corpus(folder / "in", tars=TARS, per_tar=8)
    for tar in range(0, TARS, 2):
        members = samples(tar, 8)
        members[6] = (members[6][0], members[6][1][:300])
        write_tar(folder / "in" / f"{tar:02d}.tar", members)
    found = picture_job(urls, folder / "out", run={"max_bad_samples": TARS // 2, "chunk_size": 2})
    found["operators"].append({"name": "misbehave", "how": "sleep", "marks": "-"})
    return found


@pytest.fixture(scope="module")
def undisturbed(folder: Path, job: dict[str, Any], extension: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(extension)
        registry.all_classes.cache_clear()
        run_inline({**job, "output": str(folder / "undisturbed")})
    yield folder / "undisturbed"
    registry.all_classes.cache_clear()


def run_and_kill(
    job: dict[str, Any], folder: Path, extension: Path, engine: str, records: int, delay_s: float
) -> int:
    """Kill the driver ``delay_s`` after its commit number ``records``; return its process id."""
    out = Path(job["output"])
    process = subprocess.Popen(
        command(job, folder, "--engine", engine, "--workers", "2"),
        env=environment(extension),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that what it leaves behind can be told from others
    )
    try:
        while not (out / "_job.json").exists() or len(commit_records(out)) < records:
            assert process.poll() is None, f"it ended by itself with {process.returncode}"
            time.sleep(0.005)
        time.sleep(delay_s)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    return process.pid


def check_goes_on(
    job: dict[str, Any], folder: Path, extension: Path, engine: str, undisturbed: Path
) -> None:
    """Run the same command to its end and compare."""
    out = Path(job["output"])
    before, had = ledger_files(out), commit_records(out)
    assert len(had) < TARS
    assert not (out / "manifest.json").exists()
    done = run_command(job, folder, "--engine", engine, "--workers", "2", paths=[extension])
    assert done.returncode == 0, done.stderr
    after = ledger_files(out)
    assert list(commit_records(out)) == list(range(TARS))
    assert {name: after[name] for name in before} == before
    assert commit_records(out).items() >= had.items()
    storage = Storage()
    for entry in list(maintenance.unreferenced(str(out), storage)):
        assert entry.uri.endswith(".tmp"), f"{entry.uri} is left over"
        storage.remove(entry.uri)
    expected = data_files(undisturbed)
    found = data_files(out)
    assert sorted(found) == sorted(expected)
    for name, data in expected.items():
        assert found[name] == data, f"{name} differs"


def test_the_undisturbed_run_has_what_is_compared(undisturbed: Path) -> None:
    totals = manifest(undisturbed)["totals"]
    assert (totals["input_samples"], totals["samples"], totals["quarantined"]) == (96, 90, 6)
    assert len(quarantined(undisturbed)) == 6
    assert {"manifest.json", "index.arrow"} < data_files(undisturbed).keys()


@pytest.mark.parametrize("seed", range(3))
def test_inline(
    seed: int, job: dict[str, Any], undisturbed: Path, tmp_path: Path, extension: Path
) -> None:
    moment = random.Random(seed)
    records, delay_s = moment.choice([0, 1, 2, 3]), moment.uniform(0, 0.3)
    given = {**job, "output": str(tmp_path / "out")}
    run_and_kill(given, tmp_path, extension, "inline", records, delay_s)
    check_goes_on(given, tmp_path, extension, "inline", undisturbed)


def test_ray(job: dict[str, Any], undisturbed: Path, tmp_path: Path, extension: Path) -> None:
    """Workers end when their driver is gone, so that none is at work beside the next run's."""
    given = {**job, "output": str(tmp_path / "out")}
    session = run_and_kill(given, tmp_path, extension, "ray", 1, 0.1)
    try:
        assert wait_for_end(session) == []
    finally:
        for process in alive(session):  # Ray's own agents stay for a while
            process.kill()
    check_goes_on(given, tmp_path, extension, "ray", undisturbed)
