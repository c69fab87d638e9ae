"""``pipeline submit`` to a real head with Ray's job server, started here."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import data_files, run_inline, text_job, write_texts
from tests.e2e.command_line import PIPELINE, environment, pipeline
from tests.ray_runs import alive

pytestmark = pytest.mark.timeout(240)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Head:
    """A head with a job server.

    Attributes:
        address: Of the server.
        token: The environment variables that let one in.
    """

    address: str
    token: dict[str, str]

    def submit(
        self, *given: str, cwd: Path, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run ``pipeline submit`` with its address and token."""
        return pipeline(
            "submit", *given, "--address", self.address, cwd=cwd, **self.token, **variables
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text("a-token-of-the-tests-alone-0123456789")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    port = free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    options = {
        "port": free_port(),
        "dashboard-port": port,
        "dashboard-host": "127.0.0.1",
        # All of them: another head on this machine may hold the usual ones.
        "dashboard-agent-listen-port": free_port(),
        "metrics-export-port": free_port(),
        "ray-client-server-port": free_port(),
        "num-cpus": 2,
        "include-dashboard": "true",
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            cwd=folder,  # not this checkout: what runs there must be what is sent
            env={**os.environ, **token, "PYTHONPATH": "", "PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            head = Head(f"http://127.0.0.1:{port}", token)
            wait_until_it_answers(head.address)
            yield head
        finally:
            for left in alive(process.pid):
                left.kill()
            process.wait()


def wait_until_it_answers(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError("the head does not answer")


def write_job(folder: Path, **changes: Any) -> dict[str, Any]:
    job = text_job(write_texts(folder / "in", files=4), folder / "out", **changes)
    job["source"]["urls"] = "${CORPUS}/*.jsonl"
    (folder / "job.yaml").write_text(json.dumps(job))
    return job


def test_a_job_runs_there_and_gives_the_same_bytes(
    cluster: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(tmp_path)
    elsewhere = {"RAY_ADDRESS": "http://127.0.0.1:9"}  # Ray alone would go there
    done = cluster.submit("job.yaml", cwd=tmp_path, CORPUS=str(tmp_path / "in"), **elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"sent as texts-\w+\n", done.stderr)
    assert f"done: {tmp_path}/out/manifest.json" in done.stdout
    assert "@tokenmill" not in done.stdout
    monkeypatch.setenv("CORPUS", str(tmp_path / "in"))
    run_inline({**job, "output": str(tmp_path / "inline")})
    assert data_files(tmp_path / "out") == data_files(tmp_path / "inline")
    status = pipeline("status", tmp_path / "out", cwd=tmp_path)  # without the job's variables
    assert "4 of 4" in status.stdout


def test_the_drivers_exit_code_comes_back(cluster: Head, tmp_path: Path) -> None:
    write_job(tmp_path, run={"max_bad_samples": 0})
    with (tmp_path / "in" / "0.jsonl").open("a") as file:
        file.write("not JSON\n")
    done = cluster.submit("job.yaml", cwd=tmp_path, CORPUS=str(tmp_path / "in"))
    assert done.returncode == 4, done.stdout + done.stderr
    assert "1 samples are in the quarantine" in done.stdout


def test_ctrl_c_ends_the_watching_alone(cluster: Head, tmp_path: Path) -> None:
    write_job(tmp_path)
    client = subprocess.Popen(
        [*PIPELINE, "submit", "job.yaml", "--address", cluster.address],
        cwd=tmp_path,
        env=environment(CORPUS=str(tmp_path / "in"), **cluster.token),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert client.stderr is not None
    job = client.stderr.readline().removeprefix("sent as ").strip()
    time.sleep(0.5)
    client.send_signal(signal.SIGINT)
    _, told = client.communicate(timeout=30)
    assert client.returncode == 130, told
    assert (
        f"{job} goes on\nwatch it: pipeline submit --follow {job} --address {cluster.address}"
        in told
    )
    again = cluster.submit("--follow", job, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"done: {tmp_path}/out/manifest.json" in again.stdout


def test_who_has_no_token_is_told(cluster: Head, tmp_path: Path) -> None:
    write_job(tmp_path)
    given = ["submit", "job.yaml", "--address", cluster.address]
    done = pipeline(*given, cwd=tmp_path, CORPUS=str(tmp_path / "in"))
    assert done.returncode == 3
    assert "does not let you in" in done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr


def test_mistakes_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    write_job(tmp_path, batch_size=0)
    nowhere = "http://127.0.0.1:9"
    for given, code, says in (
        (["job.yaml", "--address", nowhere], 2, "batch_size"),
        (["--address", nowhere], 2, "expected a job file, or --follow"),
        (["job.yaml"], 2, "no cluster"),
        (["--follow", "texts-1", "--address", nowhere], 3, f"no jobs can be sent to {nowhere}"),
    ):
        done = pipeline("submit", *given, cwd=tmp_path)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr
