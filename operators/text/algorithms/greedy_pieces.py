"""Read bytes greedily: the longest piece of a vocabulary at every position."""

import numpy as np

from operators.text.algorithms.compiled import compiled
from operators.text.algorithms.trie import longest_match

_NONE = -1


@compiled
def read_greedily(
    text: np.ndarray,
    offsets: np.ndarray,
    nodes: np.ndarray,
    first_byte: int,
    unknown: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return pieces int32 [M] and offsets int64 [N + 1] of N rows of UTF-8.

    Args:
        text: uint8 [B].
        offsets: int64 [N + 1], where rows begin.
        nodes: Of a trie whose tokens are whole characters.
        first_byte: Number of byte 0, for unknown characters, where ``unknown`` is -1.
        unknown: Number of every unknown character, -1 for its bytes.
    """
    found = np.empty(len(text), np.int32)
    row_offsets = np.zeros(len(offsets), np.int64)
    num_found = 0
    for row in range(len(offsets) - 1):
        at, row_end = offsets[row], offsets[row + 1]
        while at < row_end:
            piece, end = longest_match(nodes, text, at, row_end)
            if piece != _NONE:
                found[num_found] = piece
                num_found += 1
                at = end
                continue
            end = at + 1
            while end < row_end and (text[end] & 0xC0) == 0x80:
                end += 1
            if unknown != _NONE:
                found[num_found] = unknown
                num_found += 1
            else:
                for i in range(at, end):
                    found[num_found] = first_byte + np.int64(text[i])
                    num_found += 1
            at = end
        row_offsets[row + 1] = num_found
    return found[:num_found], row_offsets
