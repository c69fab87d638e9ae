"""Run several jobs on one private Ray cluster, in a process of its own.

Starting Ray costs more than these runs. ``python -m tests.ray_runs RUNS.json`` is that process:
the file holds ``[[job, workers], ...]``, and ``outcomes.json`` beside it then says how each ended.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from pipeline.errors import TokenmillError
from pipeline.runner import prepare, run
from tests.corpus import ROOT, environment, parse


def run_all(
    folder: Path, runs: Sequence[tuple[Mapping[str, Any], int]], *paths: Path
) -> list[dict[str, Any]]:
    """Run jobs, each with a number of workers; return how each ended. No worker may be left."""
    (folder / "runs.json").write_text(json.dumps(runs))
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_runs", str(folder / "runs.json")],
            cwd=ROOT,
            env=environment(*paths),
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that what it leaves behind can be told from others
        )
        try:
            code = process.wait(timeout=200)
            assert wait_for_end(process.pid) == []
        finally:
            for left in alive(process.pid):
                left.kill()
            process.wait()
    assert code == 0, (folder / "log.txt").read_text()
    found: list[dict[str, Any]] = json.loads((folder / "outcomes.json").read_text())
    return found


def wait_for_end(session: int, longest_s: float = 30.0) -> list[str]:
    """Wait until a session's workers and schedulers are gone; return those that are not."""
    deadline = time.monotonic() + longest_s
    while (left := _workers(session)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def alive(session: int) -> list[psutil.Process]:
    """Return the processes of a session that are still at work."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _workers(session: int) -> list[str]:
    names = []
    for process in alive(session):
        try:
            names += process.cmdline()[:1]
        except psutil.NoSuchProcess:
            continue
    return [name for name in names if "WorkerActor" in name or "raylet" in name]


def main() -> None:
    import ray

    runs = Path(sys.argv[1])
    ray.init(
        address="local",
        num_cpus=2,
        resources={"rig": 2.0},
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    # An actor is killed, or ends quietly because nobody refers to it, whichever comes first. Here
    # the second always does, for it used to leave processes behind.
    ray.kill = lambda actor: None
    outcomes = [_outcome(job, workers) for job, workers in json.loads(runs.read_text())]
    assert ray.is_initialized(), "an engine closed a connection that it did not open"
    ray.shutdown()
    (runs.parent / "outcomes.json").write_text(json.dumps(outcomes))


def _outcome(job: dict[str, Any], workers: int) -> dict[str, Any]:
    try:
        summary = run(prepare(parse(job)), engine="ray", workers=workers)
    except TokenmillError as error:
        return {
            "exit_code": error.exit_code,
            "error": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
        }
    return {"exit_code": 0, "workers": summary.num_workers, "samples": summary.samples}


if __name__ == "__main__":
    main()
