"""Words in which pairs of tokens are merged and tokens are taken apart again, with exact counts.

A pair of two equal tokens counts as often as it can be merged: ``xxx`` holds ``x x`` once, ``xxxx``
twice. Of pairs with one count that goes first whose bytes come first, the left token's before the
right one's. BoundlessBPE and R-grams are trained on it.
"""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from operators.base import Ragged
from operators.text.algorithms.compiled import compiled

Int = Any
"""In compiled functions: Python's integers and numpy's alike."""

_NOTHING = -1
_NO_LINKS, _PAIRS, _EVERYTHING = -1, -2, -3


class CountedPairs:
    """Words as rows of token ids, and how often every token and every pair of neighbours stands.

    Args:
        words: Token ids; not changed.
        weights: int64 [N], how often each word stands in the corpus.
        tokens: Id -> bytes.
    """

    def __init__(self, words: Ragged, weights: np.ndarray, tokens: Sequence[bytes]) -> None:
        self.tokens = list(tokens)
        self._symbols = words.values.astype(np.int32)
        self._starts = words.offsets[:-1].astype(np.int64)
        self._lengths = words.lengths.astype(np.int64)
        self._weights = weights.astype(np.int64)
        self._table = np.full(1 << 16, _NOTHING, np.int64)
        self._pairs = np.zeros((1 << 15, _PAIR_FIELDS), np.int64)
        self._tokens = np.zeros((max(1 << 10, len(tokens)), _TOKEN_FIELDS), np.int64)
        self._tokens[:, _FIRST:] = _NOTHING
        self._links = np.zeros((1 << 12, 2), np.int64)
        self._sizes = np.zeros(_SIZES, np.int64)
        self._marks = np.zeros(len(self._starts), np.int64)
        self._heap: list[tuple[int, bytes, bytes, int, int]] = []
        self._change(np.arange(len(self._starts)), _NOTHING, _NOTHING, np.zeros(0, np.int32))

    def best(self) -> tuple[int, int, int] | None:
        """Return left id, right id and count of the most frequent pair; None when none is left."""
        heap = self._heap
        while heap:
            count, _, _, left, right = heap[0]
            now = self.count_of_pair(left, right)
            if now == -count:
                return left, right, now
            if now:
                heapq.heapreplace(heap, (now * -1, *heap[0][1:]))
            else:
                heapq.heappop(heap)
        return None

    def count_of_pair(self, left: int, right: int) -> int:
        """Return how often a pair can be merged."""
        return int(_count(self._table, self._pairs, (left << 32) | right))

    def count(self, token: int) -> int:
        """Return how often a token stands in the words."""
        return int(self._tokens[token, _NUM])

    def merge(self, left: int, right: int, token: int) -> bool:
        """Put ``token`` for a pair everywhere; say whether some word became this one token.

        Args:
            left: Id.
            right: Id.
            token: Id of both together; the next one in ``tokens`` when it is new.
        """
        if token == len(self.tokens):
            self.tokens.append(self.tokens[left] + self.tokens[right])
        key = (left << 32) | right
        words = _words_of_pair(self._table, self._pairs, self._links, self._marks, self._sizes, key)
        return self._change(words, left, right, np.array([token], np.int32))

    def split(self, token: int, parts: Sequence[int]) -> None:
        """Put ``parts`` for a token that a merge made; no word gets longer than it was at first."""
        words = _words_of_token(self._tokens, self._links, self._marks, self._sizes, token)
        self._change(words, token, _NOTHING, np.array(parts, np.int32))

    def _change(self, words: np.ndarray, left: int, right: int, put: np.ndarray) -> bool:
        if len(self.tokens) > len(self._tokens):
            more = np.zeros((len(self._tokens), _TOKEN_FIELDS), np.int64)
            more[:, _FIRST:] = _NOTHING
            self._tokens = np.concatenate([self._tokens, more])
        state = (self._symbols, self._starts, self._lengths, self._weights)
        counts = (self._table, self._pairs, self._tokens, self._links, self._sizes)
        out = _change_words(*state, *counts, words, left, right, put)
        self._table, self._pairs, self._links, gained, became_one = out
        tokens = self.tokens
        for key, count in gained.tolist():
            a, b = key >> 32, key & 0xFFFFFFFF
            heapq.heappush(self._heap, (-count, tokens[a], tokens[b], a, b))
        return bool(became_one)


