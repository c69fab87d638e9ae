"""Storage on disk: whole objects or none, one winner, and only our errors."""

import errno
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import AlreadyCommittedError, SetupError, TransientError
from pipeline.storage import Entry, NotFoundError, Storage, join, shown


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.WAITS_S", (0.0,) * 3)


@pytest.fixture
def storage() -> Storage:
    return Storage()


def test_what_is_written_is_read(storage: Storage, tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "folder" / "a")
    storage.write(uri, b"one")
    storage.write(uri, b"two")
    assert storage.read(uri) == b"two"
    with storage.open_read(f"file://{uri}") as file:
        file.seek(1)
        assert file.read() == b"wo"
    assert os.listdir(tmp_path / "new" / "folder") == ["a"]


def test_many_objects_come_in_order_and_not_all_at_once(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [str(tmp_path / f"{i}") for i in range(50)]
    for uri in uris:
        storage.write(uri, uri.encode())
    begun: list[str] = []
    read = Storage.read

    def counted(self: Storage, uri: str) -> bytes:
        begun.append(uri)
        return read(self, uri)

    monkeypatch.setattr(Storage, "read", counted)
    found = storage.read_many(uris, at_once=4)
    for taken, uri in enumerate(uris, 1):
        assert next(found) == uri.encode()
        assert len(begun) <= taken + 4
    assert list(found) == []
    assert list(storage.read_many([])) == []
    with pytest.raises(NotFoundError, match="absent: no such object"):
        list(storage.read_many([*uris, str(tmp_path / "absent")]))


def test_new_files_follow_the_umask(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    storage.write(str(tmp_path / "a"), b"")
    storage.create_exclusive(str(tmp_path / "b"), b"")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("before", [None, b"old"])
def test_an_error_while_writing_leaves_what_was(
    storage: Storage, tmp_path: Path, before: bytes | None
) -> None:
    path = tmp_path / "a"
    if before is not None:
        path.write_bytes(before)

    def interrupted() -> None:
        with storage.open_write(str(path)) as file:
            file.write(b"half")
            file.flush()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_reader_sees_nothing_before_the_end(storage: Storage, tmp_path: Path) -> None:
    path = tmp_path / "a"
    with storage.open_write(str(path)) as file:
        file.write(b"x")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"x"


def test_of_several_racers_one_wins(storage: Storage, tmp_path: Path) -> None:
    for attempt in range(20):
        uri = str(tmp_path / f"{attempt}")
        barrier = threading.Barrier(8)
        winners: list[bytes] = []

        def race(name: bytes) -> None:
            barrier.wait()  # noqa: B023 - the threads end within the iteration
            try:
                storage.create_exclusive(uri, name * 1000)  # noqa: B023
            except AlreadyCommittedError:
                return
            winners.append(name)  # noqa: B023

        threads = [threading.Thread(target=race, args=(b"%d" % i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1
        assert storage.read(uri) == winners[0] * 1000
    assert len(list(tmp_path.iterdir())) == 20


def test_an_existing_object_is_not_replaced(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"first")
    with pytest.raises(AlreadyCommittedError, match="a: exists already"):
        storage.create_exclusive(str(tmp_path / "a"), b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


def test_walk_gives_every_file_sorted(storage: Storage, tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a", "c/d/e", "b!"):
        storage.write(str(tmp_path / name), name.encode())
    found = list(storage.walk(str(tmp_path)))
    uris = [f"{tmp_path}/{name}" for name in ("a", "b!", "b/1", "b/2", "c/d/e")]
    assert [entry.uri for entry in found] == uris
    assert [entry.num_bytes for entry in found] == [1, 2, 3, 3, 5]
    assert all(entry == storage.stat(entry.uri) for entry in found)
    assert list(storage.walk(str(tmp_path / "absent"))) == []


def test_glob_gives_files_sorted(storage: Storage, tmp_path: Path) -> None:
    for name in ("x/b.tar", "x/a.tar", "x/c.tar/inner"):
        storage.write(str(tmp_path / name), b"1")
    found = storage.glob(f"{tmp_path}/x/*.tar")
    assert [entry.uri for entry in found] == [f"{tmp_path}/x/a.tar", f"{tmp_path}/x/b.tar"]
    assert found[0] == storage.stat(found[0].uri)
    assert storage.glob(f"{tmp_path}/y/*") == []


@pytest.mark.parametrize(
    "pattern",
    [
        *("*", "*.tar", "b/*", "b/c*/*.tar", "*/*", "*/c?/x.tar", "b/*/y*", "**/*.tar", "b/**"),
        *("b/**/x.tar", "*/c2/*", "[ab]*/*/*.[ts]*", "z*", "absent/*", "b/absent/*.tar", "a.tar/*"),
        *("*/d.tar", "[!a]*/*", ".*", "b/d.tar"),
    ],
)
def test_patterns_mean_what_they_mean_to_fsspec(
    storage: Storage, tmp_path: Path, pattern: str
) -> None:
    names = ("a.tar", "a.sh", ".h", "b/c1/x.tar", "b/c1/y.tar", "b/c2/x.tar", "b/d.tar", "bc/c3/x")
    for name in names:
        storage.write(str(tmp_path / name), b"x")
    expected = fsspec.filesystem("file").glob(f"{tmp_path}/{pattern}", detail=True)
    files = sorted(name for name, info in expected.items() if info["type"] == "file")
    assert [entry.uri for entry in storage.glob(f"{tmp_path}/{pattern}")] == files


@pytest.mark.parametrize("pattern", ["*/*", "a*/*", "**/*"])
def test_a_folder_that_cannot_be_listed_is_an_error(
    storage: Storage, tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fsspec would give the files of the others."""
    for name in ("a/x", "ab/x"):
        storage.write(str(tmp_path / name), b"x")
    scandir = os.scandir

    def failing(path: Any) -> Any:
        if str(path).endswith("/ab"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", failing)
    with pytest.raises(SetupError, match="permission denied"):
        storage.glob(f"{tmp_path}/{pattern}")


def test_stat_of_an_absent_object_or_a_folder_is_none(storage: Storage, tmp_path: Path) -> None:
    assert storage.stat(str(tmp_path / "absent")) is None
    assert storage.stat(str(tmp_path)) is None
    (tmp_path / "file").write_bytes(b"")
    assert storage.stat(str(tmp_path / "file" / "below")) is None


def test_version_changes_with_the_content(storage: Storage, tmp_path: Path) -> None:
    uri = str(tmp_path / "a")
    storage.write(uri, b"1")
    os.utime(uri, ns=(1, 1))
    assert storage.stat(uri) == Entry(uri, 1, "1")


def test_remove_is_fine_with_nothing(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    storage.remove(str(tmp_path / "a"))
    storage.remove(str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("base", "parts", "want"),
    [
        ("/x", ["a", "b"], "/x/a/b"),
        ("/x/", ["a/", "/b"], "/x/a/b"),
        ("s3://bucket", ["a/b"], "s3://bucket/a/b"),
        ("s3://bucket/", ["a"], "s3://bucket/a"),
        ("", ["a", "b"], "a/b"),
        ("/", ["a"], "/a"),
    ],
)
def test_join(base: str, parts: list[str], want: str) -> None:
    assert join(base, *parts) == want


@pytest.mark.parametrize("name", ["open_read", "read"])
def test_a_missing_object_is_named(storage: Storage, tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match="absent: no such object"):
        getattr(storage, name)(str(tmp_path / "absent"))


def test_a_folder_is_no_object(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is a directory; check the path"):
        storage.read(str(tmp_path))


def test_a_file_in_the_place_of_a_folder_is_named(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(SetupError, match="a/b/c: not a directory"):
        storage.write(str(tmp_path / "a" / "b" / "c"), b"")


def test_an_unknown_protocol_is_named(storage: Storage) -> None:
    with pytest.raises(SetupError, match="quux://a"):
        storage.read("quux://a")


class FailingFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Raises what a test puts into ``error``."""

    protocol = "failing"
    cachable = False
    error: Exception

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        raise type(self).error


class ClientError(Exception):
    """Stands for an HTTP client's error that is no OSError."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


ClientError.__module__ = "aiohttp.client_exceptions"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], Storage]:
    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)

    def storage(error: Exception) -> Storage:
        monkeypatch.setattr(FailingFileSystem, "error", error, raising=False)
        return Storage({"failing": {"secret": "hunter2", "client": {"token": "t0ken"}}})

    return storage


@pytest.mark.parametrize(
    ("error", "ours", "match"),
    [
        (FileNotFoundError("x"), NotFoundError, "failing://a: no such object"),
        (PermissionError("x"), SetupError, r"failing://a: permission denied \(PermissionError\)"),
        (OSError(errno.ENOSPC, "No space left"), SetupError, "no space left; free space or"),
        (OSError(errno.EIO, "boom"), TransientError, r"failing://a: OSError: \[Errno 5\] boom"),
        (ConnectionResetError("reset"), TransientError, "ConnectionResetError: reset"),
        (TimeoutError("slow"), TransientError, "TimeoutError: slow"),
        (ClientError("bad gateway", 502), TransientError, "ClientError: bad gateway"),
        (ClientError("forbidden", 403), SetupError, r"permission denied \(HTTP 403\)"),
    ],
    ids=str,
)
def test_errors_are_ours(
    failing: Callable[[Exception], Storage], error: Exception, ours: type[Exception], match: str
) -> None:
    with pytest.raises(ours, match=match):
        failing(error).read("failing://a")


def test_a_bug_stays_a_bug(failing: Callable[[Exception], Storage]) -> None:
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError()).read("failing://a")


def test_secrets_do_not_show_in_errors(failing: Callable[[Exception], Storage]) -> None:
    error = OSError("refused hunter2 with t0ken at http://h/x?X-Amz-Signature=abc&y=1 (again)")
    with pytest.raises(TransientError) as found:
        failing(error).read("failing://a?sig=abc")
    text = str(found.value)
    assert text == "failing://a: OSError: refused *** with *** at http://h/x?*** (again)"
    assert found.value.__cause__ is None
    assert found.value.__suppress_context__


def test_a_uri_is_shown_without_its_secrets() -> None:
    assert shown("https://me:pass@host/a/b?token=1") == "https://***@host/a/b"
    assert shown("/data/what?.tar") == "/data/what?.tar"


def test_errors_while_reading_are_ours_too(failing: Callable[[Exception], Storage]) -> None:
    storage = failing(ConnectionResetError("reset"))
    MemoryFileSystem.store.clear()
    storage.write("failing://a", b"data")
    with storage.open_read("failing://a") as file:
        file._file.read = lambda size: FailingFileSystem().cat_file("a")  # type: ignore[attr-defined]
        with pytest.raises(TransientError, match="failing://a: ConnectionResetError: reset"):
            file.read(1)


def test_a_copy_for_a_worker_keeps_the_options() -> None:
    options = {"s3": {"key": "k"}}
    copy = pickle.loads(pickle.dumps(Storage(options)))
    assert copy.__dict__ == Storage(options).__dict__
