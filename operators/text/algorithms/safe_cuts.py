"""Cut text where normalisers and word rules of a tokenizer.json surely treat both parts alone.

What a library does to a short chunk can then be remembered, instead of being done to every text.
Cuts are between a printable ASCII character and a space that follows it, or between a letter or
digit of ASCII and the white space, or the mark but an apostrophe, that follows: words end there by
the rules that are known here, and no character combines across.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from operators.text.algorithms.pretokens import PATTERNS

SPACE, ANY_SPACE = b" ", b" \t\n\r"
MARKS = bytes(byte for byte in range(0x21, 0x7F) if not chr(byte).isalnum() and byte != ord("'"))

_LOCAL_NORMALIZERS = {
    *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "BertNormalizer"),
    "Precompiled",
}
_SPLIT_AT_SPACES = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_LOCAL_PATTERNS = {PATTERNS[name] for name in ("gpt2", "gpt4", "gpt4o", "bpeasy", "superbpe_words")}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LOCAL_PATTERNS |= {_LLAMA3, _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")}


def where_to_cut(parts: Mapping[str, Any]) -> bytes:
    """Return the characters of ASCII before which text may be cut; b"" for none.

    Args:
        parts: A tokenizer.json.
    """
    if not all(map(_is_local, _members(parts["normalizer"], "normalizers"))):
        return b""
    cutters = [*_members(parts["pre_tokenizer"], "pretokenizers")]
    num_cutters = len(cutters)
    while cutters and cutters[0]["type"] in ("Digits", "Punctuation"):
        cutters.pop(0)  # they cut nothing at letters and spaces
    if not cutters:
        return b""
    first = cutters[0]
    if first["type"] == "Metaspace":
        return SPACE if first["split"] else b""
    is_pattern = (first["type"] == "ByteLevel" and first["use_regex"]) or _is_known_split(first)
    if not is_pattern and first["type"] not in _SPLIT_AT_SPACES:
        return b""
    # Those put a space before what does not begin with one.
    adds_space = any(c.get("add_prefix_space") or c["type"] == "Metaspace" for c in cutters)
    if adds_space:
        return SPACE
    return ANY_SPACE + MARKS if is_pattern and len(cutters) == num_cutters else ANY_SPACE


def cut_before(values: np.ndarray, offsets: np.ndarray, followers: bytes) -> np.ndarray:
    """Return int64 [C + 1], where the chunks of all documents begin, and where the last one ends.

    Args:
        values: uint8, valid UTF-8 of all documents.
        offsets: int64 [N + 1], where documents begin.
        followers: See ``where_to_cut``.
    """
    kinds = np.zeros(256, np.uint8)  # 1: before a space; 3: before all that is wanted
    kinds[0x21:0x7F] = 1
    kinds[[byte for byte in range(0x80) if chr(byte).isalnum()]] = 3
    wanted = np.zeros(256, np.uint8)
    wanted[list(followers)] = 2
    wanted[list(SPACE)] = 1
    is_cut = np.zeros(len(values) + 1, bool)
    if len(values):
        is_cut[1:-1] = (kinds[values[:-1]] & wanted[values[1:]]) != 0
    is_cut[offsets] = True
    return np.flatnonzero(is_cut)


def _members(part: Mapping[str, Any] | None, name: str) -> Iterator[Mapping[str, Any]]:
    if part is None:
        return
    if part["type"] == "Sequence":
        for member in part[name]:
            yield from _members(member, name)
    else:
        yield part


def _is_local(normalizer: Mapping[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        pattern = normalizer["pattern"]
        return bool(pattern == {"Regex": " {2,}"} and normalizer["content"] == " ")
    kind: str = normalizer["type"]
    return kind in _LOCAL_NORMALIZERS


def _is_known_split(cutter: Mapping[str, Any]) -> bool:
    if cutter["type"] != "Split" or cutter["pattern"].get("Regex") not in _LOCAL_PATTERNS:
        return False
    return (cutter["behavior"], cutter["invert"]) in (("Isolated", False), ("Removed", True))
