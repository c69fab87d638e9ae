"""What a backend is: text columns in, ids out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import ClassVar

import pyarrow as pa

from operators.base import Ragged


@dataclass(frozen=True, slots=True)
class Policy:
    """How special tokens are treated.

    Attributes:
        parse: Names of special tokens in the text become their ids; False encodes them as text.
        template: Add what the tokenizer's own template says around every document.
    """

    parse: bool = False
    template: bool = False


class UnsupportedError(Exception):
    """A backend cannot express a tokenizer; the message says why."""


class Backend(ABC):
    """Encodes documents. A document's ids depend on the document alone.

    Attributes:
        name: As a job names it.
        package: The package that does the work.
    """

    name: ClassVar[str]
    package: ClassVar[str]

    @abstractmethod
    def encode(self, texts: pa.Array) -> Ragged:
        """Return the ids (unsigned) of N documents.

        Args:
            texts: large_string [N] without nulls.

        Raises:
            UnicodeDecodeError: a document is no UTF-8.
        """

    @property
    def library(self) -> str:
        """Package and version, e.g. ``fastokens 0.3.5``."""
        return f"{self.package} {version(self.package)}"


class Reference(Backend):
    """The backend that says what is right, and knows the tokenizer's vocabulary."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The greatest id + 1."""

    @property
    @abstractmethod
    def special_tokens(self) -> Mapping[int, str]:
        """Id -> name of the special tokens, by id."""

    @property
    @abstractmethod
    def unknown_id(self) -> int | None:
        """Id of text outside the vocabulary."""

    @abstractmethod
    def id_of(self, token: str) -> int | None:
        """Return the id of a token, None when there is none of that name."""

    @abstractmethod
    def decode(self, documents: Sequence[Sequence[int]], *, skip_special: bool) -> list[str]:
        """Return the text of ids."""
