"""Difficult strings: where two tokenizer libraries differ, they differ on some of these."""

import random
from collections.abc import Sequence
from functools import cache

import pyarrow as pa

# Where letters, marks, digits and symbols of many scripts stand, read one by one ...
_DENSE = ((0x00, 0x3100), (0xA490, 0xABFF), (0xD7B0, 0xD800), (0xFB00, 0x10000))
_DENSER = ((0x1AB0, 0x1B00), (0x1DC0, 0x1E00), (0x1E2C0, 0x1E300), (0x1E4D0, 0x1E600))
# ... and where a hundred neighbours are alike, or nothing is assigned: every 8th to 2,048th.
_SPARSE = ((0x3100, 0xA490, 64), (0xAC00, 0xD7B0, 64), (0xE000, 0xFB00, 64))
_PLANES = ((0x10000, 0x20000, 8), (0x20000, 0x110000, 2048))

_WORDS = """
    the World MiXeD naïve straße İstanbul \u0149 \u017f 日本語 한국어 مرحبا हिन्दी ไทย שלום Ελληνικά
    🌾 👩\u200d👩\u200d👧 e\u0301 \u1100\u1161 \ufb01 's 'S 'll 'RE \u2019s ' '' 1 12 1234567 ٣ ² ½
    Ⅷ ! ... < = :// <0x0A> ▁ Ġ \u0301 \u0345 \ufffd \x00 \x7f \u200b \ufeff
"""
_BLANKS = (" ", "  ", " the", "\n", "\r\n", "\t", "\x0b", "\x85", "\xa0", "\u2028", "\u3000")
_PIECES = (*_WORDS.split(), *_BLANKS)
_RUNS = ("a", " ", "\n", "\t", "1", "!", "ab", "é", "日", " a", "e\u0301", "'s", "<", "=")


@cache
def _fixed_texts() -> tuple[str, ...]:
    points: list[int] = []
    for start, stop in (*_DENSE, *_DENSER):
        points += range(start, stop)
    for start, stop, step in (*_SPARSE, *_PLANES):
        points += range(start, stop, step)
    letters = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
    texts = ["", " ", *_PIECES]
    # Beside a letter, a digit, a blank and a mark: what class each character has shows.
    beside = [f"a{c}1 {c}\u0301" for c in letters]
    texts += ["".join(beside[start : start + 64]) for start in range(0, len(beside), 64)]
    rng = random.Random(0)
    texts += ["".join(rng.choices(_PIECES, k=rng.randrange(1, 30))) for _ in range(800)]
    for run in _RUNS:
        texts += [run * length for length in (2, 3, 7, 100, 1_000)]
        # Two that share thousands of bytes and part inside the run: matches that a library keeps
        # from the one must not serve the other.
        texts += ["the mill " * 600 + run * 300 + end for end in ("x", " ", "\n", "")]
    return tuple(texts)


def probe_texts(tokens: Sequence[str]) -> pa.Array:
    """Return the strings, some of them with tokens of the tokenizer, as large_string.

    Args:
        tokens: Names of added tokens.
    """
    around = [f"a{token}b {token}\n{token}{token}\u0338 {token[:-1]}" for token in tokens[:200]]
    return pa.array([*_fixed_texts(), *around], pa.large_string())
