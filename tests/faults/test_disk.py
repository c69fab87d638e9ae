"""Disks that are full, read-only or fail, and input that changes under a run."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from pipeline.errors import IntegrityError, SetupError, TokenmillError, TransientError
from pipeline.sources import SourceConfig, build_source
from pipeline.storage import NotFoundError, Storage
from tests.corpus import (
    AtBegin,
    commit_records,
    data_files,
    environment,
    picture_job,
    run_inline,
    text_job,
    write_corpus,
    write_texts,
)

pytestmark = pytest.mark.timeout(120)


def texts(folder: Path) -> str:
    """Write six files of text; each gives a partition with a shard of some 100 kB."""
    urls = write_texts(folder, files=6)
    for number, path in enumerate(sorted(folder.iterdir())):
        with path.open("a") as file:
            file.writelines(json.dumps({"text": f"{number}" * 1000}) + "\n" for _ in range(100))
    return urls


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return texts(tmp_path_factory.mktemp("in"))


@pytest.fixture(scope="module")
def expected(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    run_inline(text_job(corpus, output))
    return data_files(output)


def check_unfinished(output: Path, expected: dict[str, bytes]) -> None:
    """Nothing is there that a reader might take for more than it is, and nothing is half."""
    assert not (output / "manifest.json").exists()
    assert list(output.rglob("*.tmp")) == []
    for name, content in data_files(output).items():
        assert expected[name] == content, name
    for record in commit_records(output).values():
        for shard in record["shards"]:
            assert (output / shard["path"]).stat().st_size == shard["num_bytes"]


def check_finishes(job: dict[str, Any], output: Path, expected: dict[str, bytes]) -> None:
    run_inline(job)
    assert data_files(output) == expected


class FailingFile:
    """A file that fails at one of its operations, as its disk does."""

    def __init__(self, file: Any, operation: str, fail: Callable[[], None]) -> None:
        self._file, self._operation, self._fail = file, operation, fail

    def __getattr__(self, name: str) -> Any:
        if name == self._operation:
            if name == "close":
                self._file.close()
            self._fail()
        return getattr(self._file, name)

    def __enter__(self) -> "FailingFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


FULL, OVER_QUOTA, READ_ONLY, TOO_LARGE, BROKEN = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG),
    errno.EIO,
)


@pytest.mark.parametrize("at", [1, 4, 5])
@pytest.mark.parametrize(
    ("operation", "code", "error"),
    [
        ("file.write", FULL, SetupError),
        ("file.write", OVER_QUOTA, SetupError),
        ("file.write", TOO_LARGE, SetupError),
        ("file.write", BROKEN, TransientError),
        ("file.close", FULL, SetupError),
        ("tempfile.mkstemp", READ_ONLY, SetupError),
        ("os.link", FULL, SetupError),
        ("os.replace", READ_ONLY, SetupError),
    ],
)
def test_a_disk_that_fails_is_named_and_nothing_is_half(
    operation: str,
    code: int,
    error: type[TokenmillError],
    at: int,
    corpus: str,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out"
    job = text_job(corpus, output, run={"max_attempts": 1})
    calls = count(1)

    def fail() -> None:
        if next(calls) >= at:  # and from then on
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        module, _, name = operation.partition(".")
        if module == "file":
            fdopen = os.fdopen
            patch.setattr(
                "pipeline.storage.os.fdopen", lambda *args: FailingFile(fdopen(*args), name, fail)
            )
        else:
            real = getattr(os if module == "os" else __import__("tempfile"), name)

            def failing(*args: Any, **options: Any) -> Any:
                fail()
                return real(*args, **options)

            patch.setattr(f"pipeline.storage.{operation}", failing)
        with pytest.raises(error, match=rf"(?i){os.strerror(code)}") as found:
            run_inline(job)
    assert str(tmp_path) in str(found.value)
    check_unfinished(output, expected)
    check_finishes(job, output, expected)


class Disk:
    """A small file system of its own.

    Attributes:
        path: Where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, *options: str) -> None:
        """Mount it; raises CalledProcessError where that is not allowed."""
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tokenmill", str(self.path)]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    disk.path.mkdir()
    try:
        disk.mount("size=400k")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a file system is not allowed here: {error}")
    yield disk
    with suppress(subprocess.CalledProcessError):
        subprocess.run(["umount", "--lazy", str(disk.path)], check=True, capture_output=True)


def test_a_full_disk(corpus: str, expected: dict[str, bytes], disk: Disk) -> None:
    output = disk.path / "out"
    job = text_job(corpus, output)
    with pytest.raises(SetupError, match=r"no space left on device; free space or choose"):
        run_inline(job)
    assert 0 < len(commit_records(output)) < 6
    check_unfinished(output, expected)
    disk.mount("remount", "size=40m")
    check_finishes(job, output, expected)


