"""Processes that die with a lock of the loader's cache, disks that fill up, shards that vanish."""

import hashlib
import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
import pytest

from pipeline.errors import SetupError
from pipeline.loader import TokenDataset, shards
from pipeline.loader.cache import RemoteShard, ShardCache
from pipeline.loader.files import OnBadShard
from pipeline.storage import NotFoundError, Storage
from tests.corpus import environment
from tests.faults.test_disk import Disk, disk
from tests.loader_data import rows, write_data_set

__all__ = ["disk"]  # a fixture

pytestmark = pytest.mark.timeout(120)

CONTENT = b"0123456789" * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class OneObject(Storage):
    def open_read(self, uri: str, *, read_ahead: bool = True) -> BinaryIO:
        return io.BytesIO(CONTENT)


def shard(storage: Storage | None = None) -> RemoteShard:
    return RemoteShard(storage or OneObject(), "store://object", len(CONTENT), SHA256)


CHILD = """
import sys, time
from pipeline.loader.cache import ShardCache
from tests.faults import test_loader_cache as here

class Slow(here.OneObject):
    def open_read(self, uri, **_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, size):
        print("reading", flush=True)
        time.sleep(1000)

cache = ShardCache(sys.argv[1], 10 * len(here.CONTENT), 1)
if sys.argv[2] == "downloads":
    cache.map(here.shard(Slow()))
held, _ = cache.map(here.shard())
cache.max_mapped()
print("mapped", flush=True)
time.sleep(1000)
"""


@contextmanager
def child(folder: Path, does: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a process until it holds a lock, and kill it in the end if it lives."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), does],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_another_process_takes_over_when_one_is_killed_at_a_download(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 10 * len(CONTENT), len(CONTENT))
    with child(tmp_path, "downloads") as process:
        [partial] = tmp_path.glob("*.partial")
        ShardCache(tmp_path, 10 * len(CONTENT), len(CONTENT))  # cleans up
        cache.fetch(shard(), lambda: False)
        assert list(tmp_path.glob("*.*")) == [partial]  # it is the other's to bring
        process.send_signal(signal.SIGKILL)
        buffer, is_checked = cache.map(shard())  # which waits
        assert buffer.to_pybytes() == CONTENT
        assert is_checked
    assert [path.suffix for path in tmp_path.glob("*.*")] == [".arrow"]


def test_what_a_killed_process_left_is_removed_when_a_cache_is_opened(tmp_path: Path) -> None:
    with child(tmp_path, "downloads"):
        assert list(tmp_path.glob("*.partial"))
    ShardCache(tmp_path, 10 * len(CONTENT), len(CONTENT))
    assert not list(tmp_path.glob("*.partial"))


def test_a_killed_reader_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.loader.cache.COUNT_USERS_S", 0.0)
    cache = ShardCache(tmp_path, len(CONTENT), 1)
    with child(tmp_path, "maps") as process:
        together = cache.max_mapped()
        assert cache._make_room(1) == 0
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert cache._make_room(1) == len(CONTENT)
        assert cache.max_mapped() == 2 * together


STUCK = """
import threading, time
from pipeline.loader.prefetch import Prefetch

begun = threading.Event()

class Stuck:
    num_ahead = max_ahead = 2

    def fetch(self, shard, stopped):
        begun.set()
        time.sleep(1000)

Prefetch(Stuck(), iter([(1, [0]), (1, [1])])).advance(1)
assert begun.wait(60)
"""


def test_a_fetch_that_hangs_does_not_keep_its_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STUCK]
    subprocess.run(command, env=environment(), timeout=100, check=True)


# Disks


def test_a_full_disk_gives_room_for_what_is_read(tmp_path: Path, disk: Disk) -> None:
    """The disk has less room than the bound: copies go, and the epoch is whole."""
    own = write_data_set(tmp_path / "own", rows(2_000), partitions=8)
    size = max(path.stat().st_size for path in Path(own, "shards").iterdir())
    memory = fsspec.filesystem("memory")
    memory.put(own, "/full/set", recursive=True)
    disk.mount("remount", f"size={4 * size}")
    options: dict[str, Any] = {"batch_size": 50, "fields": ["key"], "shuffle": False}
    try:
        data = TokenDataset(
            "memory://full/set", cache_dir=disk.path / "in", cache_bytes=100 * size, **options
        )
        found = [int(key) for batch in data for key in batch["key"]]
    finally:
        memory.rm("/full", recursive=True)
    assert found == list(range(2_000))


def test_a_disk_full_of_other_files_is_named(tmp_path: Path, disk: Disk) -> None:
    cache = ShardCache(disk.path / "cache", 10 * len(CONTENT), len(CONTENT))
    (disk.path / "others").write_bytes(bytes(300_000))
    says = r"cache: no space left on device while copying store://object, [\d,]+ bytes are free"
    with pytest.raises(SetupError, match=says):
        cache.map(shard())
    assert not list(cache.folder.glob("*.*"))
    (disk.path / "others").unlink()
    assert cache.map(shard())[0].to_pybytes() == CONTENT


LIMITED = """
import resource, sys
from pipeline.errors import SetupError
from pipeline.loader.cache import ShardCache
from tests.faults import test_loader_cache as here

cache = ShardCache(sys.argv[1], 10 * len(here.CONTENT), 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    cache.map(here.shard())
except SetupError as error:
    print(error)
"""


def test_a_limit_of_the_size_of_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert f"cache folder {tmp_path}: file too large while copying store://object" in done.stdout
    assert not list(tmp_path.glob("*.*"))


# Shards that vanish


@pytest.mark.parametrize("on_bad_shard", ["raise", "skip"])
def test_a_shard_deleted_mid_epoch(
    on_bad_shard: OnBadShard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is mapped stays readable; once it is not, the shard is missing."""
    own = write_data_set(tmp_path, rows(40), partitions=8)
    order = [2, 11, 3, 12, 21, 31, 22, 4, 13]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "OPEN_SHARDS", 2)
        data = TokenDataset(own, batch_size=1, fields=["key"], on_bad_shard=on_bad_shard)
    monkeypatch.setattr(data, "_items", lambda _epoch, positions: np.array(order)[positions])
    monkeypatch.setattr(type(data), "num_positions", len(order))
    batches = iter(data)
    found = [next(batches)["key"] for _ in range(2)]
    for path in Path(own, "shards").iterdir():
        if "0000000" in path.name or "0000002" in path.name:
            path.unlink()
    found += [next(batches)["key"] for _ in range(5)]  # 21 and 31 take the places of both
    assert found == [[f"{row:05d}"] for row in order[:7]]
    if on_bad_shard == "raise":
        with pytest.raises(NotFoundError, match=r"0000000-000.arrow: no such shard"):
            next(batches)
    else:
        assert [next(batches)["key"] for _ in range(2)] == [[], []]
        missing = [f"{own}/shards/000000{number}-000.arrow" for number in (0, 2)]
        assert [bad.uri for bad in data.skipped] == missing
