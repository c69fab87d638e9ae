"""Objects on disk, S3 and the hub through fsspec: one meaning everywhere, and only our errors."""

import errno
import io
import os
import posixpath
import re
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.core import split_protocol

from pipeline.errors import (
    AlreadyCommittedError,
    IntegrityError,
    SetupError,
    TokenmillError,
    TransientError,
)


class NotFoundError(IntegrityError):
    """An object that should exist does not."""


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

    Picklable: workers get a copy and open their own connections.

    Args:
        options: Protocol (``s3``, ``hf``, ``https``) -> options of its fsspec file system.
            They may hold credentials and never appear in an error, a log or the data set.
    """

    def __init__(self, options: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._options = {name: dict(value) for name, value in (options or {}).items()}

    def open_read(self, uri: str, *, read_ahead: bool = True) -> BinaryIO:
        """Open an object for reading; the file seeks.

        Reading from a remote object raises the same errors as opening it.

        Args:
            uri: The object.
            read_ahead: Fetch 8 MiB at a time, for reading from front to back. Without it every
                read is one request for just these bytes, for a reader that knows its ranges.

        Raises:
            NotFoundError: there is no such object.
            SetupError: no permission, or the file system's package is missing.
            TransientError: the store did not answer.
        """
        with self._our_errors(uri):
            local = self.local_path(uri)
            if local is not None:
                return local.open("rb")
            fs, path = self._resolve(uri)
            cache = "readahead" if read_ahead else "none"
            file = fs.open(path, "rb", block_size=8 << 20, cache_type=cache)
            return cast(BinaryIO, _RemoteFile(self, uri, file))

    def read(self, uri: str) -> bytes:
        """Return a whole object. Errors as ``open_read``."""
        with self._our_errors(uri):
            local = self.local_path(uri)
            if local is not None:
                return local.read_bytes()
            fs, path = self._resolve(uri)
            return cast(bytes, fs.cat_file(path))

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

        An object of that name is replaced.
        """
        with self._our_errors(uri):
            local = self.local_path(uri)
            if local is not None:
                with _local_replace(local) as file:
                    yield file
                return
            fs, path = self._resolve(uri)
            file = fs.open(path, "wb", block_size=16 << 20)
            try:
                yield cast(BinaryIO, file)
            except BaseException:
                file.discard() if hasattr(file, "discard") else None
                file.closed = True  # do not let the destructor upload half an object
                raise
            file.close()

    def write(self, uri: str, data: bytes) -> None:
        """Write an object, replacing one of that name; readers see the old or the new, whole."""
        with self.open_write(uri) as file:
            file.write(data)

    def create_exclusive(self, uri: str, data: bytes) -> None:
        """Write an object only if there is none of that name: of several racers one wins.

        Raises:
            AlreadyCommittedError: there is one.
        """
        with self._our_errors(uri):
            local = self.local_path(uri)
            if local is not None:
                _create_local(local, data)
                return
            fs, path = self._resolve(uri)
            try:
                fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                raise AlreadyCommittedError(f"{uri}: exists already") from None

    def walk(self, uri: str) -> Iterator[Entry]:
        """Yield every object below a folder, sorted by URI; nothing when the folder is absent."""
        with self._our_errors(uri):
            local = self.local_path(uri)
            if local is not None:
                yield from _list_local(local)
                return
            fs, path = self._resolve(uri)
            fs.invalidate_cache(path)
            try:
                found = fs.find(path, detail=True)
            except FileNotFoundError:
                return
            for name in sorted(found):
                yield _entry(fs.unstrip_protocol(name), found[name])

    def glob(self, pattern: str) -> list[Entry]:
        """Return the objects that match a pattern (``*``, ``?``, ``[]``, ``**``), sorted."""
        with self._our_errors(pattern):
            fs, path = self._resolve(pattern)
            if self.local_path(pattern) is not None:
                entries = [_local_entry(name) for name in sorted(fs.glob(path))]
                return [entry for entry in entries if entry is not None]
            fs.invalidate_cache()
            found = fs.glob(path, detail=True)
            return [
                _entry(fs.unstrip_protocol(name), info)
                for name, info in sorted(found.items())
                if info["type"] == "file"
            ]

    def stat(self, uri: str) -> Entry | None:
        """Return an object's size and version, or None when there is none (or it is a folder)."""
        with self._our_errors(uri):
            local = self.local_path(uri)
            if local is not None:
                found = _local_entry(str(local))
                return None if found is None else replace(found, uri=uri)
            fs, path = self._resolve(uri)
            fs.invalidate_cache(posixpath.dirname(path))
            try:
                info = fs.info(path)
            except FileNotFoundError:
                return None
            return _entry(uri, info) if info["type"] == "file" else None

    def remove(self, uri: str) -> None:
        """Remove an object; it is fine when there is none."""
        with self._our_errors(uri):
            fs, path = self._resolve(uri)
            try:
                fs.rm_file(path)
            except FileNotFoundError:
                return

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

    def _resolve(self, uri: str) -> tuple[Any, str]:
        protocol, _ = split_protocol(uri)
        options = self._options.get(protocol or "file", {})
        if protocol == "s3":
            # Others write there too: a listing from before would hide what they wrote since.
            options = {"use_listings_cache": False, **options}
        try:
            fs, path = fsspec.core.url_to_fs(uri, **options)
        except ImportError as error:
            raise SetupError(
                f"{shown(uri)}: {error}",
                hint=f"pip install 'tokenmill[{_EXTRA.get(protocol, 'all')}]'",
            ) from None
        except ValueError as error:
            raise SetupError(f"{shown(uri)}: {self._without_secrets(str(error))}") from None
        return fs, path

    @contextmanager
    def _our_errors(self, uri: str) -> Iterator[None]:
        try:
            yield
        except TokenmillError:
            raise
        except FileNotFoundError:
            raise NotFoundError(f"{shown(uri)}: no such object") from None
        except PermissionError as error:
            raise _no_permission(uri, error.strerror or type(error).__name__) from None
        except (IsADirectoryError, NotADirectoryError) as error:
            raise SetupError(
                f"{shown(uri)}: {str(error.strerror).lower()}", hint="check the path"
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise SetupError(
                    f"{shown(uri)}: {str(error.strerror).lower()}",
                    hint="free space or choose another folder, then run again",
                ) from None
            raise self._transient(uri, error) from None
        except Exception as error:
            name, package = type(error).__name__, type(error).__module__.partition(".")[0]
            if name in ("NoCredentialsError", "PartialCredentialsError"):
                raise SetupError(
                    f"{shown(uri)}: no credentials were found",
                    hint="set them in the environment, a profile, or the job's storage options",
                ) from None
            if isinstance(error, ValueError) and "range requests" in str(error):
                raise SetupError(
                    f"{shown(uri)}: the server does not answer range requests",
                    hint="copy the files to a disk or an object store",
                ) from None
            if package not in _NETWORK_PACKAGES:
                raise
            status = getattr(error, "status", None)
            if status in (401, 403):
                raise _no_permission(uri, f"HTTP {status}") from None
            raise self._transient(uri, error) from None

    def _transient(self, uri: str, error: Exception) -> TransientError:
        # Not chained: the cause's text or traceback may hold a credential.
        text = self._without_secrets(" ".join(str(error).split()))
        return TransientError(f"{shown(uri)}: {type(error).__name__}: {text}")

    def _without_secrets(self, text: str) -> str:
        for secret in _leaves(self._options):
            text = text.replace(secret, "***")
        return _QUERY.sub("?***", text)


_EXTRA = {"s3": "s3", "hf": "hub", "http": "http", "https": "http"}

_NETWORK_PACKAGES = (
    *("aiobotocore", "aiohttp", "botocore", "fsspec", "s3fs"),
    *("httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"),
)
"""Where errors come from that mean the store did not answer; not all of them are OSErrors."""

_QUERY = re.compile(r"(?<=[^\s?])\?[^\s?]+=\S+")
_USER = re.compile(r"(?<=://)[^/@]+@")
_SECRET_NAME = re.compile("key|secret|token|password|auth|credential", re.IGNORECASE)


def join(base: str, *parts: str) -> str:
    """Join a folder URI and relative parts with single slashes."""
    inner = [part.strip("/") for part in parts]
    return "/".join([base.rstrip("/"), *inner]) if base else "/".join(inner)


def shown(uri: str) -> str:
    """Return a URI for people to read: without a password, and without a query (a signature)."""
    return _USER.sub("***@", uri.partition("?")[0] if "://" in uri else uri)


class _RemoteFile(io.RawIOBase):
    """A file of fsspec whose reads raise our errors."""

    def __init__(self, storage: Storage, uri: str, file: Any) -> None:
        self._storage, self._uri, self._file = storage, uri, file

    def read(self, size: int = -1) -> bytes:
        with self._storage._our_errors(self._uri):
            return cast(bytes, self._file.read(size))

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


def _leaves(options: Any, *, secret: bool = False) -> Iterator[str]:
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from _leaves(value, secret=secret or bool(_SECRET_NAME.search(str(name))))
    elif isinstance(options, str) and secret and options:
        yield options


def _no_permission(uri: str, what: str) -> SetupError:
    return SetupError(
        f"{shown(uri)}: permission denied ({what})",
        hint="check the path's owner, or the credentials in the environment or the job",
    )


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
    return Entry(path, found.st_size, str(found.st_mtime_ns)) if S_ISREG(found.st_mode) else None


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


@contextmanager
def _local_replace(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.chmod(temp, 0o666 & ~_UMASK)
        os.replace(temp, path)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise


def _create_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temp, 0o666 & ~_UMASK)
        os.link(temp, path)  # atomic and exclusive; rename would replace the winner
    except FileExistsError:
        raise AlreadyCommittedError(f"{path}: exists already") from None
    finally:
        Path(temp).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()