def test_a_read_only_disk(corpus: str, expected: dict[str, bytes], disk: Disk) -> None:
    output = disk.path / "out"
    job = text_job(corpus, output)
    disk.mount("remount", "size=40m", "ro")
    with pytest.raises(SetupError, match=f"{output}.*: read-only file system; free space or"):
        run_inline(job)
    disk.mount("remount", "size=40m", "rw")
    assert list(disk.path.iterdir()) == []
    check_finishes(job, output, expected)


def test_a_disk_that_becomes_read_only(corpus: str, expected: dict[str, bytes], disk: Disk) -> None:
    output = disk.path / "out"
    job = text_job(corpus, output)
    with pytest.raises(SetupError, match="no space left on device"):
        run_inline(job)
    disk.mount("remount", "size=40m", "ro")
    with pytest.raises(SetupError, match="read-only file system"):
        run_inline(job)
    check_unfinished(output, expected)
    disk.mount("remount", "size=40m", "rw")
    check_finishes(job, output, expected)


LIMITED = """
import resource, sys
from pipeline.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
sys.argv = ["pipeline", "run", "job.yaml", "--engine", "inline"]
main()
"""


def test_a_limit_of_the_size_of_files(
    corpus: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """By the command line, in a process that the system holds to the limit."""
    output = tmp_path / "out"
    job = text_job(corpus, output)
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == SetupError.exit_code, done.stderr
    assert "shards/0000000-000.arrow: file too large" in done.stderr
    assert "Traceback" not in done.stderr
    check_unfinished(output, expected)
    check_finishes(job, output, expected)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


CHANGES: dict[str, tuple[Callable[[Path], object], type[TokenmillError], str]] = {
    "grown": (grow, IntegrityError, "is not the one that was planned: .* bytes of version"),
    "touched": (touch, IntegrityError, "is not the one that was planned: .* of version 1, the"),
    "of the same size": (rewrite, IntegrityError, "is not the one that was planned"),
    "vanished": (Path.unlink, NotFoundError, "no such object, the plan has one of .* put it back"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["jsonl", "webdataset", "image_folder", "parquet"])
def test_input_that_changes_after_the_plan(change: str, kind: str, tmp_path: Path) -> None:
    how, error, says = CHANGES[change]
    job, victim = changing_job(kind, tmp_path)
    run_inline({**job, "output": str(tmp_path / "undisturbed")})
    expected = data_files(tmp_path / "undisturbed")
    was, times = victim.read_bytes(), victim.stat().st_mtime_ns

    with pytest.raises(error, match=f"{victim}.*{says}") as found:
        run_inline(job, listener=AtBegin(lambda: how(victim)))
    assert found.value.exit_code == 5
    check_unfinished(tmp_path / "out", expected)
    with pytest.raises(error, match=says):  # nor does it go on without it
        run_inline(job)

    victim.write_bytes(was)
    os.utime(victim, ns=(times, times))
    check_finishes(job, tmp_path / "out", expected)


def changing_job(kind: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """Return a job over input of a kind, and a file of the second partition."""
    output = folder / "out"
    if kind == "webdataset":
        return picture_job(write_corpus(folder / "in", 3, 4), output), folder / "in" / "01.tar"
    if kind == "jsonl":
        return text_job(write_texts(folder / "in"), output), folder / "in" / "1.jsonl"
    if kind == "image_folder":
        write_texts(folder / "in")
        source: dict[str, Any] = {"type": kind, "urls": str(folder / "in")}
        source["extensions"] = ["jsonl"]
        step: Any = {"name": "byte_text", "inputs": {"text": "path"}}
        changes = {"source": {**source, "partition_bytes": 1}, "operators": [step]}
        return text_job("", output, **changes), folder / "in" / "1.jsonl"
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "in").mkdir()
    for part in range(3):
        table = pa.table({"text": [f"text {part} {row}" for row in range(10)]})
        pq.write_table(table, folder / "in" / f"{part}.parquet")
    source = {"type": kind, "urls": f"{folder}/in/*.parquet", "fields": ["text"]}
    changes = {"source": {**source, "partition_bytes": 1}}
    return text_job("", output, **changes), folder / "in" / "1.parquet"


@pytest.mark.parametrize("kind", ["jsonl", "webdataset", "parquet"])
@pytest.mark.parametrize("change", [grow, touch])
def test_input_that_changes_while_it_is_read(
    change: Callable[[Path], None], kind: str, tmp_path: Path
) -> None:
    job, victim = changing_job(kind, tmp_path)
    config = TypeAdapter(SourceConfig).validate_python({**job["source"], "urls": str(victim)})
    source = build_source(config, Storage(), [str(victim)])
    blocks = source.read(next(source.list_partitions()), 2)
    next(blocks)
    change(victim)
    with pytest.raises(IntegrityError, match=f"{victim}.*is not the one that was planned"):
        list(blocks)
