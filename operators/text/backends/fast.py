"""The library ``fastokens``: byte-level and SentencePiece-like BPE at a hundred times the speed.

``gigatoken`` was tried beside it: it reads Arrow without a string per document, but gives other
ids where a code point is younger than the reference's Unicode tables, and at a doubled contraction
(``'s's``): 1 to 57 of 68,000 difficult strings with five tokenizers of eight. fastokens gave none
with six published ones.
"""

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from operators.base import Ragged
from operators.columns import concat, take
from operators.text.backends.base import Backend, UnsupportedError
from operators.text.backends.reference import HuggingFace

_UNICODE_FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")


class Fast(Backend):
    """BPE of a tokenizer.json by ``fastokens``: 160 MB/s on one core, 25 on random words.

    The library takes strings: one is made for every document, and nothing for a token.

    Unicode normalisation is the reference's own, since its tables decide what happens to young
    code points: documents that it would change are changed by it (25 MB/s), the others are
    recognised at 800 MB/s. Two kinds of documents go to the reference whole: those that it would
    change and that hold an added token which is matched before it, and those with a byte that the
    vocabulary lacks.

    Args:
        reference: The tokenizer.

    Raises:
        ImportError: the package is missing.
        UnsupportedError: the library cannot express the tokenizer.
    """

    name = "fast"
    package = "fastokens"

    def __init__(self, reference: HuggingFace) -> None:
        # Read by the library once, before its first call: there is a worker for every core.
        os.environ["FASTOKENS_BPE_THREADS"] = "1"
        self._reference = reference
        content = json.loads(reference.canonical)
        parts = _normalizers(content["normalizer"])
        types = [part["type"] for part in parts]
        self._normalizer = None
        self._forms = [form for form in _UNICODE_FORMS if form in types]
        self._is_form_only = len(types) == len(self._forms)
        if self._forms:
            self._normalizer = reference.normalizer
            content["normalizer"] = None
        self._raw_token = self._tokens_before_normalization(content["added_tokens"])
        self._tokenizer = _load(json.dumps(content))

    def encode(self, texts: pa.Array) -> Ragged:
        """See ``Backend.encode``."""
        documents, slow = self._normalized(texts.to_pylist())
        try:
            return self._encode_some(documents, texts, slow)
        except ValueError:  # a byte that the vocabulary lacks
            cannot = [row for row, text in enumerate(documents) if not self._can_encode(text)]
            return self._encode_some(documents, texts, sorted({*slow, *cannot}))

    def _normalized(self, documents: list[str]) -> tuple[list[str], list[int]]:
        """Return the documents as they are after normalisation, and the rows that are not."""
        slow: list[int] = []
        if self._normalizer is None:
            return documents, slow
        for row, text in enumerate(documents):
            if self._is_form_only and self._is_normal(text):
                continue
            changed = self._normalizer.normalize_str(text)
            if self._raw_token and any(self._raw_token.search(t) for t in (text, changed)):
                slow.append(row)
            else:
                documents[row] = changed
        return documents, slow

    def _encode_some(
        self, documents: Sequence[str], texts: pa.Array, slow: Sequence[int]
    ) -> Ragged:
        """Encode all documents, those of the rows ``slow`` by the reference."""
        if not slow:
            return self._encode(documents)
        fast = np.setdiff1d(np.arange(len(documents)), slow)
        rows = [
            self._encode([documents[row] for row in fast]),
            self._reference.encode(take(texts, np.array(slow, np.int64))),
        ]
        joined: Ragged = take(concat(rows), np.argsort(np.concatenate([fast, slow])))
        return joined

    def _can_encode(self, text: str) -> bool:
        try:
            self._encode([text])
        except ValueError:
            return False
        return True

    def _encode(self, documents: Sequence[str]) -> Ragged:
        policy = self._reference.policy
        ids, offsets = self._tokenizer.encode_batch_flat(
            documents, policy.template, not policy.parse
        )
        return Ragged(
            np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64)
        )

    def _is_normal(self, text: str) -> bool:
        """Say whether normalisation leaves a text alone; False where that is not certain.

        Python's tables are younger than the reference's; text that is normal by them is also
        normal by older ones, which take a code point that they lack for one that never changes.
        """
        return text.isascii() or all(unicodedata.is_normalized(f, text) for f in self._forms)

    def _tokens_before_normalization(
        self, added: Sequence[dict[str, Any]]
    ) -> "re.Pattern[str] | None":
        """Return a pattern of the added tokens that are matched in text before it is normalised."""
        if self._normalizer is None:
            return None
        matched = [t for t in added if self._reference.policy.parse or not t["special"]]
        for token in matched:
            text = token["content"]
            if token["normalized"] and self._normalizer.normalize_str(text) != text:
                raise UnsupportedError(f"the added token {text!r} is changed by normalisation")
        raw = [re.escape(token["content"]) for token in matched if not token["normalized"]]
        return re.compile("|".join(raw)) if raw else None


def _normalizers(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    if found is None:
        return []
    if found["type"] == "Sequence":
        return [part for inner in found["normalizers"] for part in _normalizers(inner)]
    return [found]


def _load(content: str) -> Any:
    import fastokens

    try:
        return fastokens.Tokenizer.from_json_str(content)
    except ValueError as error:
        raise UnsupportedError(str(error)) from None
