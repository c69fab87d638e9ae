"""Cut pieces of bytes into tokens of a vocabulary: as few as can be, or greedily.

Pieces are ``values[cuts[i]:cuts[i + 1]]``. Results are ids, one piece after another, and where each
piece's ids begin; a piece that cannot be spelled has none, and is reported.
"""

from dataclasses import dataclass

import numpy as np

from operators.text.algorithms.chacha import draw_below, seeded
from operators.text.algorithms.compiled import compiled
from operators.text.algorithms.trie import BASE, CHECK, ID, ROOT, Trie, longest_match

UNREACHED = np.int32(2**31 - 1)


@dataclass(frozen=True, slots=True)
class Segmented:
    """Tokens of P pieces.

    Attributes:
        ids: [M].
        firsts: int64 [P + 1]; piece i has ``ids[firsts[i]:firsts[i + 1]]``.
        stuck_at: int64 [P]; where in ``values`` no token leads on, -1 for a piece that is done.
    """

    ids: np.ndarray
    firsts: np.ndarray
    stuck_at: np.ndarray


def fewest_tokens(
    values: np.ndarray,
    cuts: np.ndarray,
    reversed_trie: Trie,
    widths: np.ndarray,
    dtype: str,
    seed: int | None,
) -> Segmented:
    """Cut every piece into as few tokens as can be.

    Among equally few, the last token is the longest, then the one before it, and so on; or, with a
    seed, each place's token is drawn from the ends of the shortest ways to it, by a generator that
    begins anew with every piece.

    Args:
        values: uint8 [B].
        cuts: int64 [P + 1], rising from 0 to B.
        reversed_trie: Tokens spelled backwards.
        widths: int32 [V], bytes of each token.
        dtype: Of the ids.
        seed: Of the draws, below 2**64; None for the longest.
    """
    ids = np.empty(len(values), dtype)
    firsts = np.zeros(len(cuts), np.int64)
    stuck_at = np.full(len(cuts) - 1, -1, np.int64)
    ring = 1
    while ring <= reversed_trie.longest:
        ring *= 2
    _fewest(
        *(values, cuts, reversed_trie.nodes, widths, ring),
        *(seed is not None, np.uint64(seed or 0), ids, firsts, stuck_at),
    )
    return Segmented(ids[: firsts[-1]], firsts, stuck_at)


def longest_prefixes(
    values: np.ndarray, cuts: np.ndarray, trie: Trie, max_width: int, dtype: str
) -> Segmented:
    """Cut every piece greedily: the longest token that comes next, of ``max_width`` at most.

    Args:
        values: uint8 [B].
        cuts: int64 [P + 1], rising from 0 to B.
        trie: The tokens.
        max_width: Bytes of the longest token that may be taken.
        dtype: Of the ids.
    """
    ids = np.empty(len(values), dtype)
    firsts = np.zeros(len(cuts), np.int64)
    stuck_at = np.full(len(cuts) - 1, -1, np.int64)
    _greedy(values, cuts, trie.nodes, max_width, ids, firsts, stuck_at)
    return Segmented(ids[: firsts[-1]], firsts, stuck_at)


@compiled
def shortest_ways(
    values: np.ndarray,
    start: int,
    size: int,
    nodes: np.ndarray,
    is_random: bool,
    rng: np.ndarray,
    count: np.ndarray,
    mask: int,
    last_id: np.ndarray,
) -> int:
    """Find the fewest tokens to every end of one piece; return the last end that is reached.

    Args:
        values: The piece is ``values[start:start + size]``.
        start: See ``values``.
        size: See ``values``.
        nodes: Of the reversed trie.
        is_random: Draw among equally few, instead of taking the longest last token.
        rng: Moved on by every draw.
        count: Receives the tokens of the best way to end ``e`` at ``e & mask``.
        mask: One less than a power of two that is above the longest token.
        last_id: Receives the last token of the best way to every end.
    """
    count[0] = 0
    reached = 0
    for end in range(1, size + 1):
        best = UNREACHED
        best_id = -1
        num_ties = 0
        node = ROOT
        at = end
        while at:
            at -= 1
            child = nodes[node, BASE] + values[start + at]
            if nodes[child, CHECK] != node:
                break
            node = child
            token = nodes[node, ID]
            if token < 0 or count[at & mask] == UNREACHED:
                continue
            found = count[at & mask] + 1
            if found < best:
                best = found
                best_id = token
                num_ties = 1
            elif found == best:
                num_ties += 1
                if not is_random or draw_below(rng, num_ties) == 0:
                    best_id = token
        count[end & mask] = best
        last_id[end] = best_id
        if best_id >= 0:
            reached = end
    return reached


@compiled
def _fewest(
    values: np.ndarray,
    cuts: np.ndarray,
    nodes: np.ndarray,
    widths: np.ndarray,
    ring: int,
    is_random: bool,
    seed: np.uint64,
    ids: np.ndarray,
    firsts: np.ndarray,
    stuck_at: np.ndarray,
) -> None:
    num_pieces = len(cuts) - 1
    longest_piece = 0
    for piece in range(num_pieces):
        longest_piece = max(longest_piece, cuts[piece + 1] - cuts[piece])
    last_id = np.empty(longest_piece + 1, np.int32)  # of the best way to each end
    count = np.empty(ring, np.int32)  # its tokens; the last ``ring`` ends are enough
    mask = ring - 1
    fresh = seeded(seed)
    rng = fresh.copy()
    num_ids = 0
    for piece in range(num_pieces):
        start = cuts[piece]
        size = cuts[piece + 1] - start
        if is_random:
            rng[:] = fresh
        reached = shortest_ways(values, start, size, nodes, is_random, rng, count, mask, last_id)
        if reached < size:
            stuck_at[piece] = start + reached
        elif size:
            num = count[size & mask]
            place = num_ids + num
            end = size
            while end:
                place -= 1
                ids[place] = last_id[end]
                end -= widths[last_id[end]]
            num_ids += num
        firsts[piece + 1] = num_ids


@compiled
def _greedy(
    values: np.ndarray,
    cuts: np.ndarray,
    nodes: np.ndarray,
    max_width: int,
    ids: np.ndarray,
    firsts: np.ndarray,
    stuck_at: np.ndarray,
) -> None:
    num_ids = 0
    for piece in range(len(cuts) - 1):
        first = num_ids
        at = cuts[piece]
        stop = cuts[piece + 1]
        while at < stop:
            token, end = longest_match(nodes, values, at, min(stop, at + max_width))
            if token < 0:
                stuck_at[piece] = at
                num_ids = first
                break
            ids[num_ids] = token
            num_ids += 1
            at = end
        firsts[piece + 1] = num_ids
