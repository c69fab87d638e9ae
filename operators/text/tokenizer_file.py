"""Find a tokenizer.json, on disk or on the Hugging Face hub, and say exactly which one it is."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from operators.errors import SetupError

FILE_NAME = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """One tokenizer.json.

    Attributes:
        data: The file.
        sha256: Of ``data``, hex.
        commit: Of the hub repository it came from; None for a file on disk.
    """

    data: bytes
    sha256: str
    commit: str | None


def is_path(tokenizer: str) -> bool:
    """Say whether a tokenizer is named by a path: it ends in ``.json``, which hub ids do not."""
    return tokenizer.endswith(".json")


def read_tokenizer_file(tokenizer: str, revision: str) -> TokenizerFile:
    """Read a tokenizer.json; one from the hub is taken from the local cache when it is there.

    Args:
        tokenizer: Path of the file (ends in ``.json``) or hub id.
        revision: Branch, tag or commit of a hub repository; a path has none.

    Raises:
        SetupError: there is no such file or repository, the hub cannot be reached, or the
            package ``huggingface_hub`` is missing.
    """
    if is_path(tokenizer):
        return _read(Path(tokenizer), tokenizer, None)
    path = _download(tokenizer, revision)
    # The cache keeps a file as .../snapshots/<commit>/tokenizer.json.
    return _read(path, tokenizer, path.parent.name)


def _read(path: Path, name: str, commit: str | None) -> TokenizerFile:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SetupError(
            f"tokenizer {name!r}: {error.strerror}, expected a {FILE_NAME}",
            hint="give the path of the file itself, or a hub id such as owner/name",
        ) from None
    return TokenizerFile(data, hashlib.sha256(data).hexdigest(), commit)


def _download(repository: str, revision: str) -> Path:
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError:
        raise SetupError(
            f"tokenizer {repository!r}: the package huggingface_hub is not installed",
            hint="pip install 'tokenmill[text]', or give the path of a tokenizer.json",
        ) from None
    try:
        return Path(hf_hub_download(repository, FILE_NAME, revision=revision))
    except errors.GatedRepoError:
        found, hint = "the repository is gated", "accept its terms on the hub and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        found, hint = "no such repository", "check the name; a private one needs HF_TOKEN"
    except errors.RevisionNotFoundError:
        found, hint = f"no revision {revision!r}", "give a branch, tag or commit of the repository"
    except errors.RemoteEntryNotFoundError:
        found = f"the repository has no {FILE_NAME}"
        hint = "save a fast tokenizer with transformers and give the path of its tokenizer.json"
    except (OSError, errors.EntryNotFoundError) as error:
        found = f"not in the local cache, and the hub cannot be reached ({type(error).__name__})"
        hint = (
            f"where there is a network: hf download {repository} {FILE_NAME} "
            f"--revision {revision}; then copy the file and give its path"
        )
    raise SetupError(f"tokenizer {repository!r}: {found}", hint=hint)
