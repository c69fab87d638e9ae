"""Choose the backend of a tokenizer: the fastest that gives the reference's ids."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from operators.base import Ragged
from operators.errors import ContractError, SetupError
from operators.text.backends.base import Backend, Policy, Reference, UnsupportedError
from operators.text.backends.fast import Fast
from operators.text.backends.probe import probe_texts
from operators.text.backends.reference import HuggingFace
from operators.text.backends.tiktoken import Tiktoken
from operators.text.text_column import utf8_bytes

BackendName = Literal["auto", "fast", "tiktoken", "sentencepiece", "reference"]

_BY_SPEED: Mapping[str, Callable[[HuggingFace], Backend]] = {"fast": Fast, "tiktoken": Tiktoken}


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend of a run.

    Attributes:
        backend: It.
        refused: Faster backends that are not used -> why.
        warning: What the user must be told: a faster one is missing, or gave other ids.
    """

    backend: Backend
    refused: Mapping[str, str]
    warning: str | None = None


def choose(reference: Reference, asked: BackendName, where: str) -> Choice:
    """Return the backend that is asked for; under ``auto`` the fastest that gives equal ids.

    It depends on the tokenizer, the job and the installed versions alone.

    Args:
        reference: The tokenizer.
        asked: What the job says.
        where: The tokenizer's name, for messages.

    Raises:
        ContractError: the backend that is asked for cannot express the tokenizer, or gives other
            ids.
        SetupError: its package is missing.
    """
    if asked in ("reference", reference.name):
        return Choice(reference, {})
    if not isinstance(reference, HuggingFace):
        if asked == "auto":
            return Choice(reference, {})
        raise ContractError(
            f"text_tokenizer: backend: {asked} does not read the SentencePiece model {where!r}",
            hint="set backend: auto",
        )
    if asked == "sentencepiece":
        raise ContractError(
            f"text_tokenizer: backend: sentencepiece does not read {where!r}, a tokenizer.json",
            hint="give a file that ends in .model, or set backend: auto",
        )
    return _fastest(reference, where) if asked == "auto" else _only(reference, asked, where)


def _fastest(reference: HuggingFace, where: str) -> Choice:
    refused: dict[str, str] = {}
    warnings: list[str] = []
    chosen: Backend = reference
    for name, build in _BY_SPEED.items():
        try:
            backend = build(reference)
        except UnsupportedError as error:
            refused[name] = str(error)
            continue
        except ImportError:
            refused[name] = "the package is not installed"
            warnings.append(f"backend {name} is not installed (pip install 'tokenmill[text]')")
            continue
        if isinstance(backend, Tiktoken) and not backend.is_certain:
            refused[name] = "its ids cannot be proved equal: set backend: tiktoken to use it"
            continue
        difference = compare_on_probe(backend, reference)
        if difference is None:
            chosen = backend
            break
        refused[name] = f"gives other ids: {difference}"
        warnings.append(f"{backend.library} gives other ids: {difference}")
    if not warnings:
        return Choice(chosen, refused)
    return Choice(chosen, refused, f"{where}: {'; '.join(warnings)}; {chosen.library} is used")


def _only(reference: HuggingFace, asked: str, where: str) -> Choice:
    try:
        backend = _BY_SPEED[asked](reference)
    except UnsupportedError as error:
        raise ContractError(
            f"text_tokenizer: backend: {asked} cannot express {where!r}: {error}",
            hint="set backend: auto",
        ) from None
    except ImportError as error:
        raise SetupError(
            f"text_tokenizer: backend: {asked}: {error}", hint="pip install 'tokenmill[text]'"
        ) from None
    difference = compare_on_probe(backend, reference)
    if difference is not None:
        raise ContractError(
            f"text_tokenizer: {backend.library} gives other ids for {where!r} than its reference: "
            f"{difference}",
            hint="set backend: auto, or reference",
        )
    return Choice(backend, {})


def compare_on_probe(backend: Backend, reference: HuggingFace) -> str | None:
    """Return the first difference on the built-in difficult strings, None when there is none.

    A process compares the same two once.
    """
    key = (backend.library, reference.library, reference.digest, reference.policy)
    if key not in _compared:
        texts = probe_texts(reference.added_tokens)
        _compared[key] = first_difference(backend, reference, texts)
    return _compared[key]


_compared: dict[tuple[str, str, str, Policy], str | None] = {}


def first_difference(backend: Backend, reference: Reference, texts: pa.Array) -> str | None:
    """Return the first difference in the ids of some texts, as words; None when there is none."""
    found, wanted = backend.encode(texts), reference.encode(texts)
    if np.array_equal(found.offsets, wanted.offsets) and np.array_equal(
        found.values, wanted.values
    ):
        return None
    row = next(i for i in range(len(texts)) if not np.array_equal(found[i], wanted[i]))
    return _difference(found, wanted, row, utf8_bytes(texts)[row])


def _difference(found: Ragged, wanted: Ragged, row: int, text: np.ndarray) -> str:
    shown = text[:60].tobytes().decode("utf-8", "replace")
    size = min(len(found[row]), len(wanted[row]))
    differs = np.flatnonzero(found[row][:size] != wanted[row][:size])
    at = int(differs[0]) if len(differs) else size
    return (
        f"{found[row][at : at + 4].tolist()} instead of {wanted[row][at : at + 4].tolist()} from "
        f"token {at} on, in {shown!r}{'...' if len(text) > 60 else ''}"
    )
