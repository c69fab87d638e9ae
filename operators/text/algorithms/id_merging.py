"""Merge pairs of ids in the order in which they were learnt."""

from typing import Any

import numpy as np

from operators.base import Ragged
from operators.text.algorithms.compiled import compiled

Int = Any
"""In compiled functions: Python's integers and numpy's alike."""

_NO_MERGE = 1 << 62


class IdMerger:
    """Merges of an alphabet of ids.

    Args:
        merges: int64 [M, 2], pairs of ids, each of the alphabet or of an earlier merge; merge i
            gives the id ``alphabet + i``.
        alphabet: How many ids there are before.
    """

    def __init__(self, merges: np.ndarray, alphabet: int) -> None:
        self._alphabet = alphabet
        keys = (merges[:, 0] << 32) | merges[:, 1]
        self._turns = np.argsort(keys, kind="stable")
        self._keys = keys[self._turns]
        lengths = np.ones(alphabet + len(merges), np.int64)
        _fill_lengths(lengths, merges, alphabet)
        self._bounds = np.concatenate(([0], np.cumsum(lengths)))
        self._spelled = np.zeros(int(self._bounds[-1]), np.int64)
        _spell(self._spelled, self._bounds, merges, alphabet)

    def merge(self, rows: Ragged) -> Ragged:
        """Return rows of ids of the alphabet with all pairs merged, int64."""
        values, lengths = _merge_rows(
            rows.values.astype(np.int64), rows.offsets, self._keys, self._turns, self._alphabet
        )
        return Ragged(values, np.concatenate(([0], np.cumsum(lengths))))

    def take_apart(self, rows: Ragged) -> Ragged:
        """Return rows of ids of the alphabet, int64, that ``merge`` made these of."""
        ids = rows.values.astype(np.int64)
        lengths = np.diff(self._bounds)[ids]
        ends = np.concatenate(([0], np.cumsum(lengths)))
        source = np.repeat(self._bounds[ids] - ends[:-1], lengths) + np.arange(ends[-1])
        return Ragged(self._spelled[source], ends[rows.offsets])


@compiled
def _fill_lengths(lengths: np.ndarray, merges: np.ndarray, alphabet: Int) -> None:
    for i in range(len(merges)):
        lengths[alphabet + i] = lengths[merges[i, 0]] + lengths[merges[i, 1]]


@compiled
def _spell(spelled: np.ndarray, bounds: np.ndarray, merges: np.ndarray, alphabet: Int) -> None:
    for i in range(alphabet):
        spelled[i] = i
    for i in range(len(merges)):
        at = bounds[alphabet + i]
        for half in range(2):
            part = merges[i, half]
            for source in range(bounds[part], bounds[part + 1]):
                spelled[at] = spelled[source]
                at += 1


@compiled
def _turn(keys: np.ndarray, turns: np.ndarray, left: Int, right: Int) -> Int:
    """Return which merge a pair is; one that is no merge comes after all."""
    key = (left << 32) | right
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) >> 1
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    if low < len(keys) and keys[low] == key:
        return turns[low]
    return _NO_MERGE


@compiled
def _merge_rows(
    values: np.ndarray, offsets: np.ndarray, keys: np.ndarray, turns: np.ndarray, alphabet: Int
) -> tuple[np.ndarray, np.ndarray]:
    out = np.empty(len(values), np.int64)
    lengths = np.zeros(len(offsets) - 1, np.int64)
    longest = 0
    for row in range(len(lengths)):
        longest = max(longest, offsets[row + 1] - offsets[row])
    ids = np.empty(longest + 1, np.int64)
    waiting = np.empty(longest + 1, np.int64)  # which merge an id and the next one are
    written = 0
    for row in range(len(lengths)):
        size = offsets[row + 1] - offsets[row]
        for i in range(size):
            ids[i] = values[offsets[row] + i]
        for i in range(size - 1):
            waiting[i] = _turn(keys, turns, ids[i], ids[i + 1])
        while True:
            first = _NO_MERGE
            for i in range(size - 1):
                first = min(first, waiting[i])
            if first == _NO_MERGE:
                break
            new = alphabet + first
            read = write = 0
            while read < size:
                is_pair = read + 1 < size and waiting[read] == first
                ids[write] = new if is_pair else ids[read]
                waiting[write] = waiting[read]
                read += 2 if is_pair else 1
                write += 1
            size = write
            for i in range(size - 1):
                if ids[i] == new or ids[i + 1] == new:
                    waiting[i] = _turn(keys, turns, ids[i], ids[i + 1])
        for i in range(size):
            out[written + i] = ids[i]
        written += size
        lengths[row] = size
    return out[:written], lengths
