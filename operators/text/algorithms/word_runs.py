"""Merge neighbouring words that are single tokens."""

from typing import Any

import numpy as np

from operators.text.algorithms.compiled import compiled

Int = Any
"""In compiled functions: Python's integers and numpy's alike."""

_NONE = -1
_LAST_RANK = 1 << 62


@compiled
def join_words(
    words: np.ndarray,
    offsets: np.ndarray,
    symbols: np.ndarray,
    when_whole: np.ndarray,
    ids: np.ndarray,
    id_offsets: np.ndarray,
    keys: np.ndarray,
    ranks: np.ndarray,
    symbol_ids: np.ndarray,
    is_rising: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of documents and where each document begins.

    Args:
        words: Numbers of the words of N documents.
        offsets: int64 [N + 1].
        symbols: Word -> its number among what is merged, or -1.
        when_whole: Word -> it may be merged by ranks between the first two numbers, and by those
            above the third.
        ids: Ids of the words, one after another.
        id_offsets: Where those of each word begin.
        keys: Pairs of symbols (left << 32 | right), rising.
        ranks: [pairs, 2]: when each pair is merged, and the symbol of the result.
        symbol_ids: Symbol -> id, of those that are the result of a merge.
        is_rising: A pair is not merged after one with a higher rank.
    """
    size = 0
    for word in words:
        size += id_offsets[word + 1] - id_offsets[word]
    out = np.empty(size, np.int64)
    out_offsets = np.zeros(len(offsets), np.int64)
    run = np.empty(len(words), np.int64)
    origins = np.empty(len(words), np.int64)  # the word that a symbol is, or _NONE
    size = 0
    for document in range(len(offsets) - 1):
        length = 0
        for at in range(offsets[document], offsets[document + 1]):
            word = words[at]
            if symbols[word] != _NONE:
                run[length], origins[length] = symbols[word], word
                length += 1
                continue
            length = _merge_run(run, origins, length, when_whole, keys, ranks, is_rising)
            size = _write_run(run, origins, length, symbol_ids, ids, id_offsets, out, size)
            length = 0
            for i in range(id_offsets[word], id_offsets[word + 1]):
                out[size] = ids[i]
                size += 1
        length = _merge_run(run, origins, length, when_whole, keys, ranks, is_rising)
        size = _write_run(run, origins, length, symbol_ids, ids, id_offsets, out, size)
        out_offsets[document + 1] = size
    return out[:size], out_offsets


@compiled
def _is_whole(word: Int, when_whole: np.ndarray, rank: Int) -> bool:
    """Say whether a word, or the result of a merge, is one token when it is a rank's turn."""
    if word == _NONE:
        return True
    since, until, again = when_whole[word]
    return bool(since < rank < until or again < rank)


@compiled
def _merge_run(
    run: np.ndarray,
    origins: np.ndarray,
    length: Int,
    when_whole: np.ndarray,
    keys: np.ndarray,
    ranks: np.ndarray,
    is_rising: bool,
) -> Int:
    """Merge a run until nothing is left to merge, and return its new length."""
    done = np.int64(_NONE)
    while length > 1:
        best = np.int64(_LAST_RANK)
        left = right = both = np.int64(_NONE)
        for at in range(length - 1):
            key = (run[at] << 32) | run[at + 1]
            place = np.searchsorted(keys, key)
            if place == len(keys) or keys[place] != key or not done < ranks[place, 0] < best:
                continue
            rank = ranks[place, 0]
            if _is_whole(origins[at], when_whole, rank) and _is_whole(
                origins[at + 1], when_whole, rank
            ):
                best, both = rank, ranks[place, 1]
                left, right = run[at], run[at + 1]
        if best == _LAST_RANK:
            break
        if is_rising:
            done = best
        read = write = 0
        while read < length:
            is_pair = (
                run[read] == left
                and read + 1 < length
                and run[read + 1] == right
                and _is_whole(origins[read], when_whole, best)
                and _is_whole(origins[read + 1], when_whole, best)
            )
            run[write] = both if is_pair else run[read]
            origins[write] = _NONE if is_pair else origins[read]
            write += 1
            read += 2 if is_pair else 1
        length = write
    return length


@compiled
def _write_run(
    run: np.ndarray,
    origins: np.ndarray,
    length: Int,
    symbol_ids: np.ndarray,
    ids: np.ndarray,
    id_offsets: np.ndarray,
    out: np.ndarray,
    size: Int,
) -> Int:
    """Write the ids of a run, and return the new size."""
    for at in range(length):
        word = origins[at]
        if word == _NONE:
            out[size] = symbol_ids[run[at]]
            size += 1
            continue
        for i in range(id_offsets[word], id_offsets[word + 1]):
            out[size] = ids[i]
            size += 1
    return size
