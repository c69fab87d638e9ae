"""Boundaries of words: Unicode's own (UAX #29), and those of hierarchical transformers (HAT)."""

from collections.abc import Callable
from functools import cache

import numpy as np

from operators.base import Ragged
from operators.text.algorithms.characters import bit_table, slabs

_CR, _LF, _NEWLINE, _ZWJ, _WSEG_SPACE = (1 << i for i in range(5))
_EXTEND_FORMAT, _PICTOGRAPH, _REGIONAL, _KATAKANA, _HEBREW = (1 << i for i in range(5, 10))
_LETTER, _SINGLE_QUOTE, _DOUBLE_QUOTE, _MID_NUM_LET = (1 << i for i in range(10, 14))
_MID_LETTER, _MID_NUM, _NUMERIC, _EXTEND_NUM_LET = (1 << i for i in range(14, 18))
_PUNCTUATION, _LOWER, _UPPER, _WHITE_SPACE, _BLANK = (1 << i for i in range(18, 23))

_PATTERNS = {
    _CR: r"\r",
    _LF: r"\n",
    _NEWLINE: r"\p{WB=Newline}",
    _ZWJ: r"\p{WB=ZWJ}",
    _WSEG_SPACE: r"\p{WB=WSegSpace}",
    _EXTEND_FORMAT: r"[\p{WB=Extend}\p{WB=Format}]",
    _PICTOGRAPH: r"\p{ExtPict}",
    _REGIONAL: r"\p{WB=Regional_Indicator}",
    _KATAKANA: r"\p{WB=Katakana}",
    _HEBREW: r"\p{WB=Hebrew_Letter}",
    _LETTER: r"\p{WB=ALetter}",
    _SINGLE_QUOTE: r"\p{WB=Single_Quote}",
    _DOUBLE_QUOTE: r"\p{WB=Double_Quote}",
    _MID_NUM_LET: r"\p{WB=MidNumLet}",
    _MID_LETTER: r"\p{WB=MidLetter}",
    _MID_NUM: r"\p{WB=MidNum}",
    _NUMERIC: r"\p{WB=Numeric}",
    _EXTEND_NUM_LET: r"\p{WB=ExtendNumLet}",
    _PUNCTUATION: r"\p{P}",
    _LOWER: r"\p{Ll}",
    _UPPER: r"\p{Lu}",
    _WHITE_SPACE: r"\p{White_Space}",
    _BLANK: r" ",
}

_LINE_ENDS = _CR | _LF | _NEWLINE
_SKIPPED = _EXTEND_FORMAT | _ZWJ
_AH_LETTER = _LETTER | _HEBREW
_MID_NUM_LET_Q = _MID_NUM_LET | _SINGLE_QUOTE
_MID_WORD = _MID_LETTER | _MID_NUM_LET_Q
_MID_NUMBER = _MID_NUM | _MID_NUM_LET_Q
_WORD_LIKE = _AH_LETTER | _NUMERIC | _KATAKANA

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]

_SPACE_PIECE, _PUNCTUATION_PIECE, _WORD_PIECE, _WHITE_SPACE_PIECE = range(4)


def unicode_words(documents: Ragged) -> np.ndarray:
    """Return where the segments of UAX #29 begin, int64 [W] positions in ``documents.values``.

    Args:
        documents: Valid UTF-8, uint8.
    """
    return _boundaries(documents, _unicode_boundaries)


def hat_words(documents: Ragged) -> np.ndarray:
    """Return where the words of the HAT splitter begin, int64 [W] positions in the values.

    Args:
        documents: Valid UTF-8, uint8.
    """
    return _boundaries(documents, _hat_boundaries)


def cut_long(starts: np.ndarray, values: np.ndarray, limit: int) -> np.ndarray:
    """Return the starts with words of more than ``limit`` bytes cut, from the left.

    A piece ends at the last character boundary that gives it at most ``limit`` bytes; a character
    of more bytes than that is cut inside.

    Args:
        starts: int64 [W], rising.
        values: uint8 [M]; the last word ends with it.
        limit: Bytes, at least 1.
    """
    ends = np.append(starts[1:], len(values))
    found = [starts]
    at, ends = starts[ends - starts > limit], ends[ends - starts > limit]
    while len(at):  # the next cut of all words that are still too long
        cut = at + limit
        for _ in range(min(limit, 4)):
            inside = (values[cut] & 0xC0) == 0x80
            cut -= inside & (cut > at)
        cut[cut == at] += limit
        found.append(cut)
        is_long = ends - cut > limit
        at, ends = cut[is_long], ends[is_long]
    return np.sort(np.concatenate(found)) if len(found) > 1 else starts


@cache
def _table() -> np.ndarray:
    return bit_table(_PATTERNS)


def load_tables() -> None:
    """Make the tables of properties now, and not at the first call.

    Raises:
        SetupError: the package ``regex`` is missing.
    """
    _table()


def _boundaries(documents: Ragged, rule: Rule) -> np.ndarray:
    # A line feed ends words under both rules: what comes before it bears on nothing behind it.
    table = _table()
    found = [slab.starts[rule(table[slab.code_points], slab.is_first)] for slab in slabs(documents)]
    return np.concatenate([np.empty(0, np.int64), *found])


