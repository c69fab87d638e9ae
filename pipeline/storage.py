"""Objects on disk, S3 and the hub through fsspec: one meaning everywhere, and only our errors."""

import errno
import io
import os
import posixpath
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, Protocol, TypeVar, cast
from uuid import uuid4

import fsspec
from fsspec.core import split_protocol

from pipeline.errors import AlreadyCommittedError, SetupError, TokenmillError, TransientError
from pipeline.globs import glob
from pipeline.store_errors import NotFoundError, answer, hide, secrets_in, shown, translate

__all__ = ["Entry", "NotFoundError", "Storage", "join", "shown"]

ResultT = TypeVar("ResultT")

PART_BYTES = 16 << 20
"""A remote object is sent in parts of at least this size; a writer holds one in memory."""

S3_OPTIONS: Mapping[str, Any] = {
    # Others write there too: a listing from before would hide what they wrote since.
    "use_listings_cache": False,
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 30,
        "retries": {"mode": "standard", "total_max_attempts": 6},
    },
}
"""What a job's ``storage.s3`` is laid over. botocore sends a request again that failed or was
refused for now (5xx, SlowDown), with growing waits of half a minute at most. The read timeout is
between two pieces of an answer: a connection that died is noticed after it, and a server that never
answers is given up after three minutes."""

WAITS_S = (0.5, 2.0, 8.0)
"""Before a request is made anew: its answer broke off, or botocore does not send it."""

GIVE_UP_S = 60.0
"""A request is not made anew after this time: the engine tries the partition again, later."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored object.

    Attributes:
        uri: Full address.
        num_bytes: Size.
        version: etag, or modification time on disk; "" when unknown.
    """

    uri: str
    num_bytes: int
    version: str


