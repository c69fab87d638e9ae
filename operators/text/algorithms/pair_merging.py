"""The heart of BPE training: count adjacent pairs, merge the most frequent one, correct the counts.

Words are rows of token ids with a weight. Counting, ties and the order of things are those of the
trainer in Hugging Face's ``tokenizers``, which bpeasy and SuperBPE share: every adjacent window
counts (``aaa`` holds the pair twice); of pairs with one count that with the smaller left id goes
first, then the smaller right id; a pair waits in a queue as an entry that knows the words it was
seen in, and an entry whose count is out of date goes back with the right one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from operators.base import Ragged
from operators.text.algorithms.compiled import compiled

Int = Any
"""In compiled functions: Python's integers and numpy's alike."""

_NO_LIMIT = 1 << 62
_NOTHING = -1


@dataclass(frozen=True, slots=True)
class Merge:
    """The pair at the head of the queue.

    Attributes:
        left: Id.
        right: Id.
        count: How often it stands in the words.
        entry: Its entry in the queue.
    """

    left: int
    right: int
    count: int
    entry: int


class PairMerger:
    """Words in which pairs are merged, and the queue of pairs.

    Words of up to some hundred ids: a merge goes through each word that holds the pair.

    Args:
        words: Token ids; not changed.
        weights: int64 [N], how often each word stands in the corpus.
        token_lengths: Token id -> bytes.
        length_limit: A pair that arises by merging is counted only when it is shorter than this;
            None counts all.
    """

    def __init__(
        self,
        words: Ragged,
        weights: np.ndarray,
        token_lengths: Sequence[int],
        length_limit: int | None = None,
    ) -> None:
        self._symbols = words.values.astype(np.int32)
        self._starts = words.offsets[:-1].astype(np.int64)
        self._lengths = words.lengths.astype(np.int64)
        self._weights = weights.astype(np.int64)
        self._token_lengths = np.array(token_lengths, np.int64)
        self._limit = _NO_LIMIT if length_limit is None else length_limit
        self._table = np.full(1 << 16, _NOTHING, np.int64)
        self._pairs = np.zeros((1 << 15, _PAIR_FIELDS), np.int64)
        self._num_pairs = np.zeros(1, np.int64)
        self._stamp = 1
        self._heap = np.zeros((1 << 10, 3), np.int64)
        self._heap_size = 0
        self._entry_starts = np.zeros(1 << 10, np.int64)
        self._entry_words = np.zeros(1 << 12, np.int32)
        self._num_entries = 0
        self._add_entries(self._changed(_count_all, self._weights), queued=True)

    def pop(self) -> Merge | None:
        """Take the most frequent pair off the queue; None when it is empty."""
        found = _pop(self._heap, self._heap_size, self._table, self._pairs)
        count, key, entry, self._heap_size = found
        if entry == _NOTHING:
            return None
        return Merge(key >> 32, key & 0xFFFFFFFF, count, entry)

    def merge(self, left: int, right: int, new: int, entry: int, *, queued: bool = True) -> None:
        """Put ``new`` for a pair in the words of an entry, and add entries for pairs that gained.

        Args:
            left: Id.
            right: Id.
            new: Id of the result; it may be one that is there already.
            entry: Where to look.
            queued: Put the new entries into the queue; else they wait in ``waiting_entry``.
        """
        if new >= len(self._token_lengths):
            more = np.zeros(max(1 << 10, len(self._token_lengths)), np.int64)
            self._token_lengths = np.concatenate([self._token_lengths, more])
        lengths = self._token_lengths
        lengths[new] = lengths[left] + lengths[right]
        words = self._entry_words[self._entry_starts[entry] : self._entry_starts[entry + 1]]
        args = (lengths, words, left, right, new, self._limit)
        self._add_entries(self._changed(_merge_words, self._weights, *args), queued=queued)

    def drain(self) -> None:
        """Take everything off the queue, so that pairs can be merged by name."""
        self._heap_size = 0

    def waiting_entry(self, left: int, right: int) -> int | None:
        """Return the last entry of a pair and forget it; None when there is none."""
        entry = int(_forget(self._table, self._pairs, (left << 32) | right))
        return None if entry == _NOTHING else entry

    def queue_waiting(self) -> None:
        """Put the last entry of every pair that was not asked for into the queue."""
        pairs = self._pairs[: int(self._num_pairs[0])]
        pairs = pairs[pairs[:, _ENTRY] != _NOTHING]
        self._push(pairs[:, _QUEUED_COUNT], pairs[:, _KEY], pairs[:, _ENTRY])

    def words(self) -> Ragged:
        """Return the words as they are now."""
        offsets = np.concatenate(([0], np.cumsum(self._lengths)))
        index = np.repeat(self._starts - offsets[:-1], self._lengths) + np.arange(offsets[-1])
        return Ragged(self._symbols[index], offsets)

    def _changed(self, change: Any, *args: Any) -> tuple[np.ndarray, ...]:
        state = (self._symbols, self._starts, self._lengths)
        pairs = (self._table, self._pairs, self._num_pairs, self._stamp)
        out = change(*state, *pairs, *args)
        self._table, self._pairs, self._stamp = out[:3]
        gained: tuple[np.ndarray, ...] = out[3:]
        return gained

    def _add_entries(self, gained: tuple[np.ndarray, ...], *, queued: bool) -> None:
        pairs, starts, words = gained
        first, num = self._num_entries, len(pairs)
        used = int(self._entry_starts[first])
        self._entry_starts = _grown(self._entry_starts, first + num + 1)
        self._entry_words = _grown(self._entry_words, used + len(words))
        self._entry_starts[first : first + num + 1] = used + starts
        self._entry_words[used : used + len(words)] = words
        self._num_entries += num
        entries = np.arange(first, first + num)
        counts, keys = self._pairs[pairs, _COUNT], self._pairs[pairs, _KEY]
        self._pairs[pairs, _ENTRY] = entries
        self._pairs[pairs, _QUEUED_COUNT] = counts
        if queued:
            self._push(counts, keys, entries)

    def _push(self, counts: np.ndarray, keys: np.ndarray, entries: np.ndarray) -> None:
        self._heap = _grown(self._heap, self._heap_size + len(keys))
        self._heap_size = _push(self._heap, self._heap_size, counts, keys, entries)


def words_of(counts: Mapping[bytes, int], ids_of_bytes: np.ndarray) -> tuple[Ragged, np.ndarray]:
    """Return words as rows of the ids of their bytes, and their weights.

    Args:
        counts: Word -> how often it stands in the corpus.
        ids_of_bytes: int [256], the id of each byte.
    """
    values = ids_of_bytes[np.frombuffer(b"".join(counts), np.uint8)].astype(np.int32)
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return Ragged(values, offsets), np.fromiter(counts.values(), np.int64, len(counts))


# Fields of a pair. STAMP: the last word that gained it. GROUP and TURN: where it stands among the
# pairs that gained in one call, and in which call.
_KEY, _COUNT, _STAMP, _GROUP, _TURN, _ENTRY, _QUEUED_COUNT, _PAIR_FIELDS = range(8)


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    if size <= len(array):
        return array
    more = np.zeros((max(size, 2 * len(array)) - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, more])


@compiled
def _place(table: np.ndarray, pairs: np.ndarray, key: Int) -> Int:
    """Return where in the table a pair stands, or would."""
    mask = len(table) - 1
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    place = np.int64((mixed >> np.uint64(29)) & np.uint64(mask))
    while table[place] != _NOTHING and pairs[table[place], _KEY] != key:
        place = (place + 1) & mask
    return place


@compiled
def _pair_of(table: np.ndarray, pairs: np.ndarray, num_pairs: np.ndarray, key: Int) -> Int:
    """Return the number of a pair, a new one if need be; there must be room."""
    place = _place(table, pairs, key)
    pair = table[place]
    if pair == _NOTHING:
        pair = num_pairs[0]
        num_pairs[0] += 1
        table[place] = pair
        pairs[pair, _KEY] = key
        pairs[pair, _ENTRY] = _NOTHING
    return pair


@compiled
def _with_room(
    table: np.ndarray, pairs: np.ndarray, num_pairs: np.ndarray, more: Int
) -> tuple[np.ndarray, np.ndarray]:
    need = num_pairs[0] + more
    if need > len(pairs):
        grown = np.zeros((max(need, 2 * len(pairs)), _PAIR_FIELDS), np.int64)
        grown[: num_pairs[0]] = pairs[: num_pairs[0]]
        pairs = grown
    if 2 * need > len(table):
        size = len(table)
        while 2 * need > size:
            size *= 2
        table = np.full(size, _NOTHING, np.int64)
        for pair in range(num_pairs[0]):
            table[_place(table, pairs, pairs[pair, _KEY])] = pair
    return table, pairs


@compiled
def _with_log_room(log: np.ndarray, need: Int) -> np.ndarray:
    if need <= len(log):
        return log
    grown = np.empty((max(need, 2 * len(log)), 2), np.int64)
    grown[: len(log)] = log
    return grown


@compiled
def _gain(
    pairs: np.ndarray, pair: Int, weight: Int, stamp: Int, log: np.ndarray, size: Int, word: Int
) -> Int:
    """Count a pair in a word, and note the word once; return the size of the log."""
    pairs[pair, _COUNT] += weight
    if pairs[pair, _STAMP] != stamp:
        pairs[pair, _STAMP] = stamp
        log[size, 0], log[size, 1] = pair, word
        size += 1
    return size


@compiled
def _grouped(
    pairs: np.ndarray, log: np.ndarray, turn: Int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of a log that count, and for each the words that gained it."""
    members = np.zeros(len(log), np.int64)
    group_pair = np.zeros(len(log), np.int64)
    num = 0
    for i in range(len(log)):
        pair = log[i, 0]
        if pairs[pair, _COUNT] <= 0:
            continue
        if pairs[pair, _TURN] != turn:
            pairs[pair, _TURN] = turn
            pairs[pair, _GROUP] = num
            group_pair[num] = pair
            num += 1
        members[pairs[pair, _GROUP]] += 1
    starts = np.zeros(num + 1, np.int64)
    for group in range(num):
        starts[group + 1] = starts[group] + members[group]
    fill = starts[:-1].copy()
    words = np.zeros(starts[-1], np.int32)
    for i in range(len(log)):
        pair = log[i, 0]
        if pairs[pair, _COUNT] > 0:
            group = pairs[pair, _GROUP]
            words[fill[group]] = log[i, 1]
            fill[group] += 1
    return group_pair[:num], starts, words


