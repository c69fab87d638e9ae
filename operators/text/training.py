"""The contract of tokenizer trainers: documents in, the files of a tokenizer out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Generic, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

Documents = Callable[[], Iterator[pa.Array]]
"""Goes through the documents from the first: large_string arrays without nulls, some documents
each. Always the same ones in the same order; it may be called several times."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is (0: not known)."""


class TrainerConfig(BaseModel):
    """What a job may say about a trainer. Subclasses add fields with defaults and bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str


ConfigT = TypeVar("ConfigT", bound=TrainerConfig)


class TokenizerTrainer(ABC, Generic[ConfigT]):
    r"""Learns a tokenizer. The same documents and config give the same bytes.

    It lives beside the operator that loads what it writes, and is found by being there.

    Example:
        >>> class CharactersConfig(TrainerConfig):
        ...     name: Literal["characters"] = "characters"
        >>> class Characters(TokenizerTrainer[CharactersConfig]):
        ...     Config = CharactersConfig
        ...
        ...     def train(self, documents, progress):
        ...         found = set()
        ...         for texts in documents():
        ...             found.update(*texts.to_pylist())
        ...         return {"vocab.txt": "\n".join(sorted(found)).encode()}
    """

    Config: ClassVar[type[TrainerConfig]]
    version: ClassVar[int] = 1
    """Raise it when the same config and documents give other files."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @abstractmethod
    def train(self, documents: Documents, progress: Progress) -> Mapping[str, bytes]:
        """Return the files of a tokenizer: name -> bytes.

        Those are what the operator of the same method loads as ``tokenizer``: ``tokenizer.json``,
        ``vocab.txt`` and the like.

        Raises:
            SetupError: a package is missing.
            ContractError: the documents cannot give what the config asks for.
        """

    def identity(self) -> Mapping[str, object]:
        """Everything beside config and version that changes the files, as JSON values.

        For example the version of the library that does the work.
        """
        return {}
