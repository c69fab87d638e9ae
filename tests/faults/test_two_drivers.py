"""Two drivers start at once on one output: nothing is committed twice, and the bytes are right."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import maintenance
from pipeline.storage import Storage
from pipeline.verify import verify
from tests.corpus import (
    command,
    commit_records,
    data_files,
    environment,
    run_inline,
    text_job,
    write_texts,
)

pytestmark = pytest.mark.timeout(300)

PARTITIONS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two_drivers")


@pytest.fixture(scope="module")
def job(folder: Path) -> dict[str, Any]:
    return text_job(write_texts(folder / "in", files=PARTITIONS, lines=40), folder / "out")


@pytest.fixture(scope="module")
def undisturbed(folder: Path, job: dict[str, Any]) -> dict[str, bytes]:
    run_inline({**job, "output": str(folder / "undisturbed")})
    return data_files(folder / "undisturbed")


BOTH_HOLD_THE_LEASE = """
from pipeline import committer
from pipeline.cli import main
from pipeline.lease import Lease
Lease._take = lambda self: None
committer.MAX_RECORDS = 1
main()
"""
"""As when a driver was stopped for longer than its lease lives, and goes on: commits must be safe.

A segment a record makes as many chances to collide as there can be.
"""


def start(job: dict[str, Any], folder: Path, *, both_hold: bool = False) -> "subprocess.Popen[str]":
    program, _, _, *arguments = command(job, folder, "--engine", "inline")
    code = ["-c", BOTH_HOLD_THE_LEASE] if both_hold else ["-m", "pipeline"]
    return subprocess.Popen(
        [program, *code, *arguments],
        env=environment(),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def race(
    number: int,
    job: dict[str, Any],
    undisturbed: dict[str, bytes],
    folder: Path,
    *,
    both_hold: bool,
) -> list[int]:
    """Start two drivers, one up to 0.2 s later; check what is left and return their exit codes."""
    out = folder / "out"
    drivers = []
    for name in ("a", "b"):
        drivers.append(start({**job, "output": str(out)}, folder / name, both_hold=both_hold))
        time.sleep(number % 5 * 0.05)
    told = [driver.communicate(timeout=120) for driver in drivers]
    codes = sorted(driver.returncode for driver in drivers)
    assert codes in ([0, 0], [0, 8]), told
    assert list(commit_records(out)) == list(range(PARTITIONS))
    assert data_files(out) == undisturbed
    problems = [found for found in verify(str(out), Storage()) if found.problem or found.skipped]
    assert problems == []
    return codes


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_at_once_though_both_hold_the_lease(
    number: int, job: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert race(number, job, undisturbed, tmp_path, both_hold=True) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_at_once(
    number: int, job: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The second waits; it is refused, or takes over what is finished already."""
    race(number, job, undisturbed, tmp_path, both_hold=False)
    assert list((tmp_path / "out/_lease").iterdir()) == []


def test_a_killed_driver_is_followed_at_once(
    job: dict[str, Any], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The lease of a process that is gone does not hold up the next run on its machine."""
    out = tmp_path / "out"
    first = start({**job, "output": str(out)}, tmp_path / "a")
    while not list((out / "_lease").glob("0*.json")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.002)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (held,) = [json.loads(path.read_bytes()) for path in (out / "_lease").glob("0*.json")]
    assert held["pid"] == first.pid
    second = start({**job, "output": str(out)}, tmp_path / "b")
    shown, told = second.communicate(timeout=120)
    assert second.returncode == 0, told
    assert "is held by" not in shown
    list(maintenance.remove_unreferenced(str(out), Storage()))  # temporary files
    assert data_files(out) == undisturbed
