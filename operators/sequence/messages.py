"""Read conversations out of a column of JSON: who says what, message by message."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from operators.errors import SampleError

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Form:
    """Where messages stand in a document.

    Attributes:
        path: Keys from the top of the document to the messages; empty if it is the messages.
        role_key: Key of a message's role.
        content_key: Key of its text.
        is_parallel: The messages are one object of two lists, not a list of objects.
    """

    path: tuple[str, ...]
    role_key: str
    content_key: str
    is_parallel: bool


@dataclass(frozen=True, slots=True)
class Conversations:
    """Messages of N documents, one after another.

    Attributes:
        roles: int64 [M], which of the roles asked for.
        contents: large_string [M].
        counts: int64 [N].
    """

    roles: np.ndarray
    contents: pa.Array
    counts: np.ndarray


def read_messages(
    documents: pa.Array, form: Form, roles: Mapping[str, int]
) -> tuple[Conversations, dict[int, SampleError]]:
    """Read the messages of N documents; one with a mistake has none, and an error.

    Args:
        documents: JSON, large_string [N], no nulls.
        form: Where its messages are.
        roles: Name of a role -> its number; a message of another is a mistake.
    """
    all_roles: list[int] = []
    contents: list[str] = []
    counts = np.zeros(len(documents), np.int64)
    errors = {}
    for row, document in enumerate(documents.to_pylist()):
        try:
            found = _messages(json.loads(document), form, roles)
        except json.JSONDecodeError as error:
            errors[row] = SampleError(f"chat: the document is no JSON: {error}")
        except (ValueError, RecursionError) as error:
            errors[row] = SampleError(f"chat: {error}")
        else:
            counts[row] = len(found)
            all_roles += [role for role, _ in found]
            contents += [content for _, content in found]
    column = pa.array(contents, pa.large_string())
    return Conversations(np.array(all_roles, np.int64), column, counts), errors


def _messages(document: Any, form: Form, roles: Mapping[str, int]) -> list[tuple[int, str]]:
    for key in form.path:
        document = _value(document, key, "the document")
    if form.is_parallel:
        names, texts = (
            _list(_value(document, key, "the conversation"), key)
            for key in (form.role_key, form.content_key)
        )
        if len(names) != len(texts):
            raise ValueError(
                f"{len(names)} of {form.role_key!r} and {len(texts)} of {form.content_key!r}, "
                "expected equally many"
            )
    else:
        messages = _list(document, "the conversation")
        names, texts = (
            [_value(message, key, f"message {i + 1}") for i, message in enumerate(messages)]
            for key in (form.role_key, form.content_key)
        )
    if not names:
        raise ValueError("the conversation has no messages")
    for i, (name, text) in enumerate(zip(names, texts, strict=True)):
        if not isinstance(name, str) or name not in roles:
            raise ValueError(f"message {i + 1}: role {name!r} is none of {list(roles)}")
        if not isinstance(text, str):
            raise ValueError(f"message {i + 1}: content is {_kind(text)}, expected text")
        if not text.isascii() and _LONE_SURROGATE.search(text):
            raise ValueError(f"message {i + 1}: content has half a character (a lone surrogate)")
    return [(roles[name], text) for name, text in zip(names, texts, strict=True)]


def _value(found: Any, key: str, where: str) -> Any:
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {_kind(found)}, expected an object with {key!r}")
    if key not in found:
        raise ValueError(f"{where} has no {key!r}, only {list(found)[:20]}")
    return found[key]


def _list(found: Any, what: str) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError(f"{what} is {_kind(found)}, expected a list")
    return found


def _kind(found: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return "null" if found is None else names.get(type(found), "a number")