@compiled
def _count_all(
    symbols: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    table: np.ndarray,
    pairs: np.ndarray,
    num_pairs: np.ndarray,
    stamp: Int,
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, Int, np.ndarray, np.ndarray, np.ndarray]:
    log, size = np.empty((1 << 12, 2), np.int64), 0
    turn = stamp
    for word in range(len(starts)):
        stamp += 1
        table, pairs = _with_room(table, pairs, num_pairs, lengths[word])
        log = _with_log_room(log, size + lengths[word])
        for at in range(starts[word], starts[word] + lengths[word] - 1):
            key = (np.int64(symbols[at]) << 32) | symbols[at + 1]
            pair = _pair_of(table, pairs, num_pairs, key)
            size = _gain(pairs, pair, weights[word], stamp, log, size, word)
    gained = _grouped(pairs, log[:size], turn)
    return table, pairs, stamp + 1, gained[0], gained[1], gained[2]


@compiled
def _merge_words(
    symbols: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    table: np.ndarray,
    pairs: np.ndarray,
    num_pairs: np.ndarray,
    stamp: Int,
    weights: np.ndarray,
    token_lengths: np.ndarray,
    words: np.ndarray,
    left: Int,
    right: Int,
    new: Int,
    limit: Int,
) -> tuple[np.ndarray, np.ndarray, Int, np.ndarray, np.ndarray, np.ndarray]:
    log, size = np.empty((1 << 10, 2), np.int64), 0
    turn = stamp
    new_length = token_lengths[new]
    for word in words:
        stamp += 1
        weight = weights[word]
        start, stop = starts[word], starts[word] + lengths[word]
        table, pairs = _with_room(table, pairs, num_pairs, 2 * lengths[word])
        log = _with_log_room(log, size + 2 * lengths[word])
        read = write = start
        while read < stop:
            symbols[write] = symbols[read]
            read += 1
            write += 1
            if read == stop or symbols[write - 1] != left or symbols[read] != right:
                continue
            read += 1
            symbols[write - 1] = new
            if write - 1 > start:
                before = symbols[write - 2]
                pair = _pair_of(table, pairs, num_pairs, (np.int64(before) << 32) | left)
                pairs[pair, _COUNT] -= weight
                if token_lengths[before] + new_length < limit:
                    pair = _pair_of(table, pairs, num_pairs, (np.int64(before) << 32) | new)
                    size = _gain(pairs, pair, weight, stamp, log, size, word)
            if read < stop:
                after = symbols[read]
                pair = _pair_of(table, pairs, num_pairs, (np.int64(right) << 32) | after)
                pairs[pair, _COUNT] -= weight
                if token_lengths[after] + new_length < limit:
                    pair = _pair_of(table, pairs, num_pairs, (np.int64(new) << 32) | after)
                    size = _gain(pairs, pair, weight, stamp, log, size, word)
        lengths[word] = write - start
    gained = _grouped(pairs, log[:size], turn)
    return table, pairs, stamp + 1, gained[0], gained[1], gained[2]


