"""Read bytes greedily: the longest piece of a vocabulary at every position."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from operators.text.algorithms.compiled import compiled

_NONE = -1
_SPREAD = 0x9E3779B97F4A7C15 >> 1  # an odd constant that mixes the bits of small numbers


@dataclass(frozen=True, slots=True)
class Trie:
    """Pieces by their bytes, as a table of edges.

    Attributes:
        edges: int64 [E, 2], E a power of two: parent << 8 | byte, and the child; -1 where empty.
        pieces: int64 [S], the piece that ends at each state, -1 for none.
    """

    edges: np.ndarray
    pieces: np.ndarray


def build_trie(pieces: Sequence[bytes]) -> Trie:
    """Build the trie of pieces; of equal ones the last counts, an empty one never does.

    Args:
        pieces: The number of a piece is its position.
    """
    children: dict[int, int] = {}
    ends = [_NONE]
    for number, piece in enumerate(pieces):
        state = 0
        for byte in piece:
            edge = state << 8 | byte
            state = children.get(edge, _NONE)
            if state == _NONE:
                state = children[edge] = len(ends)
                ends.append(_NONE)
        if state:
            ends[state] = number
    size = 1 << max(4, (2 * len(children)).bit_length())
    table = np.full((size, 2), _NONE, np.int64)
    pairs = np.fromiter(children.items(), np.dtype((np.int64, 2)), len(children))
    _fill(table, pairs)
    return Trie(table, np.array(ends, np.int64))


@compiled
def _slot(edges: np.ndarray, edge: int) -> int:
    """Return where an edge stands in the table, or where it would."""
    mask = len(edges) - 1
    at = ((edge * _SPREAD) >> 20) & mask
    while edges[at, 0] not in (edge, _NONE):
        at = (at + 1) & mask
    return at


@compiled
def _fill(edges: np.ndarray, pairs: np.ndarray) -> None:
    for i in range(len(pairs)):
        at = _slot(edges, pairs[i, 0])
        edges[at, 0] = pairs[i, 0]
        edges[at, 1] = pairs[i, 1]


@compiled
def read_greedily(
    text: np.ndarray,
    offsets: np.ndarray,
    edges: np.ndarray,
    pieces: np.ndarray,
    first_byte: int,
    unknown: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return pieces int64 [M] and offsets int64 [N + 1] of N rows of UTF-8.

    Args:
        text: uint8 [B].
        offsets: int64 [N + 1], where rows begin.
        edges: Of a trie of whole characters.
        pieces: Of that trie.
        first_byte: Number of byte 0, for unknown characters, where ``unknown`` is -1.
        unknown: Number of every unknown character, -1 for its bytes.
    """
    found = np.empty(len(text), np.int64)
    row_offsets = np.zeros(len(offsets), np.int64)
    num_found = 0
    for row in range(len(offsets) - 1):
        at, row_end = offsets[row], offsets[row + 1]
        while at < row_end:
            state, end, piece = np.int64(0), at, np.int64(_NONE)
            for i in range(at, row_end):
                slot = _slot(edges, (state << 8) | np.int64(text[i]))
                if edges[slot, 0] == _NONE:
                    break
                state = edges[slot, 1]
                if pieces[state] != _NONE:
                    piece, end = pieces[state], i + 1
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
