"""Copies of remote shards in a folder that all processes of a node share.

``<sha256>.arrow`` is a whole, checked copy, ``<sha256>.partial`` one that is being made, ``users/``
has a file for every reader, and ``tokenmill-cache`` holds how many bytes there are. All that the
processes agree on are locks of the kernel (flock), which end with whoever holds them:

- a copy is locked by those that have it mapped, so none is removed that is in use, and what is
  removed is free at once;
- a partial file is locked by the one that writes it: others wait for it, take over when the lock is
  free and the copy is not there, or remove what a dead process left;
- ``tokenmill-cache`` is locked while room is made or taken.

Nothing but files of these names is ever removed.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from pipeline.errors import ContractError, IntegrityError, SetupError, TokenmillError
from pipeline.storage import Storage

CHUNK_BYTES = 8 << 20
"""A shard is copied in pieces of this size."""

POLL_S = 0.02
"""Between two looks at a copy that another process makes."""

COUNT_USERS_S = 5.0
"""The number of readers is counted no more often."""

_NAME = re.compile(r"[0-9a-f]{64}\.(arrow|partial)")
_LEDGER, _USERS = "tokenmill-cache", "users"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_HEADROOM = 20  # room is made for 1 / _HEADROOM of the bound at a time: a look at all files costs

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RemoteShard:
    """A shard in a store.

    Attributes:
        storage: How to reach it.
        uri: Its address.
        num_bytes: Its size by the index.
        sha256: Of its bytes by the index.
    """

    storage: Storage
    uri: str
    num_bytes: int
    sha256: str


class ShardCache:
    """Fetches remote shards to this machine's disk, each once a node, and keeps the latest used.

    Before a shard is fetched, those used longest ago are removed until it fits ``max_bytes``, but
    for those that some process has mapped. Each reader keeps few enough of them mapped
    (``max_mapped``) for the readers together to hold half of the bound; where a batch needs more
    shards at once than that, the bound is exceeded, with a warning. Picklable.

    Args:
        folder: Where copies go; None is ``tokenmill-<uid>`` in the temporary folder.
        max_bytes: The bound; None is half of what is free for copies when this object is made.
        largest: Bytes of the largest shard to come.

    Attributes:
        folder: Where copies are.
        max_bytes: The bound.

    Raises:
        ContractError: the bound is smaller than a shard.
        SetupError: the folder cannot be used, or is another user's.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, max_bytes: int | None, largest: int
    ) -> None:
        is_own = folder is None
        self.folder = default_folder() if folder is None else Path(os.path.abspath(folder))
        self._largest = max(largest, 1)
        self._warned = False
        self._user: _User | None = None
        with self._our_errors("opening it"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if is_own:
                _check_is_private(self.folder)
            with self._ledger() as ledger:
                files = self._scan()
                used = sum(file.num_bytes for file in files) - self._remove_stale(files)
                ledger.write(used)
            self._room = shutil.disk_usage(self.folder).free + used  # less than the bound, maybe
        self.max_bytes = self._room // 2 if max_bytes is None else max_bytes
        if self.max_bytes < largest:
            is_given = max_bytes is not None
            error: type[TokenmillError] = ContractError if is_given else SetupError
            raise error(
                f"{self.folder}: {'cache_bytes' if is_given else 'half of what is free'} is "
                f"{self.max_bytes:,} bytes, the largest shard has {largest:,}",
                hint="give more cache_bytes, or a cache_dir where there is room",
            )

    @property
    def max_ahead(self) -> int:
        """How many shards fit a quarter of the bound."""
        return min(self.max_bytes, self._room) // 4 // self._largest

    def max_mapped(self) -> int:
        """Return how many shards this reader may keep mapped, at least 1."""
        if self._user is None or self._user.pid != os.getpid():
            with self._our_errors("counting its readers"):
                self._user = _User(self.folder / _USERS)
        most = min(self.max_bytes, self._room) // 2
        return max(1, most // self._user.num_users() // self._largest)

    def map(self, shard: RemoteShard) -> tuple[pa.Buffer, bool]:
        """Return the bytes of a shard, mapped, and whether they were fetched and checked just now.

        Raises:
            NotFoundError: there is no such object.
            IntegrityError: size or SHA-256 differ from the index.
            SetupError: the disk is full or cannot be written.
            TransientError: the store stopped answering.
        """
        is_new = False
        while True:
            with self._our_errors(f"copying {shard.uri}"):
                buffer = self._map(shard)
                if buffer is not None:
                    return buffer, is_new
                is_new = self._fetch(shard, lambda: False)
                if not is_new:
                    time.sleep(POLL_S)  # another process is at it

    def fetch(self, shard: RemoteShard, stopped: Callable[[], bool]) -> None:
        """Fetch a shard, unless it is here or another process is at it. Errors as ``map``.

        Args:
            shard: What to fetch.
            stopped: Asked now and then; what there is of the copy is removed when it says so.
        """
        with self._our_errors(f"copying {shard.uri}"):
            if not self._has(shard):
                self._fetch(shard, stopped)

    def remove(self, shard: RemoteShard) -> None:
        """Remove a copy that turned out to be damaged."""
        with suppress(FileNotFoundError):
            os.unlink(self._path(shard))

    def _path(self, shard: RemoteShard) -> Path:
        return self.folder / f"{shard.sha256}.arrow"

    def _has(self, shard: RemoteShard) -> bool:
        """Say whether there is a copy; one of the wrong size is removed."""
        path = self._path(shard)
        try:
            size = os.stat(path).st_size
        except FileNotFoundError:
            return False
        if size != shard.num_bytes:
            _log.warning("%s: %d bytes, not %d: fetched again", path, size, shard.num_bytes)
            self.remove(shard)
            return False
        return True

    def _map(self, shard: RemoteShard) -> pa.Buffer | None:
        """Return the copy, mapped and locked until it is unmapped, or None when there is none."""
        if not self._has(shard):
            return None
        try:
            file = pa.memory_map(str(self._path(shard)))
        except FileNotFoundError:  # removed since
            return None
        with file:
            # The lock belongs to the open file, which the map holds when the handle is closed.
            fcntl.flock(file.fileno(), fcntl.LOCK_SH)
            found = os.fstat(file.fileno())
            if found.st_nlink == 0:
                return None
            with suppress(PermissionError):  # another user's copy
                os.utime(file.fileno(), ns=(time.time_ns(), found.st_mtime_ns))
            return file.read_buffer()

    def _fetch(self, shard: RemoteShard, stopped: Callable[[], bool]) -> bool:
        """Fetch a shard; False when another process is at it, has done so, or ``stopped``."""
        partial = self.folder / f"{shard.sha256}.partial"
        descriptor = _create(partial, self.folder)
        is_ours = is_kept = False
        try:
            # Who had the lock before may have given the file its final name, or removed it.
            is_ours = _try_lock(descriptor) and _is_at(descriptor, partial)
            if is_ours and not self._has(shard):
                self._reserve(descriptor, shard.num_bytes)
                is_kept = self._write(shard, descriptor, stopped)
                if is_kept:
                    os.rename(partial, self._path(shard))
            return is_kept
        finally:
            if is_ours and not is_kept:
                self._drop(descriptor, partial)
            # A forked child has the descriptor too: closing it would not end the lock.
            _unlock(descriptor)
            os.close(descriptor)

    def _write(self, shard: RemoteShard, descriptor: int, stopped: Callable[[], bool]) -> bool:
        digest, num_bytes = hashlib.sha256(), 0
        with shard.storage.open_read(shard.uri) as source:
            while num_bytes <= shard.num_bytes and (chunk := source.read(CHUNK_BYTES)):
                if stopped():
                    return False
                digest.update(chunk)
                self._write_at(descriptor, chunk, num_bytes, shard.num_bytes)
                num_bytes += len(chunk)
        check_size(shard.uri, num_bytes, shard.num_bytes)
        check_sha256(shard.uri, digest.hexdigest(), shard.sha256)
        # Else a copy of the right size might hold zeros after the machine lost power.
        os.fsync(descriptor)
        return True

    def _write_at(self, descriptor: int, chunk: bytes, offset: int, size: int) -> None:
        left = memoryview(chunk)
        while left:
            try:
                written = os.pwrite(descriptor, left, offset)
            except OSError as error:
                if error.errno not in _FULL or not self._make_room(size - offset):
                    raise
                continue
            left, offset = left[written:], offset + written

    def _reserve(self, descriptor: int, num_bytes: int) -> None:
        """Give a partial file its size, after making room for it."""
        with self._ledger() as ledger:
            more = num_bytes - os.fstat(descriptor).st_size
            used = ledger.read()
            if used is None or used + more > self.max_bytes:
                files = self._scan()
                used = sum(file.num_bytes for file in files)
                spare = max(more, self.max_bytes // _HEADROOM)
                used -= self._evict(files, used + spare - self.max_bytes)
            if used + more > self.max_bytes and not self._warned:
                self._warned = True
                _log.warning(
                    "%s: %d bytes of shards are in use at once, more than the %d that the cache "
                    "may have: give more cache_bytes, or read fewer shards at a time",
                    self.folder,
                    used + more,
                    self.max_bytes,
                )
            ledger.write(used + more)
            os.ftruncate(descriptor, num_bytes)

    def _drop(self, descriptor: int, partial: Path) -> None:
        with self._ledger() as ledger:
            used = ledger.read()
            size = os.fstat(descriptor).st_size
            os.unlink(partial)
            if used is not None:
                ledger.write(used - size)

    def _make_room(self, num_bytes: int) -> int:
        """Remove copies from a full disk and return the bytes they had."""
        with self._ledger() as ledger:
            files = self._scan()
            self._room = sum(file.num_bytes for file in files)
            removed = self._evict(files, num_bytes)
            ledger.write(self._room - removed)
            return removed

    def _scan(self) -> list["_File"]:
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        about = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(about.st_mode):
                            found.append(_File(about.st_atime_ns, entry.path, about.st_size))
        return found

    def _evict(self, files: list["_File"], num_bytes: int) -> int:
        """Remove what dead processes left, then copies used longest ago; return their bytes."""
        removed = self._remove_stale(files)
        for file in sorted(files, key=lambda file: file.used_ns):
            if removed >= num_bytes:
                break
            if file.path.endswith(".arrow"):
                removed += _remove_unless_locked(file)
        return removed

    def _remove_stale(self, files: list["_File"]) -> int:
        return sum(_remove_unless_locked(f) for f in files if f.path.endswith(".partial"))

    @contextmanager
    def _ledger(self) -> Iterator["_Ledger"]:
        descriptor = _create(self.folder / _LEDGER, self.folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield _Ledger(descriptor)
        finally:
            _unlock(descriptor)
            os.close(descriptor)

    @contextmanager
    def _our_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            told = f"cache folder {self.folder}: {(error.strerror or str(error)).lower()}"
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise SetupError(
                    f"{told}: its file system has no locks (flock)",
                    hint="choose a cache_dir on a disk of this machine",
                ) from None
            free = ""
            with suppress(OSError):
                free = f", {shutil.disk_usage(self.folder).free:,} bytes are free"
            raise SetupError(
                f"{told} while {doing}{free}, cache_bytes is {self._told_bytes()}",
                hint="make room there, or choose another cache_dir or fewer cache_bytes",
            ) from None

    def _told_bytes(self) -> str:
        return f"{self.max_bytes:,}" if hasattr(self, "max_bytes") else "not known yet"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_user": None}


def check_size(where: str, num_bytes: int, expected: int) -> None:
    """Compare a size with the index.

    Raises:
        IntegrityError: they differ.
    """
    if num_bytes != expected:
        raise IntegrityError(
            f"{where}: {num_bytes:,} bytes, the index says {expected:,}", hint=_ANOTHER_COPY
        )


def check_sha256(where: str, sha256: str, expected: str) -> None:
    """Compare a SHA-256 with the index.

    Raises:
        IntegrityError: they differ.
    """
    if sha256 != expected:
        raise IntegrityError(
            f"{where}: sha256 {sha256[:12]}, the index says {expected[:12]}", hint=_ANOTHER_COPY
        )


_ANOTHER_COPY = "the file changed after its commit, or was copied in part; copy it again"


@dataclass(frozen=True, slots=True)
class _File:
    used_ns: int
    path: str
    num_bytes: int


class _Ledger:
    """How many bytes the folder holds, as far as is known; to be read and written under its lock.

    Who is killed between counting and writing leaves more than there is, never less.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self) -> int | None:
        text = os.pread(self._descriptor, 32, 0)
        return int(text) if text.strip().isdigit() else None

    def write(self, num_bytes: int) -> None:
        os.pwrite(self._descriptor, f"{max(num_bytes, 0):<32}".encode(), 0)


class _User:
    """A reader, counted by the lock that it holds on a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.pid = os.getpid()
        self._folder = folder
        self._counted_s = float("-inf")
        self._num_users = 1
        folder.mkdir(exist_ok=True)
        with suppress(PermissionError):  # another user's
            folder.chmod(stat.S_IMODE(folder.parent.stat().st_mode))
        while True:
            path = folder / f"{uuid4().hex}.lock"
            descriptor = _create(path, folder.parent)
            weakref.finalize(self, os.close, descriptor)
            if _try_lock(descriptor) and _is_at(descriptor, path):
                return  # else one that counts was faster, and removed it

    def num_users(self) -> int:
        now_s = time.monotonic()
        if now_s - self._counted_s > COUNT_USERS_S:
            self._counted_s = now_s
            paths = [path for path in self._folder.iterdir() if path.suffix == ".lock"]
            self._num_users = max(1, sum(_is_user(path) for path in paths))
        return self._num_users


def _create(path: Path, folder: Path) -> int:
    """Open a file, created with a folder's permissions: who may use the one, may the other.

    The umask does not count: a folder for several users would not work.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW
    while True:
        with suppress(FileNotFoundError):
            return os.open(path, flags)
        with suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            break
    try:
        os.fchmod(descriptor, stat.S_IMODE(os.stat(folder).st_mode) & 0o666)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_user(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except PermissionError:
        return True
    except FileNotFoundError:
        return False
    try:
        if not _try_lock(descriptor):
            return True
        with suppress(FileNotFoundError, PermissionError):
            os.unlink(path)
        return False
    finally:
        _unlock(descriptor)
        os.close(descriptor)


def _remove_unless_locked(file: _File) -> int:
    """Remove a file that no process maps or writes and return its bytes, else 0."""
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return file.num_bytes
    except PermissionError:
        return 0
    try:
        if not (_try_lock(descriptor) and _is_at(descriptor, Path(file.path))):
            return 0
        os.unlink(file.path)
        return file.num_bytes
    except PermissionError:
        return 0
    finally:
        _unlock(descriptor)
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Say whether an open file has this name still."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def default_folder() -> Path:
    """Return this user's folder in the temporary folder."""
    return Path(tempfile.gettempdir()) / f"tokenmill-{os.getuid()}"


def _check_is_private(folder: Path) -> None:
    """Refuse a folder in the temporary folder that others made or may write to."""
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise SetupError(
            f"{folder}: not a folder that only this user may write to",
            hint="remove it, or choose a cache_dir",
        )
