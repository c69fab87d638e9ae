"""Cut words into tokens of one vocabulary, by the methods of "Greed is All You Need".

Words are ``values[cuts[i]:cuts[i + 1]]``, in UTF-8 or in bytes that each stand for a character.
What no token covers becomes unknown, is spelled in bytes, or is left out (see ``Vocabulary``).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from operators.text.algorithms.byte_segments import Segmented
from operators.text.algorithms.compiled import compiled
from operators.text.algorithms.splitmix import STEP, mixed, uniform
from operators.text.algorithms.trie import BASE, CHECK, ID, ROOT, build_trie, longest_match

STUCK = -1
DROP = -2
"""What ``unknown`` may be besides an id: give up the word, or leave the text out."""

UNKNOWN_PENALTY = 10.0
"""How much less likely than the least likely token an unknown character is, as a logarithm."""

_NO_RANK = -1
_GONE = np.int32(-2)
"""The token of a symbol that was merged into the one before it."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens that begin a word, tokens that go on in it, and what stands for all else.

    Attributes:
        firsts: Spelling -> id of the tokens at a word's beginning.
        rests: The same of those further on; the same object where it makes no difference.
        unknown: Id of an unknown character, or ``DROP`` or ``STUCK``.
        byte_ids: int32 [256], ids that spell an unknown character byte by byte; [0] for none.
        is_bytes: Whether every byte is a character; else text is UTF-8.
        dtype: Of the ids that are returned.
    """

    firsts: Mapping[bytes, int]
    rests: Mapping[bytes, int]
    unknown: int
    byte_ids: np.ndarray
    is_bytes: bool
    dtype: str


class Method(ABC):
    """One way to cut words into tokens."""

    _is_reversed = False

    def __init__(self, vocabulary: Vocabulary) -> None:
        firsts = build_trie(vocabulary.firsts, is_reversed=self._is_reversed)
        rests = firsts
        if vocabulary.rests is not vocabulary.firsts:
            rests = build_trie(vocabulary.rests, is_reversed=self._is_reversed)
        self._longest = max(firsts.longest, rests.longest)
        self._tries = firsts.nodes, rests.nodes
        self._unknown, self._byte_ids = vocabulary.unknown, vocabulary.byte_ids
        self._is_bytes = vocabulary.is_bytes
        self._dtype = vocabulary.dtype

    def __call__(self, values: np.ndarray, cuts: np.ndarray) -> Segmented:
        """Cut all words.

        Args:
            values: uint8 [B].
            cuts: int64 [W + 1], rising from 0 to B.
        """
        result = self._room(values, cuts)
        self._run(values, cuts, *result)
        return self._finished(*result)

    @abstractmethod
    def _run(self, values: np.ndarray, cuts: np.ndarray, *result: np.ndarray) -> None:
        """Fill ids, where those of each word begin, and where each word is stuck."""

    def _room(self, values: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, ...]:
        ids = np.empty(len(values), self._dtype)
        return ids, np.zeros(len(cuts), np.int64), np.full(len(cuts) - 1, -1, np.int64)

    def _finished(self, ids: np.ndarray, firsts: np.ndarray, stuck_at: np.ndarray) -> Segmented:
        return Segmented(ids[: firsts[-1]], firsts, stuck_at)


class LongestPrefix(Method):
    """The longest token that comes next, again and again.

    Args:
        vocabulary: The tokens.
        max_characters: As WordPiece: a word with an unknown part, or of more characters, is one
            unknown token. None makes only what is unknown unknown.
    """

    def __init__(self, vocabulary: Vocabulary, max_characters: int | None) -> None:
        super().__init__(vocabulary)
        self._max_characters = -1 if max_characters is None else max_characters

    def _run(self, values: np.ndarray, cuts: np.ndarray, *result: np.ndarray) -> None:
        firsts, rests = self._tries
        _prefixes(
            values,
            cuts,
            firsts,
            rests,
            self._unknown,
            self._byte_ids,
            self._is_bytes,
            self._max_characters,
            *result,
        )


class LongestSuffix(Method):
    """The longest token that the rest of the word ends in, again and again."""

    _is_reversed = True

    def _run(self, values: np.ndarray, cuts: np.ndarray, *result: np.ndarray) -> None:
        firsts, rests = self._tries
        _suffixes(
            values, cuts, firsts, rests, self._unknown, self._byte_ids, self._is_bytes, *result
        )


class LongestToken(Method):
    """The longest token anywhere, the leftmost of equals, then the same in what is left."""

    def _run(self, values: np.ndarray, cuts: np.ndarray, *result: np.ndarray) -> None:
        firsts, rests = self._tries
        _longest(
            values,
            cuts,
            firsts,
            rests,
            self._longest,
            self._unknown,
            self._byte_ids,
            self._is_bytes,
            *result,
        )


class BestPath(Method):
    """The tokens with the greatest sum of scores; of equals the longest last token, and so on.

    Args:
        vocabulary: The tokens.
        scores: float64 [V].
        unknown_score: Of a character that is no token; neighbours become one unknown.
    """

    def __init__(self, vocabulary: Vocabulary, scores: np.ndarray, unknown_score: float) -> None:
        super().__init__(vocabulary)
        self._scores, self._unknown_score = scores, unknown_score

    def _run(self, values: np.ndarray, cuts: np.ndarray, *result: np.ndarray) -> None:
        firsts, rests = self._tries
        _best_paths(
            values,
            cuts,
            firsts,
            rests,
            self._unknown,
            self._byte_ids,
            self._is_bytes,
            self._scores,
            self._unknown_score,
            *result,
        )


class Merges(Method):
    """Characters, of which pairs are merged in the order of their ranks.

    Args:
        vocabulary: The tokens.
        merges: Ids of left, right and both, in the order of their ranks.
        whole_words: A word that is a token is not cut.
        fuses_unknown: Neighbouring unknown characters are one unknown token.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        merges: Sequence[tuple[int, int, int]],
        *,
        whole_words: bool,
        fuses_unknown: bool,
    ) -> None:
        super().__init__(vocabulary)
        rows = np.array(merges, np.int64).reshape(-1, 3)
        self._merged = rows[:, 2].astype(np.int32)
        self._table = _pair_table(rows[:, 0] << 32 | rows[:, 1])
        self._options = whole_words, fuses_unknown

    def _run(self, values: np.ndarray, cuts: np.ndarray, *result: np.ndarray) -> None:
        seeds = np.zeros(len(cuts) - 1, np.uint64)
        firsts, merging = self._tries[0], (self._merged, self._table, *self._options)
        _merge(
            values,
            cuts,
            firsts,
            *merging,
            0.0,
            seeds,
            self._unknown,
            self._byte_ids,
            self._is_bytes,
            *result,
        )

    def with_dropout(
        self, values: np.ndarray, cuts: np.ndarray, dropout: float, seeds: np.ndarray
    ) -> Segmented:
        """Cut all words, passing over merges at random.

        Args:
            values: uint8 [B].
            cuts: int64 [W + 1].
            dropout: How often a merge is passed over when it is its turn.
            seeds: uint64 [W], of the draws for each word.
        """
        result = self._room(values, cuts)
        firsts, merging = self._tries[0], (self._merged, self._table, *self._options)
        _merge(
            values,
            cuts,
            firsts,
            *merging,
            dropout,
            seeds,
            self._unknown,
            self._byte_ids,
            self._is_bytes,
            *result,
        )
        return self._finished(*result)


