"""A job from S3 to S3 while the store misbehaves: the same bytes, or a named error and a resume."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pipeline.spec import parse_job
from pipeline.storage import Storage
from tests.e2e.command_line import CommandLine
from tests.s3 import text_job
from tests.s3.conftest import with_client
from tests.s3.server import (
    Fault,
    S3Server,
    cut_body,
    refuse,
    reset_after,
    reset_before,
    reset_in_body,
    short_body,
    wait,
)

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("quick")]

_numbers = count()
SECRET = "wJalrXUtnFEMI-secret"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORPUS", str(folder / "in"))
        return text_job.undisturbed(folder)


@pytest.fixture
def pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    return CommandLine(tmp_path, capsys, monkeypatch)


@pytest.fixture
def run(
    s3: Storage,
    s3_endpoint: str,
    bucket: str,
    pipeline: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., int]:
    """Run the job from S3 to S3 by the command line; its client is of this test alone."""
    text_job.upload(s3, f"{bucket}/in")
    monkeypatch.setenv("CORPUS", f"{bucket}/in")
    options = {
        "key": f"AKIAFAULTS{next(_numbers)}",
        "secret": SECRET,
        "endpoint_url": s3_endpoint,
        "config_kwargs": {"read_timeout": 2},
    }
    job = text_job.settings(f"{bucket}/out", options)
    (pipeline.folder / "job.yaml").write_text(json.dumps(job))

    def run() -> int:
        return pipeline("run", "job.yaml", "--engine", "inline")

    return run


GOES_WELL = {
    "500 now and then": Fault(refuse(500, "InternalError"), every=3),
    "503 now and then": Fault(refuse(503, "SlowDown"), every=2),
    "a storm of 503": Fault(refuse(503, "SlowDown"), after=15, times=12),
    "a storm of 500": Fault(refuse(500, "InternalError"), after=25, times=12),
    "busy with another write": Fault(
        refuse(409, "ConditionalRequestConflict"), every=2, methods=["PUT"]
    ),
    "damaged on the way": Fault(refuse(400, "BadDigest"), every=4, methods=["PUT"]),
    "reset before": Fault(reset_before, every=3),
    "reset after": Fault(reset_after, every=3),
    "reset after every write": Fault(reset_after, every=2, methods=["PUT", "POST"]),
    "reset in a body": Fault(reset_in_body, every=2, methods=["GET"]),
    "cut body": Fault(cut_body, every=2, methods=["GET"]),
    "short body": Fault(short_body, every=2, methods=["GET"]),
    "slow answer": Fault(wait(2.5), after=10, every=12, times=2),
}


@pytest.mark.parametrize("name", GOES_WELL)
def test_a_disturbed_run_gives_the_same_bytes(
    name: str,
    run: Callable[..., int],
    pipeline: CommandLine,
    s3_server: S3Server,
    s3: Storage,
    bucket: str,
    expected: dict[str, bytes],
) -> None:
    with s3_server.disturbed(replace(GOES_WELL[name])) as fault:
        code = run()
    assert (code, pipeline.err) == (0, "")
    assert fault.hits > 1
    assert text_job.data_of(f"{bucket}/out", s3) == expected


def large_job(output: str, s3: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a job of one partition whose two shards are sent in several parts each."""
    source = {"type": "jsonl", "urls": "${CORPUS}/large.jsonl", "fields": ["text"]}
    shards = {"fields": ["text", "tokens"], "shard_bytes": 1 << 20}
    return text_job.settings(
        output, s3, source=source, operators=[{"name": "byte_text"}], shards=shards
    )


@pytest.fixture(scope="module")
def large() -> bytes:
    lines = (json.dumps({"text": f"{row} " * 100_000}) for row in range(90))
    return "\n".join(lines).encode()


