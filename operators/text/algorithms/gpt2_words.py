r"""Cut text into words as GPT-2's pattern does, over bytes.

The pattern is ``'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+``;
every character is part of a match.
"""

import sys
import unicodedata
from functools import cache

import numpy as np

from operators.extras import import_extra
from operators.text.algorithms.compiled import compiled

_OTHER, _LETTER, _NUMBER, _SPACE = 0, 1, 2, 3
_PATTERNS = ((_LETTER, r"\p{L}+"), (_NUMBER, r"\p{N}+"), (_SPACE, r"\s+"))
_SURROGATES = range(0xD800, 0xE000)


@cache
def character_classes() -> np.ndarray:
    """Return uint8 [1,114,112]: the class of every code point for the library ``tokenizers``.

    Packages know characters up to different versions of Unicode; the library is asked about all
    letters and numbers that are younger than version 3.2.
    """
    regex = import_extra("regex", extra="text")
    classes = np.zeros(sys.maxunicode + 1, np.uint8)
    for first, last in ((0, _SURROGATES.start), (_SURROGATES.stop, len(classes))):
        text = "".join(map(chr, range(first, last)))
        for kind, pattern in _PATTERNS:
            for match in regex.finditer(pattern, text):
                classes[first + match.start() : first + match.end()] = kind
    category = unicodedata.ucd_3_2_0.category
    known = np.flatnonzero((classes == _LETTER) | (classes == _NUMBER))
    younger = np.array([code for code in known.tolist() if category(chr(code)) == "Cn"])
    classes[younger] = _OTHER
    for kind, like in ((_LETTER, "a"), (_NUMBER, "1")):
        classes[younger[_joins(like, younger)]] = kind
    return classes


def _joins(like: str, codes: np.ndarray) -> np.ndarray:
    """Return bool: which characters the library leaves together with one that is before them."""
    library = import_extra("tokenizers", extra="text")
    cutter = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    spans = cutter.pre_tokenize_str("".join(f"{like}{chr(code)}\n" for code in codes.tolist()))
    is_start = np.zeros(3 * len(codes), bool)
    is_start[[begin for _, (begin, _) in spans]] = True
    joins: np.ndarray = ~is_start[1::3]
    return joins


def gpt2_cuts(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return int64 [W + 1], where the words of all documents begin, and where the last one ends.

    Args:
        values: uint8, valid UTF-8 of all documents.
        offsets: int64 [N + 1], where the documents begin.
    """
    cuts = np.empty(len(values) + 1, np.int64)
    num_words = _cut(values, offsets, character_classes(), cuts)
    cuts[num_words] = len(values)
    return cuts[: num_words + 1].copy()


@compiled
def _cut(values: np.ndarray, offsets: np.ndarray, classes: np.ndarray, cuts: np.ndarray) -> int:
    num_words = 0
    for document in range(len(offsets) - 1):
        at = offsets[document]
        stop = offsets[document + 1]
        while at < stop:
            cuts[num_words] = at
            num_words += 1
            if values[at] == 0x27:  # apostrophe
                width = _contraction(values, at, stop)
                if width:
                    at += width
                    continue
            begin = at
            kind, end = _character(values, at, classes)
            if values[at] == 0x20 and end < stop:
                next_kind, next_end = _character(values, end, classes)
                if next_kind != _SPACE:
                    kind, begin, end = next_kind, end, next_end
            last = begin  # the last character of the run
            while end < stop:
                next_kind, next_end = _character(values, end, classes)
                if next_kind != kind:
                    break
                last, end = end, next_end
            # Of spaces before a word the last one stays for it.
            at = last if kind == _SPACE and end < stop and last > at else end
    return num_words


@compiled
def _character(values: np.ndarray, at: int, classes: np.ndarray) -> tuple[int, int]:
    """Return the class of the character at a place, and where the next one begins."""
    first = np.int64(values[at])
    if first < 0x80:
        return classes[first], at + 1
    if first < 0xE0:
        return classes[(first & 0x1F) << 6 | (values[at + 1] & 0x3F)], at + 2
    second = np.int64(values[at + 1] & 0x3F)
    third = np.int64(values[at + 2] & 0x3F)
    if first < 0xF0:
        return classes[(first & 0x0F) << 12 | second << 6 | third], at + 3
    fourth = np.int64(values[at + 3] & 0x3F)
    return classes[(first & 0x07) << 18 | second << 12 | third << 6 | fourth], at + 4


@compiled
def _contraction(values: np.ndarray, at: int, stop: int) -> int:
    """Return the bytes of a contraction that begins with this apostrophe, 0 for none."""
    if at + 1 >= stop:
        return 0
    first = values[at + 1]
    if first in (0x73, 0x74, 0x6D, 0x64):  # s t m d
        return 2
    if at + 2 >= stop:
        return 0
    second = values[at + 2]
    if (first in (0x72, 0x76) and second == 0x65) or (first == 0x6C and second == 0x6C):
        return 3  # re ve ll
    return 0