# Fields of a pair: its first link to a word, the call that touched it last and its count before.
_KEY, _COUNT, _HEAD, _LAST_WORD, _TURN, _BEFORE, _PAIR_FIELDS = range(7)
# Fields of a token: how often it stands, its first link to a word, the word linked last.
_NUM, _FIRST, _LAST, _TOKEN_FIELDS = range(4)
# Numbers that change.
_NUM_PAIRS, _NUM_LINKS, _CALL, _SIZES = range(4)


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
def _count(table: np.ndarray, pairs: np.ndarray, key: Int) -> Int:
    pair = table[_place(table, pairs, key)]
    return pairs[pair, _COUNT] if pair != _NOTHING else 0


@compiled
def _words_of_pair(
    table: np.ndarray,
    pairs: np.ndarray,
    links: np.ndarray,
    marks: np.ndarray,
    sizes: np.ndarray,
    key: Int,
) -> np.ndarray:
    """Return the words that a pair is linked to, each once, and forget the links."""
    pair = table[_place(table, pairs, key)]
    if pair == _NOTHING:
        return np.zeros(0, np.int64)
    words = _linked(links, marks, sizes, pairs[pair, _HEAD])
    pairs[pair, _HEAD] = _NOTHING
    pairs[pair, _LAST_WORD] = _NOTHING
    return words


@compiled
def _words_of_token(
    tokens: np.ndarray, links: np.ndarray, marks: np.ndarray, sizes: np.ndarray, token: Int
) -> np.ndarray:
    words = _linked(links, marks, sizes, tokens[token, _FIRST])
    tokens[token, _FIRST] = _NOTHING
    tokens[token, _LAST] = _NOTHING
    return words


@compiled
def _linked(links: np.ndarray, marks: np.ndarray, sizes: np.ndarray, first: Int) -> np.ndarray:
    sizes[_CALL] += 1
    num, link = 0, first
    while link != _NOTHING:
        num += 1
        link = links[link, 1]
    words = np.empty(num, np.int64)
    num, link = 0, first
    while link != _NOTHING:
        word = links[link, 0]
        if marks[word] != sizes[_CALL]:
            marks[word] = sizes[_CALL]
            words[num] = word
            num += 1
        link = links[link, 1]
    return words[:num]