@compiled
def word_seeds(document_seeds: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Return uint64 [W]: a seed for every word, of its document's seed and its place there.

    Args:
        document_seeds: uint64 [N].
        firsts: int64 [N + 1], which word begins each document.
    """
    seeds = np.empty(firsts[-1], np.uint64)
    for document in range(len(document_seeds)):
        state = document_seeds[document]
        for word in range(firsts[document], firsts[document + 1]):
            state += STEP
            seeds[word] = mixed(state)
    return seeds


@compiled
def _next(values: np.ndarray, at: int, is_bytes: bool) -> int:
    """Return where the next character begins."""
    first = values[at]
    if is_bytes or first < 0x80:
        return at + 1
    if first < 0xE0:
        return at + 2
    return at + 3 if first < 0xF0 else at + 4


@compiled
def _previous(values: np.ndarray, end: int, is_bytes: bool) -> int:
    """Return where the character that ends here begins."""
    at = end - 1
    while not is_bytes and values[at] & 0xC0 == 0x80:
        at -= 1
    return at


@compiled
def _unmatched(
    values: np.ndarray,
    at: int,
    end: int,
    unknown: int,
    byte_ids: np.ndarray,
    ids: np.ndarray,
    num_ids: int,
) -> int:
    """Write what stands for one character; return how many ids there are then, -1 for stuck."""
    if len(byte_ids):
        for i in range(at, end):
            ids[num_ids + i - at] = byte_ids[values[i]]
        return num_ids + end - at
    if unknown >= 0:
        ids[num_ids] = unknown
        return num_ids + 1
    return num_ids if unknown == DROP else -1


@compiled
def _prefixes(
    values: np.ndarray,
    cuts: np.ndarray,
    firsts: np.ndarray,
    rests: np.ndarray,
    unknown: int,
    byte_ids: np.ndarray,
    is_bytes: bool,
    max_characters: int,
    ids: np.ndarray,
    word_firsts: np.ndarray,
    stuck_at: np.ndarray,
) -> None:
    num_ids = 0
    for word in range(len(cuts) - 1):
        first, start, stop = num_ids, cuts[word], cuts[word + 1]
        is_unknown = False
        if max_characters >= 0 and stop - start > max_characters:
            num_characters = 0
            at = start
            while at < stop:
                at = _next(values, at, is_bytes)
                num_characters += 1
            is_unknown = num_characters > max_characters
        at = start
        while at < stop and not is_unknown:
            token, end = longest_match(firsts if at == start else rests, values, at, stop)
            if token >= 0:
                ids[num_ids] = token
                num_ids += 1
                at = end
            elif max_characters >= 0:
                is_unknown = True
            else:
                end = _next(values, at, is_bytes)
                num = _unmatched(values, at, end, unknown, byte_ids, ids, num_ids)
                if num < 0:
                    stuck_at[word] = at
                    num_ids = first
                    break
                num_ids = num
                at = end
        if is_unknown:
            num_ids = first
            if unknown < 0:
                stuck_at[word] = at
            else:
                ids[num_ids] = unknown
                num_ids += 1
        word_firsts[word + 1] = num_ids


@compiled
def _suffixes(
    values: np.ndarray,
    cuts: np.ndarray,
    firsts: np.ndarray,
    rests: np.ndarray,
    unknown: int,
    byte_ids: np.ndarray,
    is_bytes: bool,
    ids: np.ndarray,
    word_firsts: np.ndarray,
    stuck_at: np.ndarray,
) -> None:
    num_ids = 0
    for word in range(len(cuts) - 1):
        first, start, end = num_ids, cuts[word], cuts[word + 1]
        while end > start:
            token, begin = _match_back(firsts, values, start, end)
            if begin > start:  # not the whole of what is left
                token, begin = _match_back(rests, values, start + 1, end)
            if token >= 0:
                ids[num_ids] = token
                num_ids += 1
                end = begin
                continue
            if unknown == DROP:
                break
            begin = _previous(values, end, is_bytes)
            num = _unmatched(values, begin, end, unknown, byte_ids, ids, num_ids)
            if num < 0:
                stuck_at[word] = begin
                num_ids = first
                break
            ids[num_ids:num] = ids[num_ids:num][::-1].copy()
            num_ids = num
            end = begin
        ids[first:num_ids] = ids[first:num_ids][::-1].copy()
        word_firsts[word + 1] = num_ids


@compiled
def _match_back(nodes: np.ndarray, values: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """Return the longest token in ``[start, end)`` that ends at ``end``, and where it begins."""
    node = ROOT
    token = -1
    begin = end
    for i in range(end - 1, start - 1, -1):
        child = nodes[node, BASE] + values[i]
        if nodes[child, CHECK] != node:
            break
        node = child
        if nodes[node, ID] >= 0:
            token = nodes[node, ID]
            begin = i
    return token, begin


@compiled
def _longest(
    values: np.ndarray,
    cuts: np.ndarray,
    firsts: np.ndarray,
    rests: np.ndarray,
    longest_bytes: int,
    unknown: int,
    byte_ids: np.ndarray,
    is_bytes: bool,
    ids: np.ndarray,
    word_firsts: np.ndarray,
    stuck_at: np.ndarray,
) -> None:
    longest_word = 0
    for word in range(len(cuts) - 1):
        longest_word = max(longest_word, cuts[word + 1] - cuts[word])
    # For every place of a word: the longest token there, its end and its characters (0 for none).
    # A token that is taken has its characters negated, and places inside it have -1.
    tokens = np.empty(longest_word, np.int32)
    ends = np.empty(longest_word, np.int64)
    sizes = np.empty(longest_word, np.int64)
    rank = np.empty(longest_word + 1, np.int64)  # characters before each place
    num_ids = 0
    for word in range(len(cuts) - 1):
        first, start, stop = num_ids, cuts[word], cuts[word + 1]
        size = stop - start
        num_characters = 0
        for i in range(size):
            if i and (is_bytes or values[start + i] & 0xC0 != 0x80):
                num_characters += 1
            rank[i] = num_characters
        rank[size] = num_characters + 1

        largest = 0
        for i in range(size):
            if not is_bytes and values[start + i] & 0xC0 == 0x80:
                sizes[i] = -1
                continue
            token, end = longest_match(firsts if i == 0 else rests, values, start + i, stop)
            tokens[i], ends[i] = token, end - start
            sizes[i] = rank[ends[i]] - rank[i]
            largest = max(largest, sizes[i])
        for wanted in range(largest, 0, -1):
            for i in range(size):
                if sizes[i] != wanted:
                    continue
                for inside in range(i + 1, ends[i]):
                    sizes[inside] = -1
                sizes[i] = -wanted - 1
                for before in range(i - 1, max(0, i - longest_bytes) - 1, -1):
                    if sizes[before] < -1:
                        break
                    if sizes[before] > 0 and ends[before] > i:
                        nodes = firsts if before == 0 else rests
                        token, end = longest_match(nodes, values, start + before, start + i)
                        tokens[before], ends[before] = token, end - start
                        sizes[before] = rank[ends[before]] - rank[before]

        i = 0
        while i < size:
            if sizes[i] < -1:
                ids[num_ids] = tokens[i]
                num_ids += 1
                i = ends[i]
                continue
            end = _next(values, start + i, is_bytes)
            num = _unmatched(values, start + i, end, unknown, byte_ids, ids, num_ids)
            if num < 0:
                stuck_at[word] = start + i
                num_ids = first
                break
            num_ids = num
            i = end - start
        word_firsts[word + 1] = num_ids


@compiled
def _best_paths(
    values: np.ndarray,
    cuts: np.ndarray,
    firsts: np.ndarray,
    rests: np.ndarray,
    unknown: int,
    byte_ids: np.ndarray,
    is_bytes: bool,
    scores: np.ndarray,
    unknown_score: float,
    ids: np.ndarray,
    word_firsts: np.ndarray,
    stuck_at: np.ndarray,
) -> None:
    longest_word = 0
    for word in range(len(cuts) - 1):
        longest_word = max(longest_word, cuts[word + 1] - cuts[word])
    # Of the best way to each place: its score, its last token (-1 for an unknown character) and
    # where that begins (-1 where no way leads).
    best = np.empty(longest_word + 1, np.float64)
    last = np.empty(longest_word + 1, np.int32)
    begins = np.empty(longest_word + 1, np.int64)
    num_ids = 0
    for word in range(len(cuts) - 1):
        first, start, stop = num_ids, cuts[word], cuts[word + 1]
        size = stop - start
        begins[: size + 1] = -1
        best[0] = 0.0
        at = 0
        while at < size:
            after = _next(values, start + at, is_bytes) - start
            has_character = False
            node = ROOT
            nodes = rests if at else firsts
            for end in range(at + 1, size + 1):
                child = nodes[node, BASE] + values[start + end - 1]
                if nodes[child, CHECK] != node:
                    break
                node = child
                token = nodes[node, ID]
                if token < 0:
                    continue
                has_character = has_character or end == after
                score = scores[token] + best[at]
                if begins[end] < 0 or score > best[end]:
                    best[end], last[end], begins[end] = score, token, at
            if not has_character:
                score = unknown_score + best[at]
                if begins[after] < 0 or score > best[after]:
                    best[after], last[after], begins[after] = score, -1, at
            at = after

        end = size
        while end:
            begin = begins[end]
            if last[end] >= 0:
                ids[num_ids] = last[end]
                num_ids += 1
                end = begin
                continue
            if unknown < 0 and not len(byte_ids):
                stuck_at[word] = start + begin
                num_ids = first
                break
            while begin and last[begin] < 0:
                begin = begins[begin]
            num = _unmatched(values, start + begin, start + end, unknown, byte_ids, ids, num_ids)
            ids[num_ids:num] = ids[num_ids:num][::-1].copy()
            num_ids = num
            end = begin
        ids[first:num_ids] = ids[first:num_ids][::-1].copy()
        word_firsts[word + 1] = num_ids


@compiled
def _pair_table(keys: np.ndarray) -> np.ndarray:
    """Return int64 [S, 2], a hash table: key, and its last position in ``keys``, -1 for none."""
    size = 16
    while size < 2 * len(keys):
        size *= 2
    table = np.full((size, 2), -1, np.int64)
    for rank in range(len(keys)):
        place = _place(table, keys[rank])
        table[place, 0] = keys[rank]
        table[place, 1] = rank
    return table


@compiled
def _place(table: np.ndarray, key: np.int64) -> np.int64:
    mask = len(table) - 1
    place = np.int64(mixed(np.uint64(key)) >> np.uint64(1)) & mask
    while table[place, 0] != key and table[place, 0] != -1:
        place = (place + 1) & mask
    return place


@compiled
def _rank(table: np.ndarray, left: int, right: int) -> int:
    """Return the rank of a pair, -1 where it is not merged or one of both is no token."""
    if left < 0 or right < 0:
        return _NO_RANK
    place = _place(table, np.int64(left) << np.int64(32) | np.int64(right))
    rank: int = table[place, 1]
    return rank


@compiled
def _merge(
    values: np.ndarray,
    cuts: np.ndarray,
    nodes: np.ndarray,
    merged: np.ndarray,
    table: np.ndarray,
    whole_words: bool,
    fuses_unknown: bool,
    dropout: float,
    seeds: np.ndarray,
    unknown: int,
    byte_ids: np.ndarray,
    is_bytes: bool,
    ids: np.ndarray,
    word_firsts: np.ndarray,
    stuck_at: np.ndarray,
) -> None:
    longest_word = 0
    for word in range(len(cuts) - 1):
        longest_word = max(longest_word, cuts[word + 1] - cuts[word])
    # Symbols of a word are named by where they begin. ``heap`` holds rank << 32 | symbol.
    tokens = np.empty(longest_word + 1, np.int32)
    after = np.empty(longest_word + 1, np.int64)
    before = np.empty(longest_word + 1, np.int64)
    heap = np.empty(3 * longest_word + 3, np.int64)
    passed_over = np.empty(3 * longest_word + 3, np.int64)
    num_ids = 0
    for word in range(len(cuts) - 1):
        first, start, stop = num_ids, cuts[word], cuts[word + 1]
        size = stop - start
        token, end = longest_match(nodes, values, start, stop)
        if whole_words and token >= 0 and end == stop:
            ids[num_ids] = token
            num_ids += 1
            word_firsts[word + 1] = num_ids
            continue
        i = 0
        previous = -1
        while i < size:
            end = _next(values, start + i, is_bytes) - start
            token = _exactly(nodes, values, start + i, start + end)
            tokens[i] = token
            after[i], before[i] = end, previous
            previous = i
            i = end
        num_waiting = 0
        i = 0
        while i < size and after[i] < size:
            rank = _rank(table, tokens[i], tokens[after[i]])
            if rank >= 0:
                num_waiting = _push(heap, num_waiting, rank << 32 | i)
            i = after[i]

        state = seeds[word]
        num_passed_over = 0
        while num_waiting:
            top = heap[0]
            num_waiting = _pop(heap, num_waiting)
            i = top & 0xFFFFFFFF
            right = after[i]
            if tokens[i] == _GONE or right >= size:
                continue
            rank = _rank(table, tokens[i], tokens[right])
            new = merged[top >> 32]
            if rank < 0 or merged[rank] != new:
                continue
            if dropout > 0:
                state += STEP
                if uniform(state) < dropout:
                    passed_over[num_passed_over] = top
                    num_passed_over += 1
                    continue
                for j in range(num_passed_over):
                    num_waiting = _push(heap, num_waiting, passed_over[j])
                num_passed_over = 0
            tokens[i], tokens[right] = new, _GONE
            after[i] = after[right]
            if after[i] < size:
                before[after[i]] = i
                rank = _rank(table, new, tokens[after[i]])
                if rank >= 0:
                    num_waiting = _push(heap, num_waiting, rank << 32 | i)
            if before[i] >= 0:
                rank = _rank(table, tokens[before[i]], new)
                if rank >= 0:
                    num_waiting = _push(heap, num_waiting, rank << 32 | before[i])

        i = 0
        while i < size:
            is_fused = fuses_unknown and i > 0 and tokens[i] < 0 and tokens[before[i]] < 0
            if tokens[i] >= 0:
                ids[num_ids] = tokens[i]
                num_ids += 1
            elif len(byte_ids) or not is_fused:
                end = start + after[i]
                num = _unmatched(values, start + i, end, unknown, byte_ids, ids, num_ids)
                if num < 0:
                    stuck_at[word] = start + i
                    num_ids = first
                    break
                num_ids = num
            i = after[i]
        word_firsts[word + 1] = num_ids


@compiled
def _exactly(nodes: np.ndarray, values: np.ndarray, at: int, end: int) -> int:
    """Return the token that has just these bytes, -1 for none."""
    token, stop = longest_match(nodes, values, at, end)
    return token if stop == end else -1


@compiled
def _push(heap: np.ndarray, size: int, item: int) -> int:
    """Put an item into a heap whose least item is first; return its size."""
    at = size
    while at and item < heap[(at - 1) // 2]:
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = item
    return size + 1


@compiled
def _pop(heap: np.ndarray, size: int) -> int:
    """Take the first item out of a heap; return its size."""
    size -= 1
    item = heap[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= item:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = item
    return size
