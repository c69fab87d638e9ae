"""Find the files of models: in a folder, on the Hugging Face hub, or at a URL.

Operators ask ``self.model_files`` for them. Alone, that is ``DirectFiles``, which knows folders and
the hub; in a job the pipeline puts its own there, which knows URLs too, checks digests, and gives
every worker the files that the driver found.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

from operators.errors import SetupError
from operators.extras import import_extra

FileKind = Literal["disk", "hub", "url"]

_SECRET = re.compile(r"://[^/]*@|\?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Which file is meant, in the words of a job: the same on every machine.

    Attributes:
        kind: What ``location`` is.
        location: A folder, a hub repository, or the URL of a folder.
        name: Path of the file in it, with ``/``.
        revision: Commit, tag or branch of a repository; None is its default branch.
    """

    kind: FileKind
    location: str
    name: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Which bytes a file has.

    Attributes:
        sha256: Of the bytes, hex.
        commit: Of the hub repository they come from; None elsewhere.
    """

    sha256: str
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine's disk; it is not to be changed.

    Attributes:
        path: Where it is.
        commit: Of the hub repository it comes from; None elsewhere.
    """

    path: Path
    commit: str | None = None


class ModelFiles(Protocol):
    """Turns a ``ModelFile`` into a path or a digest."""

    def kind_of(self, location: str) -> FileKind:
        """Say what a location is: a URL, a folder if there is one of that name, or on the hub.

        Raises:
            SetupError: it is a URL with credentials.
        """
        ...

    def identify(self, file: ModelFile) -> FileIdentity | None:
        """Return which bytes a file has, without fetching it where possible; None: no such file.

        Raises:
            SetupError: its place cannot be reached.
        """
        ...

    def fetch(self, file: ModelFile) -> LocalFile | None:
        """Return a file on this machine's disk, after fetching it if need be; None: no such file.

        Raises:
            SetupError: its place cannot be reached.
        """
        ...


class DirectFiles:
    """Files of folders, and of the hub through the hub's own cache.

    The cache alone is used when there is no network. Nothing is remembered from call to call.
    """

    def kind_of(self, location: str) -> FileKind:
        """See ``ModelFiles.kind_of``."""
        if "://" in location:
            if _SECRET.search(location):
                raise SetupError(
                    f"{location.partition('://')[0]}://***: the URL of a model holds a password or "
                    "a signature, and would stand in the manifest",
                    hint="put credentials into the job's `storage` options or the environment",
                )
            return "url"
        return "disk" if Path(location).is_dir() else "hub"

    def identify(self, file: ModelFile) -> FileIdentity | None:
        """See ``ModelFiles.identify``; the hub tells digests of large files without a download."""
        if file.kind == "hub":
            told = _told_by_hub(file)
            if told is not None:
                return told
        found = self.fetch(file)
        return None if found is None else FileIdentity(sha256_of(found.path), found.commit)

    def fetch(self, file: ModelFile) -> LocalFile | None:
        """See ``ModelFiles.fetch``."""
        if file.kind == "hub":
            return _fetch_from_hub(file)
        if file.kind == "url":
            raise SetupError(
                f"{file.location}: a URL, which only a job can read",
                hint="run it as part of a job, or copy the files to a folder and give its path",
            )
        path = Path(file.location) / file.name
        return LocalFile(path) if path.is_file() else None


def file_at(address: str, files: ModelFiles) -> ModelFile:
    """Return the file that a path or a URL names."""
    location, slash, name = address.rpartition("/")
    location = location or slash or "."
    return ModelFile("url" if files.kind_of(location) == "url" else "disk", location, name)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hex.

    Raises:
        SetupError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}", hint="check its permissions") from None


def _hub_client() -> Any:
    return import_extra("huggingface_hub", extra="hub")


def _told_by_hub(file: ModelFile) -> FileIdentity | None:
    hub = _hub_client()
    url = hub.hf_hub_url(file.location, file.name, revision=file.revision)
    try:
        found = hub.get_hf_file_metadata(url)
    except Exception:  # of several libraries; the cached file answers instead, or says why not
        return None
    etag = found.etag or ""  # for large files the hub's etag is the SHA-256
    if not found.commit_hash or not _SHA256.fullmatch(etag):
        return None
    return FileIdentity(etag, found.commit_hash)


def _fetch_from_hub(file: ModelFile) -> LocalFile | None:
    hub = _hub_client()
    errors = import_extra("huggingface_hub.errors", extra="hub")
    try:
        path = Path(hub.hf_hub_download(file.location, file.name, revision=file.revision))
    except errors.RemoteEntryNotFoundError:
        return None
    except errors.GatedRepoError:
        found, hint = "the repository is gated", "accept its terms on the hub and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        found, hint = "no such repository", "check the name; a private one needs HF_TOKEN"
    except errors.RevisionNotFoundError:
        found = f"no revision {file.revision!r}"
        hint = "give a branch, tag or commit of the repository"
    except Exception as error:  # the hub's client raises errors of several libraries
        reason = "".join(str(error).strip().splitlines()[:1])
        found = (
            "not in the local cache, and the hub cannot be reached "
            f"({type(error).__name__}: {reason})"
        )
        hint = (
            f"where there is a network: hf download {file.location} {file.name} "
            f"--revision {file.revision or 'main'}; then copy what it fetched and give its path"
        )
    else:
        # <cache>/snapshots/<commit>/<name>
        return LocalFile(path, path.parents[len(PurePosixPath(file.name).parts) - 1].name)
    raise SetupError(found, hint=hint)
