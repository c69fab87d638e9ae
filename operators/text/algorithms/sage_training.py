"""Drop the tokens of a vocabulary whose loss the contexts bear best (SaGe).

A token is left out of a line's greedy segmentation at one place; the pairs of neighbours that come
and go are counted; and by token vectors these pairs are more or less likely.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from operators.errors import ContractError
from operators.text.algorithms.byte_segments import longest_prefixes
from operators.text.algorithms.compiled import compiled
from operators.text.algorithms.trie import build_trie, longest_match
from operators.text.training import Progress

PAD = 2
"""How many tokens to either side are a token's context."""

BYTE_LOSS = 1e6
"""What single bytes are kept by."""

_ID_BITS = 21
LINES_AT_ONCE = 10_000
"""Lines whose pairs are counted before they are summed: it bounds the memory."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of text.

    Attributes:
        values: uint8 [B].
        cuts: int64 [L + 1]; line i is ``values[cuts[i]:cuts[i + 1]]``.
    """

    values: np.ndarray
    cuts: np.ndarray


@dataclass(frozen=True, slots=True)
class Ablation:
    """What leaving out tokens changes.

    Attributes:
        triples: int64 [K, 3], token left out, token, its neighbour; in the order found.
        counts: int64 [K], how many more of these pairs there are without the token.
        sizes: int64 [S], how often a token gives way to that many.
        num_tokens: Of the lines.
        uses: int64 [V], occurrences of each token.
    """

    triples: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray
    num_tokens: int
    uses: np.ndarray


@dataclass(frozen=True, slots=True)
class Round:
    """One round of dropping tokens.

    Attributes:
        kept: The vocabulary after it, tokens that the lines do not use among them.
        active: Those of ``kept`` that the lines use, and the bytes: as many as was wanted.
        dropped: The others.
        target: How many active tokens were wanted.
    """

    kept: list[bytes]
    active: list[bytes]
    dropped: list[bytes]
    target: int


Embed = Callable[[int, np.ndarray, np.ndarray, int], np.ndarray]
"""Of a size of the schedule, all ids, where lines begin and the size of the vocabulary: vectors
[V, D]."""


def ablate(tokens: Sequence[bytes], lines: Lines, max_bytes: int) -> Ablation:
    """Leave out every token once at every place.

    Args:
        tokens: All single bytes among them; the id is the position, below 2**21.
        lines: The text.
        max_bytes: Of a token that segmentation takes.
    """
    trie = build_trie({token: i for i, token in enumerate(tokens)})
    longest = min(max_bytes, trie.longest)
    sizes, uses = np.zeros(longest + 2, np.int64), np.zeros(len(tokens), np.int64)
    keys, counts, num_tokens = _ablate(lines.values, lines.cuts, trie.nodes, longest, sizes, uses)
    mask = (1 << _ID_BITS) - 1
    triples = np.stack((keys >> 2 * _ID_BITS, keys >> _ID_BITS & mask, keys & mask), axis=1)
    return Ablation(triples, counts, sizes, num_tokens, uses)


def log_likelihoods(ablation: Ablation, vectors: np.ndarray) -> np.ndarray:
    """Return by how much pairs are likelier without each token, as logarithms.

    Args:
        ablation: The pairs.
        vectors: [V or more, D] of the tokens, as those that are there and as their neighbours.

    Returns:
        float64, one for every vector.
    """
    sums = np.zeros(len(vectors))
    for start in range(0, len(ablation.counts), LINES_AT_ONCE):
        part = slice(start, start + LINES_AT_ONCE)
        left_out, target, context = ablation.triples[part].T
        products = np.einsum("kd,kd->k", vectors[target], vectors[context])
        with np.errstate(over="ignore"):
            logs = -np.logaddexp(0.0, -products.astype(np.float64))
        np.add.at(sums, left_out, ablation.counts[part] * logs)
    return sums


