"""Read a tokenizer's file, of a path, a URL or the hub, and say exactly which one it is."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from operators.errors import SetupError
from operators.model_files import LocalFile, ModelFile, ModelFiles, file_at

FILE_NAME = "tokenizer.json"
SENTENCEPIECE_NAME = "tokenizer.model"


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """One tokenizer.json, or another file that holds a tokenizer.

    Attributes:
        data: The file.
        sha256: Of ``data``, hex.
        commit: Of the hub repository it came from; None for another file.
        is_sentencepiece: True for a SentencePiece model.
    """

    data: bytes
    sha256: str
    commit: str | None
    is_sentencepiece: bool = False


def is_path(tokenizer: str) -> bool:
    """Say whether a tokenizer is named by a path or URL: it ends in ``.json``; hub ids do not."""
    return tokenizer.endswith(".json")


def is_sentencepiece_path(tokenizer: str) -> bool:
    """Say whether a tokenizer is named by the path or URL of a SentencePiece model: ``.model``."""
    return tokenizer.endswith(".model")


def read_tokenizer_file(
    tokenizer: str, revision: str, files: ModelFiles, *, sentencepiece: bool = False
) -> TokenizerFile:
    """Read a tokenizer.json.

    Args:
        tokenizer: Path or URL of the file (ends in ``.json``) or hub id.
        revision: Branch, tag or commit of a hub repository; a path has none.
        files: How files are found: the operator's ``model_files``.
        sentencepiece: Read a SentencePiece model too: from a path that ends in ``.model``, or
            from a repository that has a tokenizer.model and no tokenizer.json.

    Raises:
        SetupError: there is no such file or repository, its place cannot be reached, or the
            package ``huggingface_hub`` is missing.
    """
    if is_path(tokenizer) or (sentencepiece and is_sentencepiece_path(tokenizer)):
        wanted = [file_at(tokenizer, files)]
        name = FILE_NAME if is_path(tokenizer) else "SentencePiece model"
        missing = SetupError(
            f"tokenizer {tokenizer!r}: no such file, expected a {name}",
            hint="give the path of the file itself, or a hub id such as owner/name",
        )
    else:
        names = [FILE_NAME, SENTENCEPIECE_NAME] if sentencepiece else [FILE_NAME]
        wanted = [ModelFile("hub", tokenizer, name, revision) for name in names]
        missing = SetupError(
            f"tokenizer {tokenizer!r}: the repository has no {' and no '.join(names)}",
            hint="save a fast tokenizer with transformers and give the path of its tokenizer.json",
        )
    try:
        file, found = _first_there(wanted, files)
    except SetupError as error:
        raise SetupError(f"tokenizer {tokenizer!r}: {error.message}", hint=error.hint) from error
    if found is None:
        raise missing
    try:
        data = found.path.read_bytes()
    except OSError as error:
        raise SetupError(
            f"tokenizer {tokenizer!r}: {error.strerror}", hint="check its permissions"
        ) from None
    return TokenizerFile(
        data, hashlib.sha256(data).hexdigest(), found.commit, is_sentencepiece_path(file.name)
    )


def _first_there(
    wanted: Sequence[ModelFile], files: ModelFiles
) -> tuple[ModelFile, LocalFile | None]:
    for file in wanted:
        found = files.fetch(file)
        if found is not None:
            return file, found
    return wanted[-1], None
