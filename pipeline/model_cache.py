"""Model files of a job: found once by the driver, and the same bytes on every worker.

The driver looks up where each file lies and what its SHA-256 is. Workers are told (``KnownFile``),
so they ask neither the hub nor an object store: they take a file with that digest from the node's
cache, from the path where the driver has it, or from the driver by way of the engine (``Pull``).
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from operators.model_files import (
    DirectFiles,
    FileIdentity,
    FileKind,
    LocalFile,
    ModelFile,
    sha256_of,
)
from pipeline.errors import SetupError, TransientError
from pipeline.protocols import Pull
from pipeline.spec import expand_env
from pipeline.storage import Entry, Storage, join, shown

CHUNK_BYTES = 16 << 20
"""A file is copied in pieces of this size: large files must not stand in memory whole."""


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A model file as the driver found it.

    Attributes:
        sha256: Of the bytes, hex.
        commit: Of the hub repository it comes from; None elsewhere.
        path: Where the driver has it; None when it did not fetch it.
    """

    sha256: str
    commit: str | None = None
    path: Path | None = None


KnownFiles = Mapping[ModelFile, KnownFile | None]
"""What the driver looked for; None: there is no such file."""


class JobModelFiles:
    """The ``ModelFiles`` of a job's operators, on the driver and on workers.

    Args:
        storage: How URLs are reached.
        known: On a worker: what the driver found. Files with other bytes are refused.
        pull: On a worker: how to get a file from the driver.
    """

    def __init__(
        self, storage: Storage, known: KnownFiles | None = None, pull: Pull | None = None
    ) -> None:
        self._storage = storage
        self._known = dict(known or {})
        self._pull = pull
        self._direct = DirectFiles()
        self._cache = NodeCache()
        self._paths: dict[ModelFile, Path] = {}  # of files whose digest was checked

    def kind_of(self, location: str) -> FileKind:
        """See ``ModelFiles.kind_of``; a worker goes by what the driver said."""
        for file in self._known:
            if file.location == location:
                return file.kind
        return self._direct.kind_of(_expanded(location))

    def identify(self, file: ModelFile) -> FileIdentity | None:
        """See ``ModelFiles.identify``."""
        if file not in self._known:
            told = self._direct.identify(self._pinned(file)) if file.kind == "hub" else None
            self._known[file] = KnownFile(told.sha256, told.commit) if told else self._find(file)
        known = self._known[file]
        return None if known is None else FileIdentity(known.sha256, known.commit)

    def fetch(self, file: ModelFile) -> LocalFile | None:
        """See ``ModelFiles.fetch``."""
        if file not in self._known:
            self._known[file] = self._find(file)
        known = self._known[file]
        if known is None:
            return None
        if file not in self._paths:
            self._paths[file] = self._obtain(file, known)
        return LocalFile(self._paths[file], known.commit)

    def fetch_all(self) -> None:
        """Fetch every file that was asked for so far, before other machines want it."""
        for file in list(self._known):
            self.fetch(file)

    def known(self) -> KnownFiles:
        """Return all files that were asked for so far, for workers."""
        return {
            file: known and replace(known, path=self._paths.get(file, known.path))
            for file, known in self._known.items()
        }

    def _obtain(self, file: ModelFile, known: KnownFile) -> Path:
        """Return the path of a file with the known bytes, from the nearest place that has it."""
        name = PurePosixPath(file.name).name
        cached = self._cache.find(known.sha256, name)
        if cached is not None:
            return cached
        # The driver's cache is no place to look: it is ours, or that of another machine.
        there = known.path if file.kind != "url" else None
        if there is not None and there.is_file() and sha256_of(there) == known.sha256:
            return there
        if self._pull is not None:
            pull = self._pull
            return self._cache.receive(known.sha256, name, lambda: pull(known.sha256))
        found = self._find(file)
        if found is None or found.sha256 != known.sha256:
            what = "is gone" if found is None else f"has sha256 {found.sha256[:12]} now"
            raise SetupError(
                f"{file.name} of {file.location} {what}, the run began with {known.sha256[:12]}",
                hint="put the file back, or start a new run with the changed one",
            )
        return self._paths[file]

    def _find(self, file: ModelFile) -> KnownFile | None:
        """Look for a file where the job says it is, and fetch it."""
        if file.kind == "url":
            found = self._download(file)
        else:
            local = self._direct.fetch(self._pinned(file))
            if local is None:
                return None
            path = local.path.absolute()
            found = KnownFile(sha256_of(path), local.commit, path)
        if found is not None and found.path is not None:
            self._paths[file] = found.path
        return found

    def _pinned(self, file: ModelFile) -> ModelFile:
        """Return the file as it is named where it lies.

        Files of one repository are all taken from the commit that the first was found in.
        """
        if file.kind != "hub":
            return replace(file, location=_expanded(file.location))
        for other, known in self._known.items():
            if known is not None and replace(other, name=file.name) == file:
                return replace(file, revision=known.commit)
        return file

    def _download(self, file: ModelFile) -> KnownFile | None:
        url = join(_expanded(file.location), file.name)
        entry = self._storage.stat(url)
        if entry is None:
            return None
        sha256, path = self._cache.download(entry, lambda: self._read(entry))
        return KnownFile(sha256, path=path)

    def _read(self, entry: Entry) -> Iterator[bytes]:
        num_bytes = 0
        with self._storage.open_read(entry.uri) as source:
            while chunk := source.read(CHUNK_BYTES):
                num_bytes += len(chunk)
                yield chunk
        if num_bytes != entry.num_bytes or self._storage.stat(entry.uri) != entry:
            raise TransientError(
                f"{shown(entry.uri)}: changed while it was read ({num_bytes:,} of "
                f"{entry.num_bytes:,} bytes)",
                hint="run the same command again",
            )


