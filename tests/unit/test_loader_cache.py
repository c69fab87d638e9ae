"""The node's cache of remote shards, what is fetched ahead, and data sets with bad shards."""

import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import pickle
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.errors import ContractError, IntegrityError, SetupError, TransientError
from pipeline.loader import (
    MixedDataset,
    Packed,
    Samples,
    Source,
    TokenDataset,
    Windows,
    cache,
    prefetch,
)
from pipeline.loader.cache import RemoteShard, ShardCache
from pipeline.loader.order import BlockShuffle
from pipeline.loader.prefetch import Prefetch, looks
from pipeline.loader.view import View
from pipeline.storage import NotFoundError, Storage
from tests.loader_data import rows, write_data_set

SIZE = 1_000
NUM, PARTS = 40, 8


class Objects(Storage):
    """A store of a few objects that counts how often each is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def open_read(self, uri: str, *, read_ahead: bool = True) -> BinaryIO:
        self.reads.append(uri)
        return io.BytesIO(content(uri))


def content(uri: str) -> bytes:
    return (uri * SIZE).encode()[:SIZE]


def shard(name: str, store: Objects, **changes: Any) -> RemoteShard:
    sha256 = hashlib.sha256(content(name)).hexdigest()
    return RemoteShard(
        **{"storage": store, "uri": name, "num_bytes": SIZE, "sha256": sha256, **changes}
    )


@pytest.fixture
def store() -> Objects:
    return Objects()


def copies(folder: Path) -> set[str]:
    """Return which of the shards a, b, ... have a copy."""
    names = {hashlib.sha256(content(c)).hexdigest(): c for c in "abcdefgh"}
    return {names[path.stem] for path in folder.glob("*.arrow")}


def never() -> bool:
    return False


# The folder


def test_a_copy_is_made_once_and_found_by_others(tmp_path: Path, store: Objects) -> None:
    first = ShardCache(tmp_path, 10 * SIZE, SIZE)
    buffer, is_checked = first.map(shard("a", store))
    assert (buffer.to_pybytes(), is_checked) == (content("a"), True)
    again, is_checked = ShardCache(tmp_path, 10 * SIZE, SIZE).map(shard("a", store))
    assert (again.to_pybytes(), is_checked) == (content("a"), False)
    assert store.reads == ["a"]


def test_what_was_used_longest_ago_is_removed(tmp_path: Path, store: Objects) -> None:
    found = ShardCache(tmp_path, 3 * SIZE, SIZE)
    for name in "abcad":
        found.map(shard(name, store))
        time.sleep(0.01)  # the times of files have steps
    assert copies(tmp_path) == {"a", "c", "d"}
    for name in "efgh":
        found.fetch(shard(name, store), never)
    assert len(copies(tmp_path)) == 3


def test_what_is_mapped_stays_and_the_bound_is_told_of(
    tmp_path: Path, store: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    found = ShardCache(tmp_path, 2 * SIZE, SIZE)
    kept = [found.map(shard(name, store))[0] for name in "ab"]
    other = ShardCache(tmp_path, 2 * SIZE, SIZE)
    with caplog.at_level(logging.WARNING):
        other.map(shard("c", store))
        other.map(shard("d", store))
    assert copies(tmp_path) == {"a", "b", "d"}
    [record] = caplog.records
    assert "3000 bytes of shards are in use at once, more than the 2000" in record.getMessage()
    del kept
    other.map(shard("e", store))
    assert len(copies(tmp_path)) == 2


def test_readers_share_half_of_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "COUNT_USERS_S", 0.0)
    first, second = (ShardCache(tmp_path, 20 * SIZE, SIZE) for _ in range(2))
    assert first.max_mapped() == 10
    assert [second.max_mapped(), first.max_mapped()] == [5, 5]
    copied = pickle.loads(pickle.dumps(second))
    assert copied.max_mapped() == 3
    del second, copied
    assert first.max_mapped() == 10
    assert len(list((tmp_path / "users").iterdir())) == 1


def test_files_of_others_are_never_removed(tmp_path: Path, store: Objects) -> None:
    target = tmp_path / "elsewhere.bin"
    theirs = ["notes.txt", "model.arrow", "0" * 64, f"{'0' * 63}.arrow", f"{'g' * 64}.partial"]
    for name in [target.name, *theirs]:
        (tmp_path / name).write_bytes(b"x" * SIZE)
    (tmp_path / f"{'1' * 64}.arrow").mkdir()
    (tmp_path / f"{'2' * 64}.partial").symlink_to(target)
    before = set(tmp_path.iterdir())
    found = ShardCache(tmp_path, SIZE, SIZE)
    for name in "abc":
        found.map(shard(name, store))
    assert before <= set(tmp_path.iterdir())
    assert target.read_bytes() == b"x" * SIZE


def test_a_link_is_not_written_through(tmp_path: Path, store: Objects) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"x")
    wanted = shard("a", store)
    (tmp_path / f"{wanted.sha256}.partial").symlink_to(target)
    with pytest.raises(SetupError, match=r"cache folder .*symbolic links"):
        ShardCache(tmp_path, 9 * SIZE, SIZE).map(wanted)
    assert target.read_bytes() == b"x"


def test_partial_files_of_the_dead_are_removed_and_no_others(
    tmp_path: Path, store: Objects
) -> None:
    dead, alive = (tmp_path / f"{digit * 64}.partial" for digit in "12")
    dead.write_bytes(b"half")
    alive.write_bytes(b"half")
    with alive.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = ShardCache(tmp_path, 2 * SIZE, SIZE)
        assert not dead.exists()
        dead.write_bytes(b"half")
        for name in "abc":
            found.map(shard(name, store))
        assert not dead.exists()
        assert alive.read_bytes() == b"half"


def test_a_partial_file_of_the_dead_is_taken_over(tmp_path: Path, store: Objects) -> None:
    found, wanted = ShardCache(tmp_path, 2 * SIZE, SIZE), shard("a", store)
    (tmp_path / f"{wanted.sha256}.partial").write_bytes(b"x" * 3 * SIZE)
    assert found.map(wanted)[0].to_pybytes() == content("a")
    assert not list(tmp_path.glob("*.partial"))


def test_a_shard_that_another_process_fetches_is_not_fetched_ahead(
    tmp_path: Path, store: Objects
) -> None:
    found, wanted = ShardCache(tmp_path, 2 * SIZE, SIZE), shard("a", store)
    partial = tmp_path / f"{wanted.sha256}.partial"
    with partial.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found.fetch(wanted, never)
        assert store.reads == []
    found.fetch(wanted, never)
    assert store.reads == ["a"]


def test_fetching_stops_when_told(tmp_path: Path, store: Objects) -> None:
    ShardCache(tmp_path, 2 * SIZE, SIZE).fetch(shard("a", store), lambda: True)
    assert not list(tmp_path.glob("*.*"))


def test_a_copy_of_the_wrong_size_is_fetched_again(tmp_path: Path, store: Objects) -> None:
    found, wanted = ShardCache(tmp_path, 2 * SIZE, SIZE), shard("a", store)
    (tmp_path / f"{wanted.sha256}.arrow").write_bytes(b"short")
    assert found.map(wanted)[0].to_pybytes() == content("a")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sha256": "0" * 64}, "a: sha256 .*, the index says 000000000000"),
        ({"num_bytes": SIZE + 1}, "a: 1,000 bytes, the index says 1,001"),
        ({"num_bytes": SIZE - 1}, "a: 1,000 bytes, the index says 999"),
    ],
)
def test_what_arrives_must_be_what_the_index_says(
    changes: dict[str, Any], says: str, tmp_path: Path, store: Objects
) -> None:
    with pytest.raises(IntegrityError, match=says):
        ShardCache(tmp_path, 2 * SIZE, SIZE).map(shard("a", store, **changes))
    assert not list(tmp_path.glob("*.*"))


def test_the_bound_must_hold_a_shard(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"cache_bytes is 999 bytes, .* has 1,000"):
        ShardCache(tmp_path, SIZE - 1, SIZE)
    with pytest.raises(SetupError, match=r"half of what is free is .* the largest shard has"):
        ShardCache(tmp_path, None, 1 << 60)


def test_the_bound_is_half_of_what_is_free_for_copies(
    tmp_path: Path, store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    ShardCache(tmp_path, 2 * SIZE, SIZE).map(shard("a", store))
    free = SimpleNamespace(free=9 * SIZE)
    monkeypatch.setattr("pipeline.loader.cache.shutil.disk_usage", lambda _: free)
    assert ShardCache(tmp_path, None, SIZE).max_bytes == 5 * SIZE


def test_the_own_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = tmp_path / f"tokenmill-{os.getuid()}"
    ShardCache(None, SIZE, SIZE)
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in own.iterdir()} == {0o600}
    own.chmod(0o777)
    with pytest.raises(SetupError, match="not a folder that only this user may write to"):
        ShardCache(None, SIZE, SIZE)


def test_a_folder_of_several_users_stays_one(tmp_path: Path, store: Objects) -> None:
    tmp_path.chmod(0o770)
    found = ShardCache(tmp_path, SIZE, SIZE)
    found.max_mapped()
    found.map(shard("a", store))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o660}


# The disk


def failing(monkeypatch: pytest.MonkeyPatch, code: int, is_full: Callable[[], bool]) -> None:
    """Let writing to copies fail while a condition holds; the ledger's few bytes are written."""
    real = os.pwrite

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        if len(data) > 100 and is_full():
            raise OSError(code, os.strerror(code))
        return real(descriptor, data, offset)

    monkeypatch.setattr("pipeline.loader.cache.os.pwrite", pwrite)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_makes_room_by_removing_copies(
    code: int, tmp_path: Path, store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ShardCache(tmp_path, 9 * SIZE, SIZE)
    for name in "ab":
        found.map(shard(name, store))
        time.sleep(0.01)
    failing(monkeypatch, code, lambda: len(copies(tmp_path)) >= 2)
    assert found.map(shard("c", store))[0].to_pybytes() == content("c")
    assert copies(tmp_path) == {"b", "c"}


@pytest.mark.parametrize(("code", "kept"), [(errno.ENOSPC, 0), (errno.EFBIG, 1), (errno.EROFS, 1)])
def test_a_disk_without_room_is_named(
    code: int, kept: int, tmp_path: Path, store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ShardCache(tmp_path, 9 * SIZE, SIZE)
    found.map(shard("a", store))
    with monkeypatch.context() as patch:
        failing(patch, code, lambda: True)
        says = (
            rf"{tmp_path}: {os.strerror(code).lower()} while copying b, .* bytes are free, "
            "cache_bytes is 9,000"
        )
        with pytest.raises(SetupError, match=says):
            found.map(shard("b", store))
    assert len(list(tmp_path.glob("*.*"))) == kept
    assert found.map(shard("b", store))[0].to_pybytes() == content("b")


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("pipeline.loader.cache.fcntl.flock", flock)
    with pytest.raises(SetupError, match=r"no locks \(flock\); choose a cache_dir on a disk"):
        ShardCache(tmp_path, SIZE, SIZE)


# What is fetched ahead


class Fetched:
    """Shards of which some may be fetched ahead; holds what was asked for, in order."""

    def __init__(self, num_ahead: int, max_ahead: int) -> None:
        self.num_ahead, self.max_ahead = num_ahead, max_ahead
        self.asked: list[int] = []

    def fetch(self, shard: int, stopped: Callable[[], bool]) -> None:
        self.asked.append(shard)


def ahead_of(files: Fetched, shards: list[int]) -> Prefetch:
    """Return a prefetch of items that need a shard each."""
    items = iter(np.array_split(np.arange(len(shards)), 3))
    return Prefetch(files, looks(items, lambda item: np.array(shards)[item], max(shards) + 1))


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "LOOK_ITEMS", 1)
    monkeypatch.setattr(prefetch, "PREFETCH_THREADS", 1)


def until(files: Fetched, num: int) -> list[int]:
    deadline = time.monotonic() + 20
    while len(files.asked) < num and time.monotonic() < deadline:
        time.sleep(0.001)
    return files.asked


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize(("num_ahead", "max_ahead"), [(2, 9), (9, 2)])
def test_only_the_next_shards_are_fetched(num_ahead: int, max_ahead: int) -> None:
    order = [3, 3, 1, 3, 0, 4, 2, 5]
    files = Fetched(num_ahead, max_ahead)
    found = ahead_of(files, order)
    found.advance(1)  # 3 is being read
    assert until(files, 2) == [1, 0]
    found.advance(1)
    found.advance(1)  # 1 is being read
    assert until(files, 3) == [1, 0, 4]
    found.advance(5)  # as far as the end: what is left is not fetched any more
    found.close()
    for thread in found._threads:
        thread.join(20)
        assert not thread.is_alive()
    assert files.asked == [1, 0, 4]


@pytest.mark.usefixtures("one_by_one")
def test_a_batch_pays_for_a_few_looks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "LOOKS", 3)
    files = Fetched(2, 9)
    found = ahead_of(files, [0] * 5 + [1])
    found.advance(1)
    assert files.asked == []
    found.advance(1)
    assert until(files, 1) == [1]
    found.close()


