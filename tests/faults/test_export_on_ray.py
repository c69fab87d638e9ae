"""Exports on Ray: a worker or the driver is ended by kill -9, and the bytes are the same."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.export import ExportSettings
from pipeline.exporting import export
from tests.e2e.command_line import PIPELINE, environment, pipeline
from tests.loader_data import rows, write_data_set
from tests.ray_runs import alive, wait_for_end
from tests.unit.test_export import files_of

pytestmark = pytest.mark.timeout(240)

PARTS = 24
ARGS = ("export", "data", "--to", "webdataset", "--file-size", "0.0000001", "--output", "out")
ON_RAY = ("--engine", "ray", "--workers", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("export_on_ray")
    write_data_set(found / "data", rows(PARTS * 1_000), partitions=PARTS)
    export(str(found / "data"), str(found / "whole"), ExportSettings("webdataset", None, 100))
    return found


@contextmanager
def begun(folder: Path, output: str) -> Iterator[subprocess.Popen[bytes]]:
    """Give an export on Ray that has written its first parts."""
    with (folder / f"{output}.log").open("w") as log:
        process = subprocess.Popen(
            [*PIPELINE, *ARGS[:-1], output, *ON_RAY],
            cwd=folder,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that what it leaves behind can be told from others
        )
    try:
        while not list((folder / output / "_export").glob("0*.json")):
            assert process.poll() is None, (folder / f"{output}.log").read_text()
            time.sleep(0.002)
        yield process
        assert wait_for_end(process.pid) == []
    finally:
        process.kill()
        process.wait()
        for left in alive(process.pid):
            left.kill()


def workers_of(session: int) -> list[psutil.Process]:
    return [found for found in alive(session) if "WorkerActor" in "".join(found.cmdline()[:1])]


def test_a_killed_worker(folder: Path) -> None:
    with begun(folder, "worker") as process:
        os.kill(workers_of(process.pid)[0].pid, signal.SIGKILL)
        assert len(list((folder / "worker" / "_export").glob("0*.json"))) < PARTS, "too late"
        assert process.wait(timeout=120) == 0, (folder / "worker.log").read_text()
    assert files_of(folder / "worker") == files_of(folder / "whole")


def test_a_killed_driver(folder: Path) -> None:
    with begun(folder, "driver") as process:
        process.kill()
        process.wait()
        assert not (folder / "driver" / "export.json").exists()
    again = pipeline(*ARGS[:-1], "driver", "--engine", "inline", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert f"of {PARTS} parts were there" in again.stdout
    assert files_of(folder / "driver") == files_of(folder / "whole")