class NodeCache:
    """Whole files by the SHA-256 of their bytes, in a folder that all processes of a node share.

    A file appears under its final name when it is whole and checked. Of several processes that
    want the same one, one fetches it and the others wait; a lock ends with its process.

    ``files/<sha256>/<name>`` are the files, ``urls/`` says which of them a URL stands for. Nothing
    is removed from it; all of it may be, when no run is using it.

    Args:
        root: The folder; by default ``$TOKENMILL_CACHE``, or ``~/.cache/tokenmill``.
    """

    def __init__(self, root: Path | None = None) -> None:
        default = os.environ.get("TOKENMILL_CACHE") or "~/.cache/tokenmill"
        self._root = root or Path(default).expanduser()

    def find(self, sha256: str, name: str) -> Path | None:
        """Return the file with these bytes, or None."""
        path = self._root / "files" / sha256 / name
        return path if path.is_file() else None

    def download(
        self, entry: Entry, read: Callable[[], Iterable[bytes | memoryview]]
    ) -> tuple[str, Path]:
        """Return digest and path of a stored object, reading it if it is not here.

        An object without a version may change unnoticed: it is read every time.
        """
        name = PurePosixPath(entry.uri).name
        told = json.dumps([entry.uri, entry.num_bytes, entry.version])
        key = hashlib.sha256(told.encode()).hexdigest()
        record = self._root / "urls" / key
        with self._our_errors(), self._locked(key):
            if entry.version and record.is_file():
                sha256 = record.read_text()
                path = self.find(sha256, name)
                if path is not None:
                    return sha256, path
            sha256, partial = self._write(key, read)
            path = self._keep(partial, sha256, name)
            if entry.version:
                self._replace(record, sha256)
            return sha256, path

    def receive(
        self, sha256: str, name: str, read: Callable[[], Iterable[bytes | memoryview]]
    ) -> Path:
        """Return the file with these bytes, reading it if it is not here.

        Raises:
            SetupError: what was read has another digest.
        """
        with self._our_errors(), self._locked(sha256):
            path = self.find(sha256, name)
            if path is not None:
                return path
            found, partial = self._write(sha256, read)
            if found != sha256:
                partial.unlink()
                raise SetupError(
                    f"{name}: sha256 {found[:12]} was received, the run began with {sha256[:12]}",
                    hint="the file has changed under the run: put it back, or start a new run",
                )
            return self._keep(partial, sha256, name)

    def _write(
        self, key: str, read: Callable[[], Iterable[bytes | memoryview]]
    ) -> tuple[str, Path]:
        """Write what is read to the one partial file of a key, whose lock is held."""
        partial = self._root / "partial" / key
        partial.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        try:
            with partial.open("wb") as file:  # what a killed process left is overwritten
                for chunk in read():
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return digest.hexdigest(), partial

    def _keep(self, partial: Path, sha256: str, name: str) -> Path:
        path = self._root / "files" / sha256 / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(path)
        return path

    def _replace(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_suffix(".tmp")
        temp.write_text(text)
        temp.replace(path)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        path = self._root / "locks" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the kernel lets go when the process ends
            yield

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SetupError(
                f"model cache {self._root}: {error.strerror or type(error).__name__}",
                hint="free space there, or name another folder in TOKENMILL_CACHE",
            ) from error


def _expanded(location: str) -> str:
    return expand_env(location, location)