@compiled
def _with_room(
    table: np.ndarray, pairs: np.ndarray, links: np.ndarray, sizes: np.ndarray, more: Int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    need = sizes[_NUM_PAIRS] + more
    if need > len(pairs):
        grown = np.zeros((max(need, 2 * len(pairs)), _PAIR_FIELDS), np.int64)
        grown[: len(pairs)] = pairs
        pairs = grown
    if 2 * need > len(table):
        size = len(table)
        while 2 * need > size:
            size *= 2
        table = np.full(size, _NOTHING, np.int64)
        for pair in range(sizes[_NUM_PAIRS]):
            table[_place(table, pairs, pairs[pair, _KEY])] = pair
    need = sizes[_NUM_LINKS] + 2 * more
    if need > len(links):
        longer = np.zeros((max(need, 2 * len(links)), 2), np.int64)
        longer[: len(links)] = links
        links = longer
    return table, pairs, links


@compiled
def _count_word(
    symbols: np.ndarray,
    start: Int,
    length: Int,
    word: Int,
    weight: Int,
    table: np.ndarray,
    pairs: np.ndarray,
    tokens: np.ndarray,
    links: np.ndarray,
    sizes: np.ndarray,
    touched: np.ndarray,
    num_touched: Int,
    link: Int,
) -> Int:
    """Add a word's tokens and pairs to the counts, ``weight`` times.

    What holds the token ``link`` is linked to the word; everything is, or only all pairs, when
    ``link`` is ``_EVERYTHING`` or ``_PAIRS``.
    """
    skips = False  # the first of these two equal tokens belongs to the pair before
    for at in range(start, start + length):
        token = symbols[at]
        tokens[token, _NUM] += weight
        if ((link == token) | (link == _EVERYTHING)) and tokens[token, _LAST] != word:
            tokens[token, _LAST] = word
            links[sizes[_NUM_LINKS], 0] = word
            links[sizes[_NUM_LINKS], 1] = tokens[token, _FIRST]
            tokens[token, _FIRST] = sizes[_NUM_LINKS]
            sizes[_NUM_LINKS] += 1
        if at + 1 == start + length:
            break
        after = symbols[at + 1]
        skips = token == after and not skips
        if token == after and not skips:
            continue
        key = (np.int64(token) << 32) | after
        place = _place(table, pairs, key)
        pair = table[place]
        if pair == _NOTHING:
            pair = sizes[_NUM_PAIRS]
            sizes[_NUM_PAIRS] += 1
            table[place] = pair
            pairs[pair, _KEY] = key
            pairs[pair, _HEAD] = _NOTHING
            pairs[pair, _LAST_WORD] = _NOTHING
        if pairs[pair, _TURN] != sizes[_CALL]:
            pairs[pair, _TURN] = sizes[_CALL]
            pairs[pair, _BEFORE] = pairs[pair, _COUNT]
            touched[num_touched] = pair
            num_touched += 1
        pairs[pair, _COUNT] += weight
        is_linked = (link < 0) | (link == token) | (link == after)
        if is_linked and link != _NO_LINKS and pairs[pair, _LAST_WORD] != word:
            pairs[pair, _LAST_WORD] = word
            links[sizes[_NUM_LINKS], 0] = word
            links[sizes[_NUM_LINKS], 1] = pairs[pair, _HEAD]
            pairs[pair, _HEAD] = sizes[_NUM_LINKS]
            sizes[_NUM_LINKS] += 1
    return num_touched


@compiled
def _change_words(
    symbols: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    weights: np.ndarray,
    table: np.ndarray,
    pairs: np.ndarray,
    tokens: np.ndarray,
    links: np.ndarray,
    sizes: np.ndarray,
    words: np.ndarray,
    left: Int,
    right: Int,
    put: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
    """Put tokens for a pair, or for a token, and return the pairs that gained, and their counts.

    Without a ``left`` the words are new, and are counted only.
    """
    sizes[_CALL] += 1
    touched, num_touched = np.empty(1 << 10, np.int64), 0
    became_one = False
    link = _PAIRS
    if left != _NOTHING:
        link = _EVERYTHING if right == _NOTHING else put[0]
    for word in words:
        start, length, weight = starts[word], lengths[word], weights[word]
        more = length * max(1, len(put))
        table, pairs, links = _with_room(table, pairs, links, sizes, more + length)
        if num_touched + more + length > len(touched):
            longer = np.empty(2 * (num_touched + more + length), np.int64)
            longer[:num_touched] = touched[:num_touched]
            touched = longer
        if left != _NOTHING:
            num_touched = _count_word(
                symbols,
                start,
                length,
                word,
                -weight,
                table,
                pairs,
                tokens,
                links,
                sizes,
                touched,
                num_touched,
                _NO_LINKS,
            )
            old = symbols[start : start + length].copy()
            read, write = 0, start
            while read < length:
                is_pair = right != _NOTHING and read + 1 < length and old[read + 1] == right
                if old[read] == left and (right == _NOTHING or is_pair):
                    symbols[write : write + len(put)] = put
                    write += len(put)
                    read += 1 if right == _NOTHING else 2
                else:
                    symbols[write] = old[read]
                    write += 1
                    read += 1
            became_one |= write - start == 1 and length > 1
            lengths[word] = write - start
        num_touched = _count_word(
            symbols,
            start,
            lengths[word],
            word,
            weight,
            table,
            pairs,
            tokens,
            links,
            sizes,
            touched,
            num_touched,
            link,
        )
    gained = np.empty((num_touched, 2), np.int64)
    num = 0
    for i in range(num_touched):
        pair = touched[i]
        if pairs[pair, _COUNT] > pairs[pair, _BEFORE]:
            gained[num, 0], gained[num, 1] = pairs[pair, _KEY], pairs[pair, _COUNT]
            num += 1
    return table, pairs, links, gained[:num], became_one
