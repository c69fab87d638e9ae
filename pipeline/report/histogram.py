"""How often each id occurs: counted in bounded memory, however large the codebook."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

DENSE_SIZE = 1 << 26
"""Codebooks up to this size are counted in a table: 512 MiB for the largest."""

SPARSE_IDS = 1 << 24
"""Ids that are kept of a larger codebook, 16 bytes each."""

_SLAB = 1 << 18
"""Ids looked at at a time: what is made of them on the way stays in the cache."""

_PENDING = 1 << 22
"""Ids of a larger codebook that wait, at least, before they are sorted."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """The ids that occur, and how often.

    Attributes:
        ids: uint64 [D], different ids, rising.
        counts: int64 [D], at least 1 each.
        total: Ids counted, those that are not in ``ids`` among them.
        share: Which share of the different ids is in ``ids``: 1, or less when there were too many
            to keep. Which ones does not depend on how often they occur, so sums over ``ids``
            divided by ``share`` estimate sums over all.
    """

    ids: np.ndarray
    counts: np.ndarray
    total: int
    share: float = 1.0


class Counter(Protocol):
    """Counts ids. The result does not depend on the order in which they are added."""

    def add(self, ids: np.ndarray) -> None:
        """Count ids, unsigned [M], all below the codebook's size."""

    def histogram(self) -> Histogram:
        """Return what was counted so far."""
        ...


def make_counter(codebook_size: int, dense_size: int = DENSE_SIZE) -> Counter:
    """Return a counter for ids below ``codebook_size``.

    Args:
        codebook_size: Size of the codebook.
        dense_size: Count in a table up to this size.
    """
    return DenseCounter(codebook_size) if codebook_size <= dense_size else SparseCounter()


class DenseCounter:
    """Has a count for every id of the codebook."""

    def __init__(self, codebook_size: int) -> None:
        self._counts = np.zeros(codebook_size, np.int64)
        self._total = 0

    def add(self, ids: np.ndarray) -> None:
        """Count ids."""
        for start in range(0, len(ids), _SLAB):
            np.add.at(self._counts, ids[start : start + _SLAB].astype(np.intp), 1)
        self._total += len(ids)

    def histogram(self) -> Histogram:
        """Return the ids that occur."""
        used = np.flatnonzero(self._counts)
        return Histogram(used.astype(np.uint64), self._counts[used], self._total)


class SparseCounter:
    """Has a count for the ids that occur, as long as they are not too many.

    When they are, it keeps those whose hash begins with a zero bit, then with two, and so on. An
    id that is kept at the end was so from the beginning: its count is exact.

    Args:
        most: Ids to keep.
    """

    def __init__(self, most: int = SPARSE_IDS) -> None:
        self._most = most
        self._zeros = 0
        self._ids = np.empty(0, np.uint64)
        self._counts = np.empty(0, np.int64)
        self._pending: list[np.ndarray] = []
        self._num_pending = 0
        self._total = 0

    def add(self, ids: np.ndarray) -> None:
        """Count ids."""
        self._total += len(ids)
        for start in range(0, len(ids), _SLAB):
            slab = ids[start : start + _SLAB].astype(np.uint64)
            kept = slab[self._is_kept(slab)]
            self._pending.append(kept)
            self._num_pending += len(kept)
            # Sorting costs as much as what is there: it waits until that much has come.
            if self._num_pending >= max(_PENDING, len(self._ids)):
                self._merge()

    def histogram(self) -> Histogram:
        """Return the ids that were kept."""
        self._merge()
        return Histogram(self._ids, self._counts, self._total, 0.5**self._zeros)

    def _merge(self) -> None:
        found, counts = np.unique(
            np.concatenate([*self._pending, np.empty(0, np.uint64)]), return_counts=True
        )
        self._pending, self._num_pending = [], 0
        ids = np.concatenate([self._ids, found])
        order = np.argsort(ids, kind="stable")
        ids, counts = ids[order], np.concatenate([self._counts, counts])[order]
        starts = np.flatnonzero(np.diff(ids, prepend=ids[:1] + np.uint64(1)))
        self._ids = ids[starts]
        self._counts = np.add.reduceat(counts, starts) if len(starts) else counts
        while len(self._ids) > self._most:
            self._zeros += 1
            kept = self._is_kept(self._ids)
            self._ids, self._counts = self._ids[kept], self._counts[kept]

    def _is_kept(self, ids: np.ndarray) -> np.ndarray:
        if not self._zeros:
            return np.ones(len(ids), bool)
        kept: np.ndarray = _hash(ids) >> np.uint64(64 - self._zeros) == 0
        return kept


def _hash(ids: np.ndarray) -> np.ndarray:
    """Return uint64 that look random, different for different ids (the finalizer of splitmix64)."""
    mixed = ids + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: np.ndarray = mixed ^ (mixed >> np.uint64(31))
    return hashed
