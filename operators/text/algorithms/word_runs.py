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
    ids: np.ndarray,
    id_offsets: np.ndarray,
    keys: np.ndarray,
    ranks: np.ndarray,
    symbol_ids: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of documents and where each document begins.

    Args:
        words: Numbers of the words of N documents.
        offsets: int64 [N + 1].
        symbols: Word -> its number among what is merged, or -1.
        ids: Ids of the words, one after another.
        id_offsets: Where those of each word begin.
        keys: Pairs of symbols (left << 32 | right), rising.
        ranks: [pairs, 2]: when each pair is merged, and the symbol of the result.
        symbol_ids: Symbol -> id.
    """
    size = 0
    for word in words:
        size += id_offsets[word + 1] - id_offsets[word]
    out = np.empty(size, np.int64)
    out_offsets = np.zeros(len(offsets), np.int64)
    run = np.empty(len(words), np.int64)
    size = 0
    for document in range(len(offsets) - 1):
        length = 0
        for at in range(offsets[document], offsets[document + 1]):
            word = words[at]
            if symbols[word] != _NONE:
                run[length] = symbols[word]
                length += 1
                continue
            size = _write_run(run, length, keys, ranks, symbol_ids, out, size)
            length = 0
            for i in range(id_offsets[word], id_offsets[word + 1]):
                out[size] = ids[i]
                size += 1
        size = _write_run(run, length, keys, ranks, symbol_ids, out, size)
        out_offsets[document + 1] = size
    return out[:size], out_offsets


@compiled
def _write_run(
    run: np.ndarray,
    length: Int,
    keys: np.ndarray,
    ranks: np.ndarray,
    symbol_ids: np.ndarray,
    out: np.ndarray,
    size: Int,
) -> Int:
    """Merge a run until nothing is left to merge, write its ids, and return the new size."""
    while length > 1:
        best = _LAST_RANK
        left = right = both = _NONE
        for at in range(length - 1):
            key = (run[at] << 32) | run[at + 1]
            place = np.searchsorted(keys, key)
            if place < len(keys) and keys[place] == key and ranks[place, 0] < best:
                best, both = ranks[place, 0], ranks[place, 1]
                left, right = run[at], run[at + 1]
        if best == _LAST_RANK:
            break
        read = write = 0
        while read < length:
            is_pair = run[read] == left and read + 1 < length and run[read + 1] == right
            run[write] = both if is_pair else run[read]
            write += 1
            read += 2 if is_pair else 1
        length = write
    for at in range(length):
        out[size] = symbol_ids[run[at]]
        size += 1
    return size
