"""Read the files of methods with formats of their own: a vocabulary, a lexicon, a dictionary."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from operators.base import OperatorConfig
from operators.errors import SetupError
from operators.model_files import ModelFile, ModelFiles, file_at

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class MethodFileConfig(OperatorConfig):
    """What a job says about an operator that reads one file of its method."""

    file_name: ClassVar[str]
    """What the file is called on the hub; paths and URLs have the same ending."""

    tokenizer: Annotated[
        str,
        Field(
            description="Path or URL of the method's file (see its ending in the operator's "
            "documentation), or a hub id owner/name."
        ),
    ]
    revision: Annotated[
        str | None,
        Field(description="Branch, tag or, best, commit of a hub id; its main branch if null."),
    ] = None

    @model_validator(mode="after")
    def _check_address(self) -> Self:
        ending = _ending(self.file_name)
        if self.tokenizer.endswith(ending):
            if self.revision is not None:
                raise ValueError(
                    f"revision={self.revision!r} belongs to a hub id, "
                    f"but tokenizer={self.tokenizer!r} is a file; leave one out"
                )
        elif not _HUB_ID.fullmatch(self.tokenizer):
            raise ValueError(
                f"tokenizer={self.tokenizer!r} is neither a path that ends in {ending} "
                "nor a hub id such as owner/name"
            )
        return self


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that was read.

    Attributes:
        data: Its bytes.
        sha256: Of ``data``, hex.
        commit: Of the hub repository it came from; None for another file.
    """

    data: bytes
    sha256: str
    commit: str | None


def read_method_file(config: MethodFileConfig, files: ModelFiles) -> FoundFile:
    """Read the file that a config names.

    Raises:
        SetupError: there is no such file, or its place cannot be reached.
    """
    if config.tokenizer.endswith(_ending(config.file_name)):
        file = file_at(config.tokenizer, files)
    else:
        file = ModelFile("hub", config.tokenizer, config.file_name, config.revision)
    return read_file(file, f"{config.name}: tokenizer {config.tokenizer!r}", files)


def read_file(file: ModelFile, where: str, files: ModelFiles) -> FoundFile:
    """Read a file.

    Raises:
        SetupError: there is no such file, or its place cannot be reached.
    """
    try:
        found = files.fetch(file)
    except SetupError as error:
        raise SetupError(f"{where}: {error.message}", hint=error.hint) from error
    if found is None:
        raise SetupError(
            f"{where}: {file.location} has no file {file.name}",
            hint="give the path of the file itself, or a hub id of a repository that has it",
        )
    try:
        data = found.path.read_bytes()
    except OSError as error:
        raise SetupError(f"{where}: {error.strerror}", hint="check its permissions") from None
    return FoundFile(data, hashlib.sha256(data).hexdigest(), found.commit)


def method_identity(config: MethodFileConfig, found: FoundFile) -> Mapping[str, object]:
    """Return what ``identity`` of an operator says about its file."""
    return {
        "tokenizer_sha256": found.sha256,
        **commit_identity(found.commit, config.revision, config.tokenizer),
    }


def commit_identity(commit: str | None, revision: str | None, where: str) -> Mapping[str, object]:
    """Return the hub's commit, and a warning where the job does not fix it."""
    if commit is None:
        return {}
    if _COMMIT.fullmatch(revision or ""):
        return {"commit": commit}
    moving = f"{where}: revision {revision or 'main'!r} may move; set revision: {commit}"
    return {"commit": commit, "warning": moving}


def _ending(name: str) -> str:
    return name[name.rindex(".") :]