def shrink(
    tokens: Sequence[bytes],
    lines: Lines,
    *,
    schedule: Sequence[int],
    embedding_sizes: Sequence[int],
    max_bytes: int,
    embed: Embed,
    moves_vectors: bool,
    progress: Progress,
) -> list[Round]:
    """Drop tokens until as many are in use as is wanted.

    Args:
        tokens: The vocabulary to begin with, all single bytes among it.
        lines: The text.
        schedule: Falling sizes: the first one's and those that rounds lead to.
        embedding_sizes: Sizes of the schedule at which the vectors are learnt anew; at the first
            they always are.
        max_bytes: Of a token that segmentation takes.
        embed: What learns vectors.
        moves_vectors: Whether vectors stay with their tokens where they are not learnt anew; the
            authors' code judges token ``i`` by the vector that token ``i`` had then.
        progress: Told how many tokens are dropped.

    Raises:
        ContractError: the lines use fewer tokens than are wanted in the end.
    """
    rounds: list[Round] = []
    kept = list(tokens)
    vectors = np.empty((0, 0))
    total = len(tokens) - schedule[-1]
    at = 0
    while at < len(schedule) - 1:
        size, target = schedule[at], schedule[at + 1]
        at += 1
        if size in embedding_sizes or not len(vectors):
            trie = build_trie({token: i for i, token in enumerate(kept)})
            found = longest_prefixes(lines.values, lines.cuts, trie, max_bytes, "uint32")
            vectors = embed(size, found.ids, found.firsts, len(kept))
        if len(kept) <= target:
            continue
        losses, is_active = _losses(kept, lines, max_bytes, vectors)
        num_active = int(is_active.sum())
        while num_active <= target and at < len(schedule) - 1:
            at += 1
            target = schedule[at]
        if num_active < target:
            raise ContractError(
                f"sage: the sample uses {num_active:,} tokens of the first vocabulary, but "
                f"{target:,} are wanted",
                hint="take a larger sample, a larger first vocabulary or a smaller last size",
            )
        ranked = np.flatnonzero(is_active)
        ranked = ranked[np.argsort(losses[ranked], kind="stable")]
        is_dropped = np.zeros(len(kept), bool)
        is_dropped[ranked[: num_active - target]] = True
        rounds.append(
            Round(
                [token for token, gone in zip(kept, is_dropped, strict=True) if not gone],
                [kept[i] for i in np.flatnonzero(is_active & ~is_dropped).tolist()],
                [kept[i] for i in ranked[: num_active - target].tolist()],
                target,
            )
        )
        kept = rounds[-1].kept
        if moves_vectors:
            vectors = vectors[~is_dropped]
        progress("drop tokens", len(tokens) - target, total)
    return rounds


