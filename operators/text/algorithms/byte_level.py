"""Byte-level BPE in the format of a tokenizer.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from operators.text.algorithms.pretokens import PATTERNS, Unmatched

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
CHARACTERS = "".join(
    chr(byte if byte in _PRINTABLE else 256 + _OTHERS.index(byte)) for byte in range(256)
)
"""Byte -> the character that stands for it in files: GPT-2's alphabet, in which the space is Ġ."""

BYTES = {ord(character): byte for byte, character in enumerate(CHARACTERS)}


def spelling(token: bytes) -> str:
    """Return the characters that stand for a token's bytes."""
    return token.decode("latin-1").translate(_TO_CHARACTERS)


def byte_order(byte: int) -> int:
    """Return by what bytes are sorted where the alphabet is: the code point of the character."""
    return ord(CHARACTERS[byte])


def seen_bytes(pieces: Mapping[bytes, int]) -> list[int]:
    """Return the bytes that stand in pieces, in the order of the alphabet."""
    seen = np.bincount(np.frombuffer(b"".join(pieces), np.uint8), minlength=256)
    return sorted(np.flatnonzero(seen).tolist(), key=byte_order)


def tokenizer_json(
    vocabulary: Mapping[bytes, int],
    merges: Sequence[tuple[bytes, bytes]],
    pattern: str,
    unmatched: Unmatched,
    special_tokens: Mapping[str, int],
) -> bytes:
    """Return a tokenizer.json.

    Args:
        vocabulary: Token -> id.
        merges: In the order of their ranks.
        pattern: Of the pieces; a name of ``PATTERNS`` or a pattern; "" cuts nothing.
        unmatched: What becomes of text between matches.
        special_tokens: Name -> id.
    """
    text = PATTERNS.get(pattern, pattern)
    byte_level: dict[str, Any] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": text},
        "behavior": "Isolated" if unmatched == "keep" else "Removed",
        "invert": unmatched == "drop",
    }
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name, i in special_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}
        if text
        else byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {spelling(token): i for token, i in vocabulary.items()},
            "merges": [[spelling(left), spelling(right)] for left, right in merges],
        },
    }
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


_TO_CHARACTERS = dict(enumerate(CHARACTERS))