@pytest.fixture(scope="module")
def large_expected(large: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("large")
    (folder / "large.jsonl").write_bytes(large)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORPUS", str(folder))
        text_job.run(parse_job(json.dumps(large_job(str(folder / "out"))), "job.yaml"))
    return text_job.data_of(str(folder / "out"), Storage())


LARGE = {
    "parts refused now and then": (Fault(refuse(503, "SlowDown"), every=2, matching="partN"), 0),
    "answers to parts lost": (Fault(reset_after, every=2, methods=["PUT"]), 0),
    "answers to the first request lost": (Fault(reset_after, times=2, matching="uploads"), 0),
    "parts always refused": (Fault(refuse(503, "SlowDown"), after=2, matching="partNumber"), 6),
    "never completed": (Fault(reset_before, methods=["POST"], matching="uploadId"), 6),
    "expired among parts": (Fault(refuse(400, "ExpiredToken"), after=2, matching="partN"), 3),
}


@pytest.mark.parametrize("name", LARGE)
def test_shards_that_are_sent_in_parts(
    name: str,
    s3: Storage,
    s3_server: S3Server,
    bucket: str,
    pipeline: CommandLine,
    large: bytes,
    large_expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault, exit_code = LARGE[name]
    monkeypatch.setattr("pipeline.storage.PART_BYTES", 5 << 20)
    s3.write(f"{bucket}/in/large.jsonl", large)
    options = {
        "key": f"AKIAFAULTS{next(_numbers)}",
        "secret": SECRET,
        "endpoint_url": s3_server.endpoint,
    }
    monkeypatch.setenv("CORPUS", f"{bucket}/in")
    job = large_job(f"{bucket}/out", options)
    (pipeline.folder / "job.yaml").write_text(json.dumps(job))
    with s3_server.disturbed(replace(fault)) as disturbed:
        code = pipeline("run", "job.yaml", "--engine", "inline")
    assert code == exit_code, pipeline.err
    assert disturbed.hits > 0

    def uploads() -> int:
        found = with_client(s3_server.endpoint, "list_multipart_uploads", Bucket=bucket[5:])
        return len(found.get("Uploads", []))

    # Of an upload whose beginning was not answered nobody knows, until `gc` looks.
    assert uploads() == (disturbed.hits if fault.matching == "uploads" else 0)
    monkeypatch.setattr("pipeline.lease.Holder.is_gone", lambda _: True)  # see below
    if exit_code:
        assert pipeline("run", "job.yaml", "--engine", "inline") == 0
    found = text_job.data_of(f"{bucket}/out", s3)
    assert "shards/0000000-001.arrow" in found
    assert found == large_expected
    assert pipeline("gc", f"{bucket}/out", "--job", "job.yaml") == 0
    assert uploads() == 0
    assert text_job.data_of(f"{bucket}/out", s3) == large_expected


STOPS: dict[str, tuple[Fault, int, str]] = {
    "expired from the start": (
        Fault(refuse(400, "ExpiredToken", "The provided token has expired.")),
        3,
        r"the credentials have expired \(ExpiredToken: The provided token has expired\.\)",
    ),
    "expired on the way": (
        Fault(refuse(400, "ExpiredToken", "The provided token has expired."), after=40),
        3,
        r"the credentials have expired \(ExpiredToken: .*do: renew them and run the same",
    ),
    "expired, as others say it": (
        Fault(refuse(403, "ExpiredToken", "Token expired"), after=40),
        3,
        r"the credentials have expired \(ExpiredToken: Token expired\)",
    ),
    "permission withdrawn": (
        Fault(refuse(403, "AccessDenied", "Access Denied"), after=40),
        3,
        r"permission denied \(AccessDenied: Access Denied\)",
    ),
    "no conditional writes": (
        Fault(refuse(501, "NotImplemented", "A header is not implemented"), methods=["PUT"]),
        3,
        r"the store refused the request \(NotImplemented: A header is not implemented\)",
    ),
    "an endless storm": (
        Fault(refuse(503, "SlowDown", "Please reduce your request rate."), after=40),
        6,
        r"s3://bucket-\d+/\S+: the store answered with HTTP 503 \((SlowDown: Please|Service Un)",
    ),
    "an endless outage": (
        Fault(refuse(500, "InternalError", "We encountered an internal error."), after=40),
        6,
        r"s3://bucket-\d+/\S+: the store answered with HTTP 500 \(Internal",
    ),
    "always reset": (
        Fault(reset_before, after=40),
        6,
        "(ConnectionClosed|EndpointConnection)Error",
    ),
    "bodies always cut": (
        Fault(cut_body, after=15, methods=["GET"]),
        6,
        # The lease's requests count too, so the first to be cut is an object or a short listing.
        "ClientPayloadError|IncompleteRead|ResponseStreamingError|ConnectionClosedError",
    ),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_run_that_cannot_go_on_says_why_and_is_resumed(
    name: str,
    run: Callable[..., int],
    pipeline: CommandLine,
    s3_server: S3Server,
    s3: Storage,
    bucket: str,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault, exit_code, says = STOPS[name]
    with s3_server.disturbed(replace(fault)):
        code = run()
    said = pipeline.out + pipeline.err
    assert re.search(says, " ".join(said.split())), said
    assert code == exit_code
    assert "Traceback" not in said
    assert SECRET not in said
    assert f"{bucket}/out/manifest.json" not in {entry.uri for entry in s3.walk(f"{bucket}/out")}

    # The run that could not take its lease back has ended, in another process than this test's.
    monkeypatch.setattr("pipeline.lease.Holder.is_gone", lambda _: True)
    assert run() == 0
    assert text_job.data_of(f"{bucket}/out", s3) == expected