def _losses(
    tokens: Sequence[bytes], lines: Lines, max_bytes: int, vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what each token is kept by, and whether it is in use or a byte."""
    sums = np.zeros(len(tokens))
    is_active = np.array([len(token) == 1 for token in tokens])
    for first in range(0, len(lines.cuts) - 1, LINES_AT_ONCE):
        part = Lines(lines.values, lines.cuts[first : first + LINES_AT_ONCE + 1])
        found = ablate(tokens, part, max_bytes)
        sums += log_likelihoods(found, vectors)[: len(tokens)]
        is_active |= found.uses > 0
    is_byte = np.array([len(token) == 1 for token in tokens])
    return np.where(is_byte, BYTE_LOSS, -sums), is_active


@compiled
def _ablate(
    values: np.ndarray,
    cuts: np.ndarray,
    nodes: np.ndarray,
    longest: int,
    sizes: np.ndarray,
    uses: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, int]:
    table = np.full(1 << 16, -1, np.int64)  # hash table of positions in ``keys``
    keys = np.empty(1 << 15, np.int64)
    counts = np.zeros(1 << 15, np.int64)
    num_keys = 0
    num_tokens = 0
    longest_line = 0
    for line in range(len(cuts) - 1):
        longest_line = max(longest_line, cuts[line + 1] - cuts[line])
    ids = np.empty(longest_line, np.int64)
    starts = np.empty(longest_line + 1, np.int64)
    token_at = np.empty(longest_line + 1, np.int64)  # which token begins at a byte, or -1
    changed = np.empty(longest_line + 2 * PAD, np.int64)
    for line in range(len(cuts) - 1):
        start, stop = cuts[line], cuts[line + 1]
        size = stop - start
        token_at[: size + 1] = -1
        num = 0
        at = 0
        while at < size:
            begin = start + at
            token, end = longest_match(nodes, values, begin, min(stop, begin + longest))
            ids[num], starts[num], token_at[at] = token, at, num
            uses[token] += 1
            num += 1
            at = end - start
        starts[num] = size
        num_tokens += num

        for place in range(num):
            width = starts[place + 1] - starts[place]
            if width == 1:
                continue
            num_left = min(PAD, place)
            for i in range(num_left):
                changed[i] = ids[place - num_left + i]
            # The longest shorter token, one more at least, and on to where a token began before.
            at = starts[place]
            begin = start + at
            token, end = longest_match(nodes, values, begin, min(stop, begin + width - 1))
            changed[num_left] = token
            num_changed = 1
            at = end - start
            while True:
                begin = start + at
                token, end = longest_match(nodes, values, begin, min(stop, begin + longest))
                changed[num_left + num_changed] = token
                num_changed += 1
                at = end - start
                if at >= size or token_at[at] >= 0:
                    break
            sizes[min(num_changed, len(sizes) - 1)] += 1
            beyond = num if at >= size else token_at[at]
            num_right = min(PAD, num - beyond)
            for i in range(num_right):
                changed[num_left + num_changed + i] = ids[beyond + i]

            table, keys, counts, num_keys = _add_pairs(
                changed[: num_left + num_changed + num_right],
                *(num_left, num_right, ids[place], 1, table, keys, counts, num_keys),
            )
            table, keys, counts, num_keys = _add_pairs(
                ids[place - num_left : beyond + num_right],
                *(num_left, num_right, ids[place], -1, table, keys, counts, num_keys),
            )
    return keys[:num_keys], counts[:num_keys], num_tokens


@compiled
def _add_pairs(
    tokens: np.ndarray,
    num_left: int,
    num_right: int,
    left_out: int,
    sign: int,
    table: np.ndarray,
    keys: np.ndarray,
    counts: np.ndarray,
    num_keys: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Count the pairs of neighbours of which one at least is between the contexts."""
    num = len(tokens)
    if num_keys + 2 * PAD * num > len(keys):
        more = 2 * len(keys) + 2 * PAD * num
        keys = np.concatenate((keys, np.empty(more, np.int64)))
        counts = np.concatenate((counts, np.zeros(more, np.int64)))
        size = len(table)
        while size < 2 * len(keys):
            size *= 2
        table = np.full(size, -1, np.int64)
        for i in range(num_keys):
            table[_place(table, keys, keys[i])] = i
    for i in range(num):
        is_inside = num_left <= i < num - num_right
        for j in range(max(0, i - PAD), min(num, i + PAD + 1)):
            if i == j or not (is_inside or num_left <= j < num - num_right):
                continue
            key = (left_out << 2 * _ID_BITS) | (tokens[i] << _ID_BITS) | tokens[j]
            place = _place(table, keys, key)
            if table[place] < 0:
                table[place] = num_keys
                keys[num_keys] = key
                num_keys += 1
            counts[table[place]] += sign
    return table, keys, counts, num_keys


@compiled
def _place(table: np.ndarray, keys: np.ndarray, key: int) -> int:
    mask = len(table) - 1
    mixed = (key ^ (key >> 29)) * 0x5851F42D4C957F2D
    place = (mixed ^ (mixed >> 32)) & mask
    while table[place] >= 0 and keys[table[place]] != key:
        place = (place + 1) & mask
    return place