# Data sets


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return Path(write_data_set(tmp_path / "own", rows(NUM), partitions=PARTS))


@pytest.fixture
def remote(own: Path) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.put(str(own), "/bucket/set", recursive=True)
    yield "memory://bucket/set"
    memory.rm("/bucket", recursive=True)


def keys(batches: Any) -> list[list[int]]:
    return [[int(key) for key in batch["key"]] for batch in batches]


def largest_shard(own: Path) -> int:
    return max(path.stat().st_size for path in (own / "shards").iterdir())


@pytest.mark.parametrize("prefetch_shards", [0, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_bound_holds_while_epochs_are_read(
    shuffle: bool, prefetch_shards: int, own: Path, remote: str, tmp_path: Path
) -> None:
    bound = 4 * largest_shard(own)
    folder = tmp_path / "cache"
    data = TokenDataset(
        remote,
        batch_size=1,
        fields=["key"],
        shuffle=shuffle,
        cache_dir=folder,
        cache_bytes=bound,
        prefetch_shards=prefetch_shards,
    )
    want = keys(TokenDataset(own, batch_size=1, fields=["key"], shuffle=shuffle))
    for _ in range(2):
        found = []
        for batch in data:
            found.append([int(batch["key"][0])])
            assert bytes_in(folder) <= bound
        assert found == want


def bytes_in(folder: Path) -> int:
    """Return the bytes of whole and partial copies, which come, go and are renamed meanwhile."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                about = entry.stat()
                found[about.st_ino] = about.st_size if "." in entry.name else 0
    return sum(found.values())


def copied(folder: Path) -> list[Path]:
    return list(folder.glob("*.arrow"))


def test_what_comes_next_is_here_before_it_is_read(own: Path, remote: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    data = TokenDataset(remote, batch_size=2, shuffle=False, cache_dir=folder, prefetch_shards=3)
    batches = iter(data)
    next(batches)
    index = [path.name for path in sorted((own / "shards").iterdir())]
    deadline = time.monotonic() + 20
    # All shards are within the first look, so they count as needed now.
    while len(copied(folder)) < len(index) and time.monotonic() < deadline:
        time.sleep(0.01)
    fsspec.filesystem("memory").rm("/bucket/set/shards", recursive=True)
    assert len(list(batches)) == NUM // 2 - 1


def test_errors_of_what_is_fetched_ahead_come_when_it_is_read(
    own: Path, remote: str, tmp_path: Path
) -> None:
    fsspec.filesystem("memory").rm("/bucket/set/shards/0000002-000.arrow")
    data = TokenDataset(remote, batch_size=5, shuffle=False, cache_dir=tmp_path / "cache")
    batches = iter(data)
    next(batches), next(batches)
    sha256 = hashlib.sha256((own / "shards/0000002-000.arrow").read_bytes()).hexdigest()
    with pytest.raises(NotFoundError, match=rf"0000002-000.arrow.*shard 2 of 8, sha256 {sha256}"):
        next(batches)


def test_a_damaged_copy_is_found_by_verify_and_fetched_again(
    own: Path, remote: str, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    options: dict[str, Any] = {"batch_size": 5, "fields": ["key", "image"], "cache_dir": folder}
    want = [batch["image"].tolist() for batch in TokenDataset(remote, **options)]
    for path in copied(folder):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    found = [batch["image"].tolist() for batch in TokenDataset(remote, verify=True, **options)]
    assert found == want
    for path in copied(folder):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"prefetch_shards": -1}, "prefetch_shards=-1, expected 0 or more"),
        ({"on_bad_shard": "ignore"}, "on_bad_shard='ignore', expected 'raise' or 'skip'"),
    ],
)
def test_options_out_of_bounds_are_refused(option: dict[str, Any], says: str, own: Path) -> None:
    with pytest.raises(ContractError, match=says):
        TokenDataset(own, batch_size=2, **option)


# Bad shards


def missing(path: Path) -> None:
    path.unlink()


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def another_run(path: Path) -> None:
    other = write_data_set(
        path.parents[2] / "other", rows(NUM), partitions=PARTS, fingerprint="cd" * 32
    )
    path.write_bytes((Path(other) / "shards" / path.name).read_bytes())


BAD = [
    (missing, "missing"),
    (shortened, "damaged"),
    (zeroed, "damaged"),
    (another_run, "damaged"),
]
BAD_ROWS = set(range(10, 15))  # of partition 2


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("how", "reason"), BAD)
def test_rows_of_a_bad_shard_are_left_out(
    how: Callable[[Path], None],
    reason: str,
    shuffle: bool,
    is_remote: bool,
    own: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options: dict[str, Any] = {"batch_size": 4, "fields": ["key", "text"], "shuffle": shuffle}
    want = keys(TokenDataset(own, **options))
    sha256 = hashlib.sha256((own / "shards/0000002-000.arrow").read_bytes()).hexdigest()
    how(own / "shards/0000002-000.arrow")
    url = str(own)
    if is_remote:
        url = "memory://skipped/set"
        fsspec.filesystem("memory").put(str(own), "/skipped/set", recursive=True)
        options["cache_dir"] = tmp_path / "cache"
    data = TokenDataset(url, on_bad_shard="skip", **options)
    assert not data.skipped
    try:
        with caplog.at_level(logging.WARNING):
            found, again = keys(data), keys(data)
    finally:
        if is_remote:
            fsspec.filesystem("memory").rm("/skipped", recursive=True)
    assert found == again == [[key for key in batch if key not in BAD_ROWS] for batch in want]
    [bad] = data.skipped
    assert (bad.uri, bad.samples) == (f"{url}/shards/0000002-000.arrow", 5)
    assert (bad.sha256, bad.reason) == (sha256, reason)
    [record] = caplog.records
    assert f"5 samples are skipped (sha256 {sha256}): {bad.uri}" in record.getMessage()
    assert data.state_dict() == {**data.state_dict(), "position": NUM}


def test_a_resume_counts_what_is_skipped(own: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "fields": ["key"], "on_bad_shard": "skip"}
    missing(own / "shards/0000002-000.arrow")
    want = keys(TokenDataset(own, **options))
    data = TokenDataset(own, **options)
    batches = iter(data)
    for _ in range(3):
        next(batches)
    again = TokenDataset(own, **options)
    again.load_state_dict(json.loads(json.dumps(data.state_dict())))
    assert keys(again) == want[3:]


def test_workers_tell_what_they_skip(own: Path) -> None:
    missing(own / "shards/0000002-000.arrow")
    zeroed(own / "shards/0000005-000.arrow")
    data = TokenDataset(own, batch_size=4, fields=["key"], on_bad_shard="skip")
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork")
    found = keys(loader)
    assert [(bad.samples, bad.reason) for bad in data.skipped] == [(5, "missing"), (5, "damaged")]
    assert found == keys(data)


def test_a_store_that_is_away_is_no_bad_shard(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.WAITS_S", (0.0,))
    data = TokenDataset(
        remote,
        batch_size=4,
        cache_dir=tmp_path / "cache",
        on_bad_shard="skip",
        prefetch_shards=0,
    )
    opened = type(fsspec.filesystem("memory").store["/bucket/set/manifest.json"])

    def read(self: Any, size: int = -1) -> bytes:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(opened, "read", read, raising=False)
    with pytest.raises(TransientError, match="reset by peer"):
        next(iter(data))
    assert data.skipped == ()


@pytest.mark.parametrize("view", [None, Windows("text", 6), Packed("text", 8)])
def test_a_padded_batch_without_a_bad_shard_tells_its_padding(own: Path, view: View | None) -> None:
    options: dict[str, Any] = {"batch_size": 4, "world_size": 3, "rank": 2, "uneven": "pad"}
    options["cache_dir"] = own.parent / "cache"  # of the packs
    if view is None:
        options["fields"] = ["key"]
    want = list(TokenDataset(own, view=view, **options))
    missing(own / "shards/0000002-000.arrow")
    data = TokenDataset(own, view=view, on_bad_shard="skip", **options)
    found = list(data)
    assert [bad.reason for bad in data.skipped] == ["missing"]
    assert len(found) == len(want)
    num_left_out = 0
    for batch, whole in zip(found, want, strict=True):
        field = "key" if view is None else "text"
        rows, all_rows = (pairs(b[field], b["padding"]) for b in (batch, whole))
        num_left_out += len(all_rows) - len(rows)
        assert is_part(rows, all_rows)
    assert num_left_out > 0


def pairs(column: Any, padding: torch.Tensor) -> list[tuple[Any, bool]]:
    values = column.tolist() if isinstance(column, torch.Tensor) else list(column)
    return list(zip(values, padding.tolist(), strict=True))


def is_part(some: list[Any], of: list[Any]) -> bool:
    """Say whether some items are others with a few left out, in their order."""
    left = iter(of)
    return all(item in left for item in some)


# Mixtures


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_mixture_skips_too(is_remote: bool, own: Path, remote: str, tmp_path: Path) -> None:
    other = write_data_set(tmp_path / "other", rows(NUM), partitions=PARTS, fingerprint="cd" * 32)
    url = remote if is_remote else str(own)
    options: dict[str, Any] = {"batch_size": 8, "cache_dir": tmp_path / "cache"}
    want = list(mixture(url, other, **options))
    missing(own / "shards/0000002-000.arrow")
    if is_remote:
        fsspec.filesystem("memory").rm("/bucket/set/shards/0000002-000.arrow")
        options["cache_dir"] = tmp_path / "cold"
    data = mixture(url, other, on_bad_shard="skip", **options)
    found = list(data)
    for batch, whole in zip(found, want, strict=True):
        samples = [list(zip(b["source"].tolist(), b["key"], strict=True)) for b in (batch, whole)]
        bad = {(0, f"{row:05d}") for row in BAD_ROWS}
        assert samples[0] == [sample for sample in samples[1] if sample not in bad]
    assert [shard.samples for shard in data.skipped] == [5]
    with pytest.raises(NotFoundError, match=r"0000002-000.arrow.* sha256"):
        list(mixture(url, other, **options))


def mixture(first: str, second: str, **options: Any) -> MixedDataset:
    fields = Samples(["key", "text"])
    sources = [Source(first, epochs=2, view=fields), Source(second, epochs=1, view=fields)]
    return MixedDataset(sources, **options)


@pytest.mark.parametrize("prefetch_shards", [0, 2])
def test_the_bound_holds_for_a_mixture(
    prefetch_shards: int, own: Path, remote: str, tmp_path: Path
) -> None:
    bound, folder = 8 * largest_shard(own), tmp_path / "cache"
    other = write_data_set(tmp_path / "other", rows(NUM), partitions=PARTS, fingerprint="cd" * 32)
    options: dict[str, Any] = {"batch_size": 1, "shuffle": BlockShuffle(2, 5)}
    memory = fsspec.filesystem("memory")
    memory.put(other, "/bucket/other", recursive=True)
    data = mixture(
        remote,
        "memory://bucket/other",
        cache_dir=folder,
        cache_bytes=bound,
        prefetch_shards=prefetch_shards,
        **options,
    )
    found = []
    for batch in data:
        found.append(batch["key"])
        assert bytes_in(folder) <= bound
    assert found == [batch["key"] for batch in mixture(str(own), other, **options)]
