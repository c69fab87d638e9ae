"""Ctrl-C: the run says how to go on, and the same command does."""

import signal
import subprocess
import time
from pathlib import Path

from tests.corpus import commit_records
from tests.e2e.command_line import PIPELINE, environment, pipeline
from tests.e2e.photo_job import JOB, write_corpus, write_job

NUM_TARS = 12
SLOW = JOB.replace(
    "  - name: center_crop\n",
    "  - {name: resize, size: 1500, mode: squash}\n  - name: center_crop\n",
)


def test_interrupted_run_goes_on(tmp_path: Path) -> None:
    write_corpus(tmp_path, NUM_TARS)
    write_job(tmp_path, SLOW)
    command = [*PIPELINE, "run", "job.yaml", "--engine", "inline"]
    run = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has told their children to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not commit_records(tmp_path / "out") and run.poll() is None:
        time.sleep(0.005)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130, told
    assert told == "stopped; run the same command again to go on\n"
    num_done = len(commit_records(tmp_path / "out"))
    assert 1 <= num_done < NUM_TARS
    assert not (tmp_path / "out/manifest.json").exists()

    status = pipeline("status", "out", cwd=tmp_path)
    assert "not finished: run the job again to go on" in status.stdout
    assert f"{num_done} of {NUM_TARS}" in status.stdout

    again = pipeline("run", "job.yaml", "--engine", "inline", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(f"{num_done} of {NUM_TARS} partitions are done already\n")
    assert f"{NUM_TARS}, {num_done} of them by earlier runs" in again.stdout

    whole = pipeline("run", "job.yaml", "--engine", "inline", "--output", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    for path in sorted((tmp_path / "whole/shards").iterdir()):
        assert path.read_bytes() == (tmp_path / "out/shards" / path.name).read_bytes()
    assert (tmp_path / "out/manifest.json").read_bytes() == (
        tmp_path / "whole/manifest.json"
    ).read_bytes()