@compiled
def _forget(table: np.ndarray, pairs: np.ndarray, key: Int) -> Int:
    pair = table[_place(table, pairs, key)]
    if pair == _NOTHING:
        return _NOTHING
    entry = pairs[pair, _ENTRY]
    pairs[pair, _ENTRY] = _NOTHING
    return entry


@compiled
def _goes_first(heap: np.ndarray, a: Int, b: Int) -> Any:
    # Counts are compared without a sign: one that fell below zero, as the trainers' counts can
    # where a spelling arises twice, is the greatest.
    first, second = np.uint64(heap[a, 0]), np.uint64(heap[b, 0])
    if first != second:
        return first > second
    if heap[a, 1] != heap[b, 1]:
        return heap[a, 1] < heap[b, 1]
    return heap[a, 2] < heap[b, 2]


@compiled
def _swap(heap: np.ndarray, a: Int, b: Int) -> None:
    for field in range(3):
        heap[a, field], heap[b, field] = heap[b, field], heap[a, field]


@compiled
def _push(
    heap: np.ndarray, size: Int, counts: np.ndarray, keys: np.ndarray, entries: np.ndarray
) -> Int:
    for i in range(len(keys)):
        heap[size, 0], heap[size, 1], heap[size, 2] = counts[i], keys[i], entries[i]
        at = size
        size += 1
        while at and _goes_first(heap, at, (at - 1) // 2):
            _swap(heap, at, (at - 1) // 2)
            at = (at - 1) // 2
    return size


@compiled
def _sink(heap: np.ndarray, size: Int) -> None:
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            return
        if child + 1 < size and _goes_first(heap, child + 1, child):
            child += 1
        if not _goes_first(heap, child, at):
            return
        _swap(heap, child, at)
        at = child


@compiled
def _pop(
    heap: np.ndarray, size: Int, table: np.ndarray, pairs: np.ndarray
) -> tuple[Int, Int, Int, Int]:
    """Return count, key and entry of the first, and the heap's size; entry -1 when it is empty."""
    while size:
        count, key, entry = heap[0, 0], heap[0, 1], heap[0, 2]
        now = pairs[table[_place(table, pairs, key)], _COUNT]
        if now == count:
            size -= 1
            heap[0] = heap[size]
            _sink(heap, size)
            return count, key, entry, size
        heap[0, 0] = now
        _sink(heap, size)
    return 0, 0, _NOTHING, 0
