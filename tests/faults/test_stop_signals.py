"""Ctrl-C and SIGTERM: the run ends soon, leaves nothing behind, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.signals import STOPPED
from tests.corpus import (
    ROOT,
    command,
    commit_records,
    data_files,
    environment,
    run_command,
    text_job,
    write_texts,
)
from tests.faulty_operators import announce
from tests.ray_runs import alive, wait_for_end

pytestmark = pytest.mark.timeout(240)

FILES = 8


def slow_job(folder: Path) -> dict[str, Any]:
    """Return a job that takes some time over each of its files."""
    (folder / "orders").mkdir()
    orders = {"where": "", "sleep_s": 0.05}
    (folder / "orders" / "fault.json").write_text(json.dumps(orders))
    operators = [{"name": "byte_text"}, {"name": "sabotage", "folder": str(folder / "orders")}]
    urls = write_texts(folder / "in", files=FILES)
    return text_job(urls, folder / "out", operators=operators)


def start(given: list[str], folder: Path, *paths: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        given,
        env=environment(*paths),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that what it leaves behind can be told from others
        # Whoever runs the tests in the background has told their children to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    ("engine", "number"),
    [("inline", signal.SIGTERM), ("ray", signal.SIGTERM), ("ray", signal.SIGINT)],
)
def test_what_is_done_stays_and_the_same_command_goes_on(
    engine: str, number: signal.Signals, tmp_path: Path
) -> None:
    job, extension = slow_job(tmp_path), announce(tmp_path / "extension")
    out = tmp_path / "out"
    options = ["--engine", engine, "--workers", "1"]
    process = start(command(job, tmp_path, *options), tmp_path, extension)
    while not any((out / "_ledger").glob("*.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    began = time.monotonic()
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 128 + number, told
    assert told == f"{STOPPED}\n"
    assert time.monotonic() - began < 30
    try:
        assert wait_for_end(process.pid) == []
    finally:
        for left in alive(process.pid):
            left.kill()
    assert 1 <= len(commit_records(out)) < FILES
    assert list((out / "_lease").glob("*")) == []  # given back: nobody has to wait for it
    assert not (out / "manifest.json").exists()

    again = run_command(job, tmp_path, "--engine", "inline", paths=[extension])
    assert again.returncode == 0, again.stderr
    whole = {**job, "output": str(tmp_path / "whole")}
    undisturbed = run_command(whole, tmp_path, "--engine", "inline", paths=[extension])
    assert undisturbed.returncode == 0, undisturbed.stderr
    left_over = {name for name in data_files(out) if name.endswith(".tmp")}
    found = {name: data for name, data in data_files(out).items() if name not in left_over}
    assert found == data_files(tmp_path / "whole")


HANGS = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pipeline.signals import StopSignals

with StopSignals(longest_s={longest_s}) as stop:
    try:
        with ThreadPoolExecutor() as pool:  # leaving it waits for the hanging work
            work = pool.submit(time.sleep, 3600)
            print("at work", flush=True)
            work.result()
    except KeyboardInterrupt:
        sys.exit(stop.code)
"""


@pytest.mark.parametrize(("longest_s", "signals"), [(1.0, 1), (60.0, 2)])
def test_what_hangs_is_left_after_a_while_or_at_the_second_signal(
    longest_s: float, signals: int
) -> None:
    given = [sys.executable, "-c", HANGS.format(longest_s=longest_s)]
    process = subprocess.Popen(
        given, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 143
    assert told == f"{STOPPED}\n"


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    code = (
        "import os, signal; from pipeline.signals import StopSignals\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0
