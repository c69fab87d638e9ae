"""Read a tokenizer.json, of a path, a URL or the hub, and say exactly which one it is."""

import hashlib
from dataclasses import dataclass

from operators.errors import SetupError
from operators.model_files import ModelFile, ModelFiles, file_at

FILE_NAME = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """One tokenizer.json.

    Attributes:
        data: The file.
        sha256: Of ``data``, hex.
        commit: Of the hub repository it came from; None for another file.
    """

    data: bytes
    sha256: str
    commit: str | None


def is_path(tokenizer: str) -> bool:
    """Say whether a tokenizer is named by a path or URL: it ends in ``.json``; hub ids do not."""
    return tokenizer.endswith(".json")


def read_tokenizer_file(tokenizer: str, revision: str, files: ModelFiles) -> TokenizerFile:
    """Read a tokenizer.json.

    Args:
        tokenizer: Path or URL of the file (ends in ``.json``) or hub id.
        revision: Branch, tag or commit of a hub repository; a path has none.
        files: How files are found: the operator's ``model_files``.

    Raises:
        SetupError: there is no such file or repository, its place cannot be reached, or the
            package ``huggingface_hub`` is missing.
    """
    if is_path(tokenizer):
        file = file_at(tokenizer, files)
        hint = "give the path of the file itself, or a hub id such as owner/name"
        missing = SetupError(
            f"tokenizer {tokenizer!r}: no such file, expected a {FILE_NAME}", hint=hint
        )
    else:
        file = ModelFile("hub", tokenizer, FILE_NAME, revision)
        missing = SetupError(
            f"tokenizer {tokenizer!r}: the repository has no {FILE_NAME}",
            hint="save a fast tokenizer with transformers and give the path of its tokenizer.json",
        )
    try:
        found = files.fetch(file)
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
    return TokenizerFile(data, hashlib.sha256(data).hexdigest(), found.commit)
