"""Learn a vocabulary for the fewest tokens, from the top down: drop what is missed the least."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from operators.base import Ragged
from operators.errors import ContractError
from operators.text.algorithms.bpe_training import learn_merges
from operators.text.algorithms.byte_segments import shortest_ways
from operators.text.algorithms.chacha import seeded
from operators.text.algorithms.compiled import compiled
from operators.text.algorithms.trie import BASE, CHECK, ID, ROOT, build_trie
from operators.text.text_column import utf8_bytes
from operators.text.training import Documents, Progress

NUM_BYTES = 256
MIN_COUNT = 2
"""Strings that occur once are no tokens to begin with."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Distinct pieces of text, in the order of their bytes.

    Attributes:
        values: uint8 [B].
        cuts: int64 [P + 1]; piece i is ``values[cuts[i]:cuts[i + 1]]``.
        weights: int64 [P], how often each occurs.
    """

    values: np.ndarray
    cuts: np.ndarray
    weights: np.ndarray


def count_pieces(
    documents: Documents, cuts_of: Callable[[Ragged], np.ndarray], progress: Progress
) -> Pieces:
    """Return the distinct pieces of all documents.

    Args:
        documents: The sample.
        cuts_of: Where the pieces of some documents begin, and where the last one ends.
        progress: Told the bytes that were read.

    Raises:
        ContractError: the documents are empty.
    """
    counts: Counter[bytes] = Counter()
    num_bytes = 0
    for texts in documents():
        rows = utf8_bytes(texts)
        buffers = [None, pa.py_buffer(cuts := cuts_of(rows)), pa.py_buffer(rows.values)]
        pieces = pa.Array.from_buffers(pa.large_binary(), len(cuts) - 1, buffers)
        found = pieces.value_counts()
        for piece, count in zip(
            found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True
        ):
            counts[piece] += count
        num_bytes += len(rows.values)
        progress("read documents, bytes", num_bytes, 0)
    counts.pop(b"", None)
    if not counts:
        raise ContractError(
            "pathpiece: the sample holds no text to learn from",
            hint="look at the source, its field of text and the share that is sampled",
        )
    keys = sorted(counts)
    joined = np.concatenate(([0], np.cumsum([len(key) for key in keys])))
    weights = np.array([counts[key] for key in keys], np.int64)
    return Pieces(np.frombuffer(b"".join(keys), np.uint8), joined, weights)


def frequent_strings(pieces: Pieces, size: int, max_bytes: int) -> list[bytes]:
    """Return the most frequent strings of 2 to ``max_bytes`` bytes inside pieces.

    Args:
        pieces: Where to look.
        size: How many at most; those that occur once are never among them. Of equally frequent
            ones those come first whose bytes do.
        max_bytes: The longest.
    """
    lengths = np.diff(pieces.cuts)
    stops = np.repeat(pieces.cuts[1:], lengths)
    weights = np.repeat(pieces.weights, lengths)
    # Places where a string of the current length begins, and which string it is; a string is its
    # rank among those one byte shorter, and its last byte.
    places = np.arange(len(pieces.values))
    ranks = pieces.values.astype(np.int64)
    found_counts: list[np.ndarray] = []
    found_places: list[np.ndarray] = []
    found_lengths: list[np.ndarray] = []
    for length in range(2, max_bytes + 1):
        fits = places + length <= stops[places]
        places, ranks = places[fits], ranks[fits]
        keys = ranks * NUM_BYTES + pieces.values[places + length - 1]
        _, first, ranks = np.unique(keys, return_index=True, return_inverse=True)
        counts = np.zeros(len(first), np.int64)
        np.add.at(counts, ranks, weights[places])
        is_frequent = counts >= MIN_COUNT
        found_counts.append(counts[is_frequent])
        found_places.append(places[first[is_frequent]])
        found_lengths.append(np.full(is_frequent.sum(), length))
        goes_on = is_frequent[ranks]  # what is rare is not part of anything frequent
        places, ranks = places[goes_on], ranks[goes_on]
    counts, starts, widths = map(np.concatenate, (found_counts, found_places, found_lengths))
    if len(counts) > size:
        last = np.partition(counts, len(counts) - size)[len(counts) - size]
        enough = counts >= last
        counts, starts, widths = counts[enough], starts[enough], widths[enough]
    strings = [
        pieces.values[start : start + width].tobytes()
        for start, width in zip(starts.tolist(), widths.tolist(), strict=True)
    ]
    order = sorted(range(len(strings)), key=lambda i: (-int(counts[i]), strings[i]))
    return [strings[i] for i in order[:size]]


def merged_strings(pieces: Pieces, size: int, max_bytes: int, progress: Progress) -> list[bytes]:
    """Return the tokens of a BPE of 2 to ``max_bytes`` bytes, in the order of their merges.

    Args:
        pieces: What it is trained on.
        size: How many at most; pairs that occur once are not merged.
        max_bytes: The longest.
        progress: Told how many tokens there are.
    """
    text, cuts = pieces.values.tobytes(), pieces.cuts.tolist()
    counts = {
        text[begin:end]: count
        for begin, end, count in zip(cuts, cuts[1:], pieces.weights.tolist(), strict=False)
    }
    learnt = learn_merges(
        counts,
        range(NUM_BYTES),
        NUM_BYTES + size,
        progress,
        min_count=MIN_COUNT,
        length_limit=max_bytes + 1,
    )
    return learnt.tokens[NUM_BYTES:]


def omissions(
    pieces: Pieces, tokens: Sequence[bytes], seed: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return what leaving out each token would cost, and how often each is used.

    The cost of one occurrence is exact: the fewest tokens of the piece in which this occurrence is
    cut otherwise, less the fewest. The sum is exact where a piece holds a token once.

    Args:
        pieces: The text.
        tokens: All single bytes among them; the id is the position.
        seed: Of the draws among equally few tokens; None takes the longest last token.

    Returns:
        costs: int64 [V], tokens more.
        counts: int64 [V], occurrences; their sum is the fewest tokens of the text.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    forwards, backwards = build_trie(ids), build_trie(ids, is_reversed=True)
    widths = np.array([len(token) for token in tokens], np.int32)
    costs = np.zeros(len(tokens), np.int64)
    counts = np.zeros(len(tokens), np.int64)
    _omissions(
        *(pieces.values, pieces.cuts, pieces.weights, forwards.nodes, backwards.nodes, widths),
        *(forwards.longest, seed is not None, np.uint64(seed or 0), costs, counts),
    )
    return costs, counts


def learn(
    pieces: Pieces,
    *,
    strings: list[bytes],
    size: int,
    drop_share: float,
    seed: int | None,
    progress: Progress,
) -> list[bytes]:
    """Return a vocabulary: the 256 bytes, then other tokens, the dearest first.

    Args:
        pieces: The text to learn from.
        strings: The tokens to begin with beside the bytes, each once.
        size: Tokens in the end.
        drop_share: Of the tokens, in one step.
        seed: See ``omissions``.
        progress: Told the tokens that were dropped.

    Raises:
        ContractError: there are fewer to begin with than are wanted.
    """
    single = [bytes([byte]) for byte in range(NUM_BYTES)]
    wanted = size - NUM_BYTES
    if len(strings) < wanted:
        raise ContractError(
            f"pathpiece: the sample gives {len(strings):,} tokens of two bytes or more to begin "
            f"with, but {wanted:,} are wanted beside the bytes",
            hint="take a larger sample, a larger initial_size or a smaller vocab_size",
        )
    num_initial = len(strings)
    while True:
        costs, counts = omissions(pieces, single + strings, seed)
        ranked = sorted(
            range(len(strings)),
            key=lambda i: (int(costs[NUM_BYTES + i]), int(counts[NUM_BYTES + i]), strings[i]),
            reverse=True,
        )
        num_dropped = min(len(strings) - wanted, max(1, int(drop_share * len(strings))))
        strings = [strings[i] for i in ranked[: len(strings) - num_dropped]]
        progress("drop tokens", num_initial - len(strings), num_initial - wanted)
        if not num_dropped or len(strings) == wanted:
            return single + strings


@compiled
def _omissions(
    values: np.ndarray,
    cuts: np.ndarray,
    weights: np.ndarray,
    forwards: np.ndarray,
    backwards: np.ndarray,
    widths: np.ndarray,
    longest: int,
    is_random: bool,
    seed: np.uint64,
    costs: np.ndarray,
    counts: np.ndarray,
) -> None:
    longest_piece = 0
    for piece in range(len(cuts) - 1):
        longest_piece = max(longest_piece, cuts[piece + 1] - cuts[piece])
    ring = 1
    while ring <= max(longest_piece, longest):
        ring *= 2
    last_id = np.empty(longest_piece + 1, np.int32)
    before = np.empty(ring, np.int32)  # fewest tokens up to each place
    behind = np.empty(longest_piece + 1, np.int32)  # fewest tokens from each place
    fresh = seeded(seed)
    rng = fresh.copy()
    for piece in range(len(cuts) - 1):
        start = cuts[piece]
        size = cuts[piece + 1] - start
        weight = weights[piece]
        rng[:] = fresh
        shortest_ways(values, start, size, backwards, is_random, rng, before, ring - 1, last_id)

        behind[size] = 0
        for at in range(size - 1, -1, -1):
            best = np.int32(size + 1)
            node = ROOT
            for end in range(at + 1, size + 1):
                child = forwards[node, BASE] + values[start + end - 1]
                if forwards[child, CHECK] != node:
                    break
                node = child
                if forwards[node, ID] >= 0:
                    best = min(best, behind[end] + np.int32(1))
            behind[at] = best

        stop = size
        while stop:
            token = last_id[stop]
            begin = stop - widths[token]
            counts[token] += weight
            if widths[token] > 1:
                # Any other way has a cut inside the token, or a token that reaches beyond it.
                best = np.int32(size + 1)
                for inside in range(begin + 1, stop):
                    best = min(best, before[inside] + behind[inside])
                for at in range(max(0, stop - longest), begin + 1):
                    node = ROOT
                    for end in range(at + 1, size + 1):
                        child = forwards[node, BASE] + values[start + end - 1]
                        if forwards[child, CHECK] != node:
                            break
                        node = child
                        is_other = at < begin or end > stop
                        if end >= stop and is_other and forwards[node, ID] >= 0:
                            best = min(best, before[at] + np.int32(1) + behind[end])
                costs[token] += weight * (best - before[size])
            stop = begin