class Storage:
    """Read, write and list objects by URI. A plain path is a local file.

    What a store refuses for now is asked for again (``S3_OPTIONS``, ``WAITS_S``).
    Picklable: workers get a copy and open their own connections.

    Args:
        options: Protocol (``s3``, ``hf``, ``https``) -> options of its fsspec file system.
            They may hold credentials and never appear in an error, a log or the data set.
    """

    def __init__(self, options: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._options = {name: dict(value) for name, value in (options or {}).items()}
        self._secrets = tuple(dict.fromkeys(secrets_in(self._options)))

    def open_read(self, uri: str, *, read_ahead: bool = True) -> BinaryIO:
        """Open an object for reading; the file seeks.

        Reading from a remote object raises the same errors as opening it, and IntegrityError when
        the object was replaced since.

        Args:
            uri: The object.
            read_ahead: Fetch 8 MiB at a time, for reading from front to back. Without it every
                read is one request for just these bytes, for a reader that knows its ranges.

        Raises:
            NotFoundError: there is no such object.
            SetupError: no permission, or the file system's package is missing.
            TransientError: the store did not answer.
        """
        local = self.local_path(uri)
        if local is not None:
            with self._our_errors(uri):
                return local.open("rb")
        cache = "readahead" if read_ahead else "none"

        def open_file(fs: Any, path: str) -> Any:
            fs.invalidate_cache(posixpath.dirname(path))
            return fs.open(path, "rb", block_size=8 << 20, cache_type=cache)

        return cast(BinaryIO, _RemoteFile(self, uri, self._request(uri, open_file)))

    def opened(self, uri: str, file: BinaryIO) -> Entry:
        """Return size and version of the object that ``open_read`` opened as ``file``."""
        if isinstance(file, _RemoteFile):
            return self._again(uri, lambda: _entry(uri, file.details))
        with self._our_errors(uri):
            return _entry_of_stat(uri, os.fstat(file.fileno()))

    def read(self, uri: str) -> bytes:
        """Return a whole object. Errors as ``open_read``."""
        local = self.local_path(uri)
        if local is not None:
            with self._our_errors(uri):
                return local.read_bytes()
        return self._request(uri, _cat)

    def read_many(self, uris: Iterable[str], *, at_once: int = 16) -> Iterator[bytes]:
        """Yield whole objects in the order of ``uris``. Errors as ``open_read``.

        Args:
            uris: The objects.
            at_once: How many are read, or wait to be taken, at a time.
        """
        ahead: deque[Future[bytes]] = deque()
        with ThreadPoolExecutor(at_once, "read") as pool:
            for uri in uris:
                ahead.append(pool.submit(self.read, uri))
                if len(ahead) >= at_once:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    @contextmanager
    def open_write(self, uri: str) -> Iterator[BinaryIO]:
        """Write an object that appears, whole, when the block ends without an error.

        An object of that name is replaced. After an error in the block or at its end nothing is
        left of what was written, parts of an upload included. A remote object is sent part by
        part: nothing of it is kept on this machine's disk.
        """
        with self._our_errors(uri):
            local = self.local_path(uri)
            draft: _Draft = _RemoteDraft(self, uri) if local is None else _DiskDraft(local)
        try:
            yield cast(BinaryIO, _WriteFile(self, uri, draft.file))
            with self._our_errors(uri):
                draft.publish()
        except BaseException:
            draft.drop()
            raise

    def write(self, uri: str, data: bytes) -> None:
        """Write an object, replacing one of that name; readers see the old or the new, whole."""
        if self.local_path(uri) is None:
            self._request(uri, lambda fs, path: fs.pipe_file(path, data))
            return
        with self.open_write(uri) as file:
            file.write(data)

    def create_exclusive(self, uri: str, data: bytes) -> None:
        """Write an object only if there is none of that name: of several racers one wins.

        A request whose answer was lost is sent again, by any of three layers, and then finds its
        own object: that is no failure. The object carries a mark by which its writer knows it.

        Raises:
            AlreadyCommittedError: there is one, of another writer.
        """
        local = self.local_path(uri)
        if local is not None:
            with self._our_errors(uri):
                _create_local(local, data)
            return
        mark = uuid4().hex

        def create(fs: Any, path: str) -> None:
            marked = {"Metadata": {_MARK: mark}} if hasattr(fs, "call_s3") else {}
            try:
                fs.pipe_file(path, data, mode="create", **marked)
            except Exception as error:
                exists = isinstance(error, FileExistsError) or answer(error).status == 412
                if not exists:
                    raise
                if not (marked and _is_ours(fs, path, mark, data)):
                    raise AlreadyCommittedError(f"{shown(uri)}: exists already") from None

        self._request(uri, create)

    def check_exclusive(self, uri: str) -> None:
        """Make sure that ``create_exclusive`` of an object will have one winner.

        Tries it on an object beside it, of a temporary name, which is removed again. To be called
        before anything depends on it: some stores accept the condition and ignore it.

        Raises:
            SetupError: it would not; or nothing can be written there.
        """
        folder, _, name = uri.rpartition("/")
        protocol, _ = split_protocol(uri)
        if self.local_path(uri) is None and protocol not in _S3:
            raise SetupError(
                f"{shown(uri)}: {protocol}:// cannot create an object exclusively, which the "
                "commits of a run are made of",
                hint="choose an output on a disk or on S3",
            )
        probe = f"{folder}/.{name}.{uuid4().hex}.tmp" if folder else f".{name}.{uuid4().hex}.tmp"
        try:
            self.create_exclusive(probe, b"first")
            try:
                self.create_exclusive(probe, b"second")
            except AlreadyCommittedError:
                return
        finally:
            with suppress(TokenmillError):  # there are stores from which nothing may be removed
                self.remove(probe)
        raise SetupError(
            f"{shown(uri)}: the store does not support conditional writes: of two objects created "
            "with If-None-Match under one name it kept both requests as good",
            hint="choose a store that has them, as S3 does, or an output on a disk",
        )

    def walk(self, uri: str) -> Iterator[Entry]:
        """Yield every object below a folder, sorted by URI; nothing when the folder is absent."""
        local = self.local_path(uri)
        if local is not None:
            with self._our_errors(uri):
                yield from _list_local(local)
            return

        def find(fs: Any, path: str) -> list[Entry]:
            fs.invalidate_cache(path)
            try:
                found = fs.find(path, detail=True)
            except FileNotFoundError:
                return []
            return [_entry(fs.unstrip_protocol(name), found[name]) for name in sorted(found)]

        yield from self._request(uri, find)

    def glob(self, pattern: str) -> list[Entry]:
        """Return the objects that match a pattern (``*``, ``?``, ``[]``, ``**``), sorted."""
        if self.local_path(pattern) is not None:
            with self._our_errors(pattern):
                _, path = self._resolve(pattern)
                found = [_local_entry(name) for name in glob(path, _children, _below)]
            return sorted((entry for entry in found if entry is not None), key=_uri_of)

        def find(fs: Any, path: str) -> list[Entry]:
            fs.invalidate_cache()
            if hasattr(fs, "call_s3"):
                infos = glob(path, partial(_s3_children, fs), partial(_s3_below, fs))
            else:
                infos = [i for i in fs.glob(path, detail=True).values() if i["type"] == "file"]
            entries = [_entry(fs.unstrip_protocol(info["name"]), info) for info in infos]
            return sorted(entries, key=_uri_of)

        return self._request(pattern, find)

    def stat(self, uri: str) -> Entry | None:
        """Return an object's size and version, or None when there is none (or it is a folder)."""
        local = self.local_path(uri)
        if local is not None:
            with self._our_errors(uri):
                found = _local_entry(str(local))
            return None if found is None else replace(found, uri=uri)

        def info(fs: Any, path: str) -> Entry | None:
            fs.invalidate_cache(posixpath.dirname(path))
            try:
                info = fs.info(path)
            except FileNotFoundError:
                return None
            return _entry(uri, info) if info["type"] == "file" else None

        return self._request(uri, info)

    def remove(self, uri: str) -> None:
        """Remove an object; it is fine when there is none."""

        def remove(fs: Any, path: str) -> None:
            with suppress(FileNotFoundError):
                fs.rm_file(path)

        self._request(uri, remove)

    def drop_uploads(self, uri: str, *, dry_run: bool = False) -> list[str]:
        """Give up the uploads below a folder that were begun and not finished.

        A writer that was killed leaves one: the parts are stored, and paid for, but no object.

        Args:
            uri: The folder. No one may be writing to it.
            dry_run: Only look.

        Returns:
            The objects that they were to become.
        """
        protocol, _ = split_protocol(uri)
        if protocol not in _S3:
            return []

        def drop(fs: Any, path: str) -> list[str]:
            bucket, key, _ = fs.split_path(path)
            found = list(_uploads(fs, bucket, f"{key.rstrip('/')}/" if key else ""))
            for upload in [] if dry_run else found:
                with suppress(FileNotFoundError):
                    fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])
            return [fs.unstrip_protocol(f"{bucket}/{upload['Key']}") for upload in found]

        return self._request(uri, drop)

    def local_path(self, uri: str) -> Path | None:
        """Return the path of a URI on this machine's disk, or None for a remote one."""
        protocol, path = split_protocol(uri)
        return Path(path) if protocol in (None, "file", "local") else None

    def resolve(self, uri: str) -> str:
        """Return the one way to write a URI: an absolute path, or ``protocol://path``.

        ``walk`` (of a resolved folder) and ``glob`` give URIs in this form.
        """
        local = self.local_path(uri)
        if local is not None:
            return os.path.abspath(local)
        with self._our_errors(uri):
            fs, path = self._resolve(uri)
            return str(fs.unstrip_protocol(path))

    def _request(self, uri: str, call: Callable[[Any, str], ResultT]) -> ResultT:
        """Ask a store what may be asked twice: ``call(fs, path)``."""

        def ask() -> ResultT:
            fs, path = self._resolve(uri)
            try:
                return call(fs, path)
            except Exception as error:
                told = _ask_why(fs, path, error)
                if told is None:
                    raise
                raise told from told.__cause__

        return self._again(uri, ask)

    def _again(self, uri: str, call: Callable[[], ResultT]) -> ResultT:
        """Call until the store answers, for a while."""
        began, waits = time.monotonic(), iter(WAITS_S)
        while True:
            try:
                with self._our_errors(uri):
                    return call()
            except TransientError:
                wait_s = next(waits, None)
                if wait_s is None or time.monotonic() - began > GIVE_UP_S:
                    raise
            time.sleep(wait_s * random.uniform(0.5, 1.0))

    def _resolve(self, uri: str) -> tuple[Any, str]:
        protocol, _ = split_protocol(uri)
        options: Mapping[str, Any] = self._options.get(protocol or "file", {})
        if protocol in _S3:
            config = {**S3_OPTIONS["config_kwargs"], **(options.get("config_kwargs") or {})}
            options = {**S3_OPTIONS, **options, "config_kwargs": config}
        try:
            fs, path = fsspec.core.url_to_fs(uri, **options)
            if protocol in _S3:
                fs.retries = 1  # nested in three loops with botocore's it could take over an hour
                if getattr(fs, "_s3", True) is None:
                    fs.connect()  # here, where wrong options are told from a defect
        except ImportError as error:
            raise SetupError(
                f"{shown(uri)}: {error}",
                hint=f"pip install 'tokenmill[{_EXTRA.get(protocol, 'all')}]'",
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise SetupError(
                f"{shown(uri)}: {hide(str(error), self._secrets)}",
                hint=f"check the URL, and the job's storage.{protocol}",
            ) from None
        return fs, path

    @contextmanager
    def _our_errors(self, uri: str) -> Iterator[None]:
        try:
            yield
        except TokenmillError:
            raise
        except Exception as error:
            ours = translate(shown(uri), error, self._secrets)
            if ours is None:
                raise
            # Not chained: the cause's text or traceback may hold a credential.
            raise ours from None


_MARK = "tokenmill-writer"
"""Metadata of an object that was created exclusively."""

_EXTRA = {"s3": "s3", "hf": "hub", "http": "http", "https": "http"}
_S3 = ("s3", "s3a")


def join(base: str, *parts: str) -> str:
    """Join a folder URI and relative parts with single slashes."""
    inner = [part.strip("/") for part in parts]
    return "/".join([base.rstrip("/"), *inner]) if base else "/".join(inner)


class _RemoteFile(io.RawIOBase):
    """A file of fsspec whose reads are whole, are made again, and raise our errors."""

    def __init__(self, storage: Storage, uri: str, file: Any) -> None:
        self._storage, self._uri, self._file = storage, uri, file

    @property
    def details(self) -> Mapping[str, Any]:
        """What the file system knows of the object that was opened."""
        found = getattr(self._file, "details", None)  # not all files have them
        return cast(Mapping[str, Any], found or self._file.fs.info(self._file.path))

    def read(self, size: int = -1) -> bytes:
        if not self.seekable():
            with self._storage._our_errors(self._uri):
                return cast(bytes, self._file.read(size))
        position = self._file.tell()
        return self._storage._again(self._uri, lambda: self._read_at(position, size))

    def _read_at(self, position: int, size: int) -> bytes:
        self._file.seek(position)  # an attempt that failed may have moved it
        missing = max(0, self._file.size - position)
        missing = missing if size < 0 else min(size, missing)
        parts = []
        while missing:
            data = self._file.read(missing)
            if not data:
                raise TransientError(
                    f"{shown(self._uri)}: the store ended it after {self._file.tell():,} of "
                    f"{self._file.size:,} bytes"
                )
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _WriteFile(io.RawIOBase):
    """A file to write to that raises our errors."""

    def __init__(self, storage: Storage, uri: str, file: Any) -> None:
        self._storage, self._uri, self._file = storage, uri, file

    def write(self, data: Any) -> int:
        with self._storage._our_errors(self._uri):
            return int(self._file.write(data))

    def flush(self) -> None:
        if not self._file.closed:  # the base class flushes once more at the very end
            with self._storage._our_errors(self._uri):
                self._file.flush()

    def tell(self) -> int:
        return int(self._file.tell())

    def writable(self) -> bool:
        return True


class _Draft(Protocol):
    """An object that is being written and that no reader sees yet."""

    file: Any

    def publish(self) -> None:
        """Make it appear, whole."""
        ...

    def drop(self) -> None:
        """Leave nothing behind; raises nothing, as there is an error on its way already."""
        ...


class _DiskDraft:
    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor, self._temp = _temporary(path)
        self.file = os.fdopen(descriptor, "wb")

    def publish(self) -> None:
        self.file.close()
        os.chmod(self._temp, 0o666 & ~_UMASK)
        os.replace(self._temp, self._path)

    def drop(self) -> None:
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            os.unlink(self._temp)


class _RemoteDraft:
    """A small object is sent whole at the end, again when need be; a large one in parts."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage, self._uri = storage, uri
        self._small: io.BytesIO | None = io.BytesIO()
        self._parts: Any = None
        self.file = self
        self.closed = False

    def write(self, data: Any) -> int:
        if self._small is None:
            return int(self._parts.write(data))
        size = self._small.write(data)
        if self._small.tell() >= PART_BYTES:
            fs, path = self._storage._resolve(self._uri)
            self._parts = fs.open(path, "wb", block_size=PART_BYTES)
            whole, self._small = self._small.getbuffer(), None
            self._parts.write(whole)
        return size

    def tell(self) -> int:
        return int(self._parts.tell() if self._small is None else self._small.tell())

    def flush(self) -> None:
        """Parts are sent as they are full."""

    def publish(self) -> None:
        self.closed = True
        if self._small is None:
            self._parts.close()
        else:
            self._storage.write(self._uri, self._small.getvalue())

    def drop(self) -> None:
        self.closed = True
        if self._parts is None:
            return
        with suppress(Exception):  # when the store is away the parts stay: see `pipeline gc`
            self._parts.discard()
        with suppress(AttributeError):
            self._parts.closed = True  # do not let the destructor upload half an object


def _cat(fs: Any, path: str) -> bytes:
    # s3fs asks for the size first, to fetch large objects in parts; ours that are read whole are
    # small and many.
    once = {"max_concurrency": 1} if hasattr(fs, "max_concurrency") else {}
    return cast(bytes, fs.cat_file(path, **once))


def _children(folder: str, stem: str) -> Iterator[tuple[str, bool, str]]:
    try:
        with os.scandir(folder or "/") as entries:
            for entry in entries:
                if entry.name.startswith(stem):
                    path = f"{folder}/{entry.name}"
                    yield path, entry.is_dir(), path
    except (FileNotFoundError, NotADirectoryError):
        return


def _below(folder: str) -> Iterator[tuple[str, str]]:
    return ((entry.uri, entry.uri) for entry in _list_local(Path(folder or "/")))


def _s3_children(fs: Any, folder: str, stem: str) -> Iterator[tuple[str, bool, Mapping[str, Any]]]:
    if stem:
        infos = fs.find(folder, maxdepth=1, prefix=stem, withdirs=True, detail=True).values()
    else:
        try:
            infos = fs.ls(folder, detail=True)
        except FileNotFoundError:
            infos = []
    for info in infos:
        yield info["name"].rstrip("/"), info["type"] == "directory", info


def _s3_below(fs: Any, folder: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    return cast(Mapping[str, Mapping[str, Any]], fs.find(folder, detail=True)).items()


def _uploads(fs: Any, bucket: str, prefix: str) -> Iterator[Mapping[str, Any]]:
    after: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **after)
        yield from page.get("Uploads", [])
        if not page.get("IsTruncated"):
            return
        after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _is_ours(fs: Any, path: str, mark: str, data: bytes) -> bool:
    """Say whether the object that is there was written with a mark."""
    bucket, key, _ = fs.split_path(path)
    marks = fs.call_s3("head_object", Bucket=bucket, Key=key).get("Metadata", {})
    if _MARK in marks:
        return bool(marks[_MARK] == mark)
    return _cat(fs, path) == data  # a store that keeps no metadata


def _ask_why(fs: Any, path: str, error: Exception) -> Exception | None:
    """Return the error of a request whose refusal has a text, which one by HEAD has not."""
    if answer(error).code not in ("400", "403") or not hasattr(fs, "call_s3"):
        return None
    bucket, key, _ = fs.split_path(path)
    try:
        fs.call_s3("get_object", Bucket=bucket, Key=key, Range="bytes=0-0")
    except Exception as told:
        return told if answer(told).code[:1].isalpha() else None
    return None


def _entry(uri: str, info: Mapping[str, Any]) -> Entry:
    if info["size"] is None:
        raise SetupError(
            f"{shown(uri)}: the server does not say how large it is", hint="copy it to disk first"
        )
    version = info.get("ETag") or info.get("etag") or info.get("blob_id") or ""
    return Entry(uri, int(info["size"]), str(version).strip('"'))


def _local_entry(path: str) -> Entry | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _entry_of_stat(path, found) if S_ISREG(found.st_mode) else None


def _uri_of(entry: Entry) -> str:
    return entry.uri


def _entry_of_stat(path: str, found: os.stat_result) -> Entry:
    return Entry(path, found.st_size, str(found.st_mtime_ns))


def _list_local(folder: Path) -> Iterator[Entry]:
    found: list[str] = []
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise_unless_absent):
        folders[:] = [name for name in folders if not _links_up(Path(root, name))]
        found += [os.path.join(root, name) for name in names]
    for path in sorted(found):
        entry = _local_entry(path)
        if entry is not None:  # others may remove their temporary files meanwhile
            yield entry


def _links_up(folder: Path) -> bool:
    return folder.is_symlink() and any(folder.samefile(above) for above in folder.parents)


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _temporary(path: Path) -> tuple[int, str]:
    """Create a file beside another, in a folder made for it, that readers pass over."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")


def _create_local(path: Path, data: bytes) -> None:
    descriptor, temp = _temporary(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temp, 0o666 & ~_UMASK)
        _link(temp, path)
    finally:
        with suppress(OSError):
            os.unlink(temp)


def _link(temp: str, path: Path) -> None:
    """Give a file its name: atomic and exclusive; rename would replace the winner."""
    try:
        os.link(temp, path)
    except FileExistsError:
        # A network file system repeats a request whose answer was lost, and finds its own link.
        if os.stat(temp).st_nlink != 2:
            raise AlreadyCommittedError(f"{path}: exists already") from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        raise SetupError(
            f"{path}: the file system has no hard links, which the commits of a run are made of",
            hint="choose an output on another file system, or on S3",
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()
