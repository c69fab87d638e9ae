"""Objects on disk, S3 and the hub through fsspec: one meaning everywhere, and only our errors."""

import errno
import os
import posixpath
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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

    def open_read(self, uri: str) -> BinaryIO:
        """Open an object for reading; the file seeks.

        Raises:
            NotFoundError: there is no such object.
            SetupError: no permission, or the file system's package is missing.
            TransientError: the store did not answer.
        """
        with _our_errors(uri):
            local = self.local_path(uri)
            if local is not None:
                return local.open("rb")
            fs, path = self._resolve(uri)
            return cast(BinaryIO, fs.open(path, "rb", block_size=8 << 20))

    def read(self, uri: str) -> bytes:
        """Return a whole object. Errors as ``open_read``."""
        with self.open_read(uri) as file, _our_errors(uri):
            return file.read()

    @contextmanager
    def open_write(self, uri: str) -> Iterator[BinaryIO]:
        """Write an object that appears, whole, when the block ends without an error.

        An object of that name is replaced.
        """
        with _our_errors(uri):
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
        with _our_errors(uri):
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
        with _our_errors(uri):
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
        with _our_errors(pattern):
            fs, path = self._resolve(pattern)
            found = fs.glob(path, detail=True)
            if self.local_path(pattern) is not None:
                return [
                    _entry(name, info)
                    for name, info in sorted(found.items())
                    if info["type"] == "file"
                ]
            return [
                _entry(fs.unstrip_protocol(name), info)
                for name, info in sorted(found.items())
                if info["type"] == "file"
            ]

    def stat(self, uri: str) -> Entry | None:
        """Return an object's size and version, or None when there is none."""
        with _our_errors(uri):
            local = self.local_path(uri)
            fs, path = self._resolve(uri)
            if local is None:
                fs.invalidate_cache(posixpath.dirname(path))
            try:
                info = fs.info(path)
            except FileNotFoundError:
                return None
            return _entry(uri, info) if info["type"] == "file" else None

    def remove(self, uri: str) -> None:
        """Remove an object; it is fine when there is none."""
        with _our_errors(uri):
            fs, path = self._resolve(uri)
            try:
                fs.rm_file(path)
            except FileNotFoundError:
                return

    def local_path(self, uri: str) -> Path | None:
        """Return the path of a URI on this machine's disk, or None for a remote one."""
        protocol, path = split_protocol(uri)
        return Path(path) if protocol in (None, "file", "local") else None

    def _resolve(self, uri: str) -> tuple[Any, str]:
        protocol, _ = split_protocol(uri)
        options = self._options.get(protocol or "file", {})
        try:
            fs, path = fsspec.core.url_to_fs(uri, **options)
        except ImportError as error:
            raise SetupError(
                f"{uri}: {error}", hint=f"pip install 'tokenmill[{_EXTRA.get(protocol, 'all')}]'"
            ) from None
        except ValueError as error:
            raise SetupError(f"{uri}: {error}") from None
        return fs, path


_EXTRA = {"s3": "s3", "hf": "hub"}


def join(base: str, *parts: str) -> str:
    """Join a folder URI and relative parts with single slashes."""
    return "/".join([base.rstrip("/"), *parts])


def _entry(uri: str, info: Mapping[str, Any]) -> Entry:
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or ""
    return Entry(uri, int(info["size"] or 0), str(version).strip('"'))


def _list_local(folder: Path) -> Iterator[Entry]:
    found = []
    for root, _, names in os.walk(folder):
        found += [os.path.join(root, name) for name in names]
    for path in sorted(found):
        stat = os.stat(path)
        yield Entry(path, stat.st_size, str(stat.st_mtime))


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


@contextmanager
def _our_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except TokenmillError:
        raise
    except FileNotFoundError:
        raise NotFoundError(f"{uri}: no such object") from None
    except PermissionError as error:
        raise SetupError(
            f"{uri}: permission denied ({error.strerror or type(error).__name__})",
            hint="check the path's owner, or the credentials in the environment or the job",
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise SetupError(
                f"{uri}: {error.strerror}", hint="free space, then run again"
            ) from None
        raise TransientError(f"{uri}: {type(error).__name__}: {error}") from error
    except Exception as error:
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            raise SetupError(
                f"{uri}: no credentials were found",
                hint="set them in the environment, a profile, or the job's storage options",
            ) from None
        raise
