"""The characters of UTF-8 bytes, and what Unicode says of them, as arrays."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from operators.base import Ragged
from operators.errors import SetupError

NUM_CODE_POINTS = 0x110000

SLAB_BYTES = 1 << 17
"""Text looked at at a time, at least: what is made of it on the way stays in the cache."""

_FIRST_OF = {2: 0x1F, 3: 0x0F, 4: 0x07}
"""Bits of the code point in the first byte, by the number of bytes."""


@dataclass(frozen=True, slots=True)
class Slab:
    """The characters of some lines.

    Attributes:
        code_points: uint32 [C].
        starts: int64 [C], where each begins in the bytes of all documents.
        is_first: bool [C], a document begins with it, or a line that begins the slab.
        stop: Where the last character ends.
    """

    code_points: np.ndarray
    starts: np.ndarray
    is_first: np.ndarray
    stop: int


def slabs(documents: Ragged) -> Iterator[Slab]:
    """Yield all characters, some lines at a time: cut before documents and after line feeds.

    Args:
        documents: Valid UTF-8, uint8.
    """
    values, offsets = documents.values, documents.offsets
    cuts = np.union1d(np.flatnonzero(values == 0x0A) + 1, offsets)
    start = 0
    while start < len(values):
        end = int(np.searchsorted(cuts, start + SLAB_BYTES))
        stop = int(cuts[min(end, len(cuts) - 1)])
        code_points, starts = decode_utf8(values[start:stop])
        is_first = np.zeros(len(starts), bool)
        first, last = np.searchsorted(offsets, (start, stop))
        is_first[np.searchsorted(starts, offsets[first:last] - start)] = True
        is_first[0] = True
        yield Slab(code_points, starts + start, is_first, stop)
        start = stop


def decode_utf8(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return code points uint32 [C] of valid UTF-8, and where each begins, int64 [C].

    Args:
        values: uint8 [M], whole characters.
    """
    starts = np.flatnonzero((values & 0xC0) != 0x80)
    first = values[starts]
    code_points = first.astype(np.uint32)
    if len(starts) == len(values):
        return code_points, starts
    for num_bytes, low, high in ((2, 0xC0, 0xE0), (3, 0xE0, 0xF0), (4, 0xF0, 0xF8)):
        at = np.flatnonzero((first >= low) & (first < high))
        found = code_points[at] & _FIRST_OF[num_bytes]
        begin = starts[at]
        for i in range(1, num_bytes):
            found = found << 6 | (values[begin + i] & 0x3F)
        code_points[at] = found
    return code_points, starts


def bit_table(patterns: Mapping[int, str]) -> np.ndarray:
    """Return uint32 [1,114,112]: for every code point the bits whose patterns it matches.

    Args:
        patterns: Bit -> pattern of one character, of the package ``regex``, which knows the
            properties of the Unicode standard.
    """
    library = unicode_library()
    table = np.zeros(NUM_CODE_POINTS, np.uint32)
    # Without the surrogates, which are no characters.
    spans = ((0, 0xD800), (0xE000, NUM_CODE_POINTS))
    for start, stop in spans:
        text = "".join(map(chr, range(start, stop)))
        for bit, pattern in patterns.items():
            for match in library.finditer(f"(?:{pattern})+", text):
                table[start + match.start() : start + match.end()] |= np.uint32(bit)
    return table


def unicode_library() -> Any:
    """Return the package ``regex``.

    Raises:
        SetupError: it is not installed.
    """
    try:
        import regex
    except ImportError:
        raise SetupError(
            "the package regex, which knows the properties of characters, is not installed",
            hint="pip install 'tokenmill[text]'",
        ) from None
    return regex