def _unicode_boundaries(bits: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """Return bool [C]: a segment begins with this character.

    Args:
        bits: uint32 [C], properties of the characters.
        is_first: bool [C], a text begins here.
    """
    before = _shifted(bits, is_first)
    after_end = is_first | _has(before, _LINE_ENDS)
    # WB4: marks belong to what stands before them, and the rules that follow do not see them.
    is_base = ~_has(bits, _SKIPPED) | after_end
    begins = _base_boundaries(bits, is_base, is_first)
    begins &= ~(_has(before, _ZWJ) & _has(bits, _PICTOGRAPH))  # WB3c
    begins &= ~(_has(before, _WSEG_SPACE) & _has(bits, _WSEG_SPACE))  # WB3d
    begins |= after_end | _has(bits, _LINE_ENDS)  # WB1, WB3a, WB3b
    begins &= is_first | ~(_has(before, _CR) & _has(bits, _LF))  # WB3
    return begins


def _base_boundaries(bits: np.ndarray, is_base: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """Return bool [C]: what WB5 to WB999 say, which look at characters without their marks."""
    at = np.flatnonzero(is_base)
    right, first = bits[at], is_first[at]
    left = _shifted(right, first)
    left_2 = _shifted(left, first)
    right_2 = np.append(right[1:], np.uint32(0))
    right_2[:-1][first[1:]] = 0
    letter_left, letter_right = _has(left, _AH_LETTER), _has(right, _AH_LETTER)
    number_left, number_right = _has(left, _NUMERIC), _has(right, _NUMERIC)
    hebrew_left = _has(left, _HEBREW)
    joined = (letter_left | number_left) & (letter_right | number_right)  # WB5, WB8 to WB10
    joined |= letter_left & _has(right, _MID_WORD) & _has(right_2, _AH_LETTER)  # WB6
    joined |= _has(left_2, _AH_LETTER) & _has(left, _MID_WORD) & letter_right  # WB7
    joined |= hebrew_left & _has(right, _SINGLE_QUOTE)  # WB7a
    joined |= hebrew_left & _has(right, _DOUBLE_QUOTE) & _has(right_2, _HEBREW)  # WB7b
    joined |= _has(left_2, _HEBREW) & _has(left, _DOUBLE_QUOTE) & _has(right, _HEBREW)  # WB7c
    joined |= _has(left_2, _NUMERIC) & _has(left, _MID_NUMBER) & number_right  # WB11
    joined |= number_left & _has(right, _MID_NUMBER) & _has(right_2, _NUMERIC)  # WB12
    joined |= _has(left, _KATAKANA) & _has(right, _KATAKANA)  # WB13
    extends_right = _has(right, _EXTEND_NUM_LET)
    joined |= _has(left, _WORD_LIKE | _EXTEND_NUM_LET) & extends_right  # WB13a
    joined |= _has(left, _EXTEND_NUM_LET) & _has(right, _WORD_LIKE)  # WB13b
    joined |= _second_of_flag(right, first)  # WB15, WB16
    begins = np.zeros(len(bits), bool)
    begins[at] = ~joined
    return begins


def _second_of_flag(right: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return bool: the second, fourth, ... regional indicator of a run."""
    is_regional = _has(right, _REGIONAL)
    if not is_regional.any():
        return is_regional
    place = np.arange(len(right))
    opens = is_regional & (first | ~np.append(False, is_regional[:-1]))
    opened_at = np.maximum.accumulate(np.where(opens, place, 0))
    is_second: np.ndarray = is_regional & ((place - opened_at) % 2 == 1)
    return is_second


def _hat_boundaries(bits: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """Return bool [C]: a word begins with this character."""
    before = _shifted(bits, is_first)
    begins = _unicode_boundaries(bits, is_first)
    begins |= _has(before, _PUNCTUATION)
    begins |= _has(before, _LOWER) & _has(bits, _UPPER)
    at = np.flatnonzero(begins)
    kinds = _piece_kinds(bits, at)
    last = np.append(np.uint8(_WHITE_SPACE_PIECE), kinds[:-1])
    last[is_first[at]] = _WHITE_SPACE_PIECE
    joins = (last == _SPACE_PIECE) & (kinds == _WORD_PIECE)
    joins |= (last != _WHITE_SPACE_PIECE) & (kinds == _PUNCTUATION_PIECE)
    begins[at[joins]] = False
    return begins


def _piece_kinds(bits: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return uint8 [W], what the pieces that begin at ``at`` are."""
    num_characters = np.diff(np.append(at, len(bits)))
    kinds = np.full(len(at), _WORD_PIECE, np.uint8)
    is_white = np.bitwise_and.reduceat(bits, at) & _WHITE_SPACE != 0
    kinds[is_white] = _WHITE_SPACE_PIECE
    first = bits[at]
    is_single = num_characters == 1
    kinds[is_single & _has(first, _BLANK)] = _SPACE_PIECE
    kinds[is_single & _has(first, _PUNCTUATION)] = _PUNCTUATION_PIECE
    return kinds


def _has(bits: np.ndarray, any_of: int) -> np.ndarray:
    found: np.ndarray = (bits & np.uint32(any_of)) != 0
    return found


def _shifted(bits: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """Return for each character the bits of the one before it in its text, or none."""
    before = np.append(np.uint32(0), bits[:-1])
    before[is_first] = 0
    return before
