"""The library ``tiktoken``, for byte-level BPE whose merges follow the order of the ids."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import Ragged
from operators.text.backends.base import Backend, UnsupportedError
from operators.text.backends.reference import HuggingFace
from operators.text.text_column import utf8_bytes

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What the pre-tokenizer ``ByteLevel`` splits by: https://github.com/openai/gpt-2, encoder.py."""


class Tiktoken(Backend):
    """Byte-level BPE of a tokenizer.json by ``tiktoken``: 7 MB/s on one core.

    ``tiktoken`` joins any two neighbours whose join is in the vocabulary, lowest id first; a
    tokenizer.json lists which pairs may be joined, in order. ``is_certain`` says that the lists are
    the same, so that the ids are. Otherwise (one way to make each token is listed, as after
    training) they hardly ever differ, but may.

    Documents that the pattern does not cover whole, or that need more stack than the library's
    regular expressions have (half a million blanks in a row), go to the reference.

    Args:
        reference: The tokenizer.

    Raises:
        ImportError: the package is missing.
        UnsupportedError: the library cannot express the tokenizer.
    """

    name = "tiktoken"
    package = "tiktoken"

    def __init__(self, reference: HuggingFace) -> None:
        import tiktoken

        self._reference = reference
        content = json.loads(reference.canonical)
        if reference.policy.template:
            raise UnsupportedError("it adds no template (add_special_tokens)")
        if content["normalizer"] is not None:
            raise UnsupportedError(f"it has no normalizer {content['normalizer']['type']}")
        pattern = _pattern(content["pre_tokenizer"])
        tokens = _matched_tokens(content["added_tokens"], parse=reference.policy.parse)
        ranks, pairs = _ranks(content["model"], {t["content"] for t in content["added_tokens"]})
        self._matched = frozenset(tokens)
        self._encoding = tiktoken.Encoding(
            "tokenizer.json", pat_str=pattern, mergeable_ranks=ranks, special_tokens=tokens
        )
        self._num_bytes = np.zeros(max([*ranks.values(), *tokens.values()]) + 1, np.int64)
        for token, i in ranks.items():
            self._num_bytes[i] = len(token)
        for name, i in tokens.items():
            self._num_bytes[i] = len(name.encode())
        self.is_certain = _lists_all_pairs(ranks, pairs)

    def encode(self, texts: pa.Array) -> Ragged:
        """See ``Backend.encode``."""
        lengths = utf8_bytes(texts).lengths.tolist()
        rows = []
        for i, text in enumerate(texts.to_pylist()):
            ids = self._encode(text)
            if ids is None or self._num_bytes[ids].sum() != lengths[i]:
                ids = self._reference.encode(texts.slice(i, 1)).values
            rows.append(ids)
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return Ragged(np.concatenate(rows) if rows else np.empty(0, np.uint32), offsets)

    def _encode(self, text: str) -> np.ndarray | None:
        try:
            ids: np.ndarray = self._encoding.encode_to_numpy(
                text, allowed_special=self._matched, disallowed_special=()
            )
        except ValueError:  # of its regular expressions, about their stack
            return None
        return ids


def _pattern(found: Mapping[str, Any] | None) -> str:
    """Return the pattern of a pre-tokenizer: GPT-2's, or a pattern followed by ``ByteLevel``."""
    parts: Sequence[Mapping[str, Any]] = [found] if found else []
    if found and found["type"] == "Sequence":
        parts = found["pretokenizers"]
    last = parts[-1] if parts else {"type": None}
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        raise UnsupportedError("its pre-tokenizer is not ByteLevel without a prefix space")
    if len(parts) == 1 and last["use_regex"]:
        return GPT2_PATTERN
    split = parts[0]
    if len(parts) != 2 or last["use_regex"] or split["type"] != "Split":
        raise UnsupportedError("its pre-tokenizer is not one pattern before ByteLevel")
    keeps = (split["behavior"], split["invert"])
    pattern = split["pattern"].get("Regex")
    if pattern is None or keeps not in (("Isolated", False), ("Removed", True)):
        raise UnsupportedError(f"its pre-tokenizer is a Split of another kind: {keeps}")
    return str(pattern)


def _matched_tokens(added: Sequence[Mapping[str, Any]], *, parse: bool) -> dict[str, int]:
    """Return the added tokens that are matched in text."""
    tokens = {}
    for token in added:
        if token["special"] and not parse:
            continue
        if token["single_word"] or token["lstrip"] or token["rstrip"]:
            raise UnsupportedError(f"the added token {token['content']!r} strips or wants a word")
        tokens[token["content"]] = int(token["id"])
    for name in tokens:
        if any(other != name and other.startswith(name) for other in tokens):
            raise UnsupportedError(f"the added token {name!r} begins another one")
    return tokens


def _ranks(
    model: Mapping[str, Any], added: set[str]
) -> tuple[dict[bytes, int], set[tuple[bytes, bytes]]]:
    """Return token bytes -> id, and the pairs that may be joined."""
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model.get(option) for option in odd):
        raise UnsupportedError("its model is not plain BPE")
    byte_of = _byte_of_letter()
    vocab = {token: i for token, i in model["vocab"].items() if token not in added}
    if any(letter not in byte_of for token in vocab for letter in token):
        raise UnsupportedError("its vocabulary is not byte-level")
    if any(letter not in vocab for letter in byte_of):
        raise UnsupportedError("its vocabulary lacks single bytes")
    joined = [left + right for left, right in model["merges"]]
    order = [vocab.get(token, -1) for token in joined]
    if order != sorted(order):
        raise UnsupportedError("its merges are not in the order of their ids")
    if set(vocab) - set(joined) - set(byte_of):
        raise UnsupportedError("its vocabulary holds tokens that no merge makes")

    def as_bytes(token: str) -> bytes:
        return bytes(byte_of[letter] for letter in token)

    pairs = {(as_bytes(left), as_bytes(right)) for left, right in model["merges"]}
    return {as_bytes(token): i for token, i in vocab.items()}, pairs


def _byte_of_letter() -> dict[str, int]:
    """Return byte-level BPE's alphabet: printable Latin-1 as it is, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _lists_all_pairs(ranks: Mapping[bytes, int], pairs: set[tuple[bytes, bytes]]) -> bool:
    """Say whether every pair of tokens whose join is a token is among ``pairs``."""
    return all(
        (token[:cut], token[cut:]) in pairs
        for token in ranks
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    )
