"""Cut words into the subwords of a Factorizer dictionary, along the cheapest path.

The dictionary is a directed acyclic word graph (dawgdic's format): ``units`` uint32 [U] is the
graph, ``guide`` uint8 [U, 2] the first child and the next sibling of each state. Its keys are
subwords in an alphabet of their own (a byte b below 0x80 is itself, any other byte is the two bytes
0xC0 | b >> 3 and 0x80 | b & 7, so that a key ends where a byte of the text does), each followed by
0xFF and by a record in base64: a float32 score and three indices, little-endian.

Where cuts are drawn, each number depends on a word's seed, the attempt, and where the
piece begins and ends, not on when the search comes there.
"""

from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

from operators.text.algorithms.compiled import compiled
from operators.text.algorithms.splitmix import STEP, mixed, uniform

BEGIN_MARK, END_MARK = "\u2e25", "\u2e24"
SEPARATOR = 0xFF
RECORD_CHARACTERS = 12
NUM_SPECIAL = 8
UNKNOWN_IDS = (0, 3, 3)

_MARKS = np.frombuffer((BEGIN_MARK + END_MARK).encode(), np.uint8)
_MARK_BYTES = 3
_UNKNOWN_WORD = np.frombuffer(b"[unk]", np.uint8)
_NONE = -1


def _base64_values() -> np.ndarray:
    values = np.zeros(256, np.int64)
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    values[list(letters)] = np.arange(64)
    return values


_BASE64 = _base64_values()

NUM_ATTEMPTS = 16
NUM_STRETCHES = 1 << 16
_RECORD_SOFTENING = 1e-12
_FRACTION_BITS = 24


@cache
def stretches() -> np.ndarray:
    """Return float64 [65,536]: exp of a standard normal number at its quantiles, rising.

    A table, so that no machine's own logarithms come into what is drawn; numbers are rounded so far
    that all machines have the same one.
    """
    normal = NormalDist()
    shares = (np.arange(NUM_STRETCHES) + 0.5) / NUM_STRETCHES
    exact = np.exp([normal.inv_cdf(share) for share in shares.tolist()])
    return np.asarray(np.rint(exact * 2.0**_FRACTION_BITS) * 2.0**-_FRACTION_BITS)


@compiled
def follow(units: np.ndarray, state: int, label: int) -> Any:
    """Return the state after ``label``, -1 where the graph has none."""
    unit: Any = np.int64(units[state])
    offset = (unit >> 10) << ((unit & 0x200) >> 6)
    following = state ^ offset ^ label
    if following >= len(units) or (np.int64(units[following]) & 0x800000FF) != label:
        return _NONE
    return following


@compiled
def _follow_byte(units: np.ndarray, state: int, byte: int) -> Any:
    """Return the state after a byte of text, which the dictionary's alphabet may write as two."""
    if byte < 0x80:
        return follow(units, state, byte)
    state = follow(units, state, 0xC0 | (byte >> 3))
    return _NONE if state == _NONE else follow(units, state, 0x80 | (byte & 7))


@compiled
def _chosen_record(
    units: np.ndarray,
    guide: np.ndarray,
    state: int,
    path: np.ndarray,
    bits: np.ndarray,
    is_drawn: bool,
    draw: np.uint64,
) -> tuple[float, int]:
    """Return score and indices (in one number) of a key's best record, the first of equal ones.

    Args:
        units: The graph.
        guide: Its order.
        state: That after the separator.
        path: Scratch, int64 [RECORD_CHARACTERS + 1, 2].
        bits: Scratch, uint32 [1].
        is_drawn: Draw one instead, in proportion to 1 / -score.
        draw: The generator's state.
    """
    best_score, best_indices = -np.inf, _NONE
    weights = 0.0
    depth = 0
    path[0, 0] = state
    label: Any = np.int64(guide[state, 0])
    while True:
        if label:
            depth += 1
            path[depth, 0] = follow(units, path[depth - 1, 0], label)
            path[depth, 1] = _BASE64[label]
            if depth < RECORD_CHARACTERS:
                label = np.int64(guide[path[depth, 0], 0])
                continue
            high = (path[1, 1] << 18) | (path[2, 1] << 12) | (path[3, 1] << 6) | path[4, 1]
            mid = (path[5, 1] << 18) | (path[6, 1] << 12) | (path[7, 1] << 6) | path[8, 1]
            last = (path[9, 1] << 2) | (path[10, 1] >> 4)
            bits[0] = (
                (high >> 16)
                | ((high >> 8 & 0xFF) << 8)
                | ((high & 0xFF) << 16)
                | ((mid >> 16) << 24)
            )
            score = np.float64(bits.view(np.float32)[0])
            is_taken = bool(best_indices == _NONE or score > best_score)
            if is_drawn:
                # Each replaces those before it with its share of their weights and its own.
                weight = 1.0 / (max(-score, 0.0) + _RECORD_SOFTENING)
                weights += weight
                draw += STEP
                is_taken = bool(uniform(draw) * weights < weight)
            if is_taken:
                best_score, best_indices = score, ((mid & 0xFFFF) << 8) | last
        if depth == 0:
            return best_score, best_indices
        label = np.int64(guide[path[depth, 0], 1])
        depth -= 1


@compiled
def _goes_first(a: int, b: int, cost: np.ndarray, since: np.ndarray) -> bool:
    return bool(cost[a] < cost[b] or (cost[a] == cost[b] and since[a] < since[b]))


@compiled
def _sift_up(
    heap: np.ndarray, place: np.ndarray, node: int, cost: np.ndarray, since: np.ndarray
) -> None:
    """Move a node from ``place[node]`` towards the top of a heap until it fits."""
    at = place[node]
    while at > 0 and _goes_first(node, heap[(at - 1) >> 1], cost, since):
        parent = (at - 1) >> 1
        heap[at] = heap[parent]
        place[heap[at]] = at
        at = parent
    heap[at] = node
    place[node] = at


@compiled
def _sift_down(
    heap: np.ndarray,
    place: np.ndarray,
    size: int,
    node: int,
    cost: np.ndarray,
    since: np.ndarray,
) -> None:
    """Put a node at the top of a heap of ``size`` nodes and move it down until it fits."""
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _goes_first(heap[child + 1], heap[child], cost, since):
            child += 1
        if not _goes_first(heap[child], node, cost, since):
            break
        heap[at] = heap[child]
        place[heap[at]] = at
        at = child
    heap[at] = node
    place[node] = at


@compiled
def _cut_word(
    units: np.ndarray,
    guide: np.ndarray,
    word: np.ndarray,
    alpha: float,
    sigma: float,
    draws_records: bool,
    seed: np.uint64,
    table: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return where pieces end, int64 [K], and their indices in one number, int64 [K].

    Best-first search over the ends of pieces. Of nodes that cost the same, the one goes first that
    has had its cost for longer; those that became cheaper in one step go before those that were
    found in it, in the order they had, and the latter go longest first. No piece: no path.
    """
    size = len(word)
    cost = np.full(size + 1, np.inf)
    since = np.zeros(size + 1, np.int64)
    came_from = np.full(size + 1, _NONE, np.int64)
    indices = np.zeros(size + 1, np.int64)
    ends = np.empty(size + 1, np.int64)
    scores = np.empty(size + 1)
    records = np.empty(size + 1, np.int64)
    path = np.zeros((RECORD_CHARACTERS + 1, 2), np.int64)
    bits = np.zeros(1, np.uint32)
    cost[0] = 0.0
    clock = 1
    heap = np.empty(size + 1, np.int64)
    place = np.zeros(size + 1, np.int64)  # in the heap; _NONE: taken from it
    heap[0], num_open = 0, 1
    changed = np.empty(size + 1, np.int64)
    old_cost = np.empty(size + 1)
    old_since = np.empty(size + 1, np.int64)
    while num_open > 0:
        start = heap[0]
        num_open -= 1
        place[start] = _NONE
        if num_open > 0:
            _sift_down(heap, place, num_open, heap[num_open], cost, since)
        if start == size or cost[start] + alpha >= cost[size]:
            break
        num_ends, state = 0, 0
        for end in range(start + 1, size + 1):
            byte: Any = np.int64(word[end - 1])
            state = _follow_byte(units, state, byte)
            if state == _NONE:
                break
            record_state = follow(units, state, SEPARATOR)
            if record_state != _NONE:
                draw = seed + np.uint64(start * (size + 1) + end) * STEP
                score, record = _chosen_record(
                    units, guide, record_state, path, bits, draws_records, mixed(draw)
                )
                if sigma > 0:
                    score -= sigma * (end - start) * table[mixed(draw) >> np.uint64(48)]
                ends[num_ends], scores[num_ends], records[num_ends] = end, score, record
                num_ends += 1
        num_changed = 0
        for i in range(num_ends - 1, -1, -1):
            end = ends[i]
            new_cost = cost[start] + alpha - scores[i]
            if end < size and new_cost + alpha >= cost[size]:
                continue
            if new_cost < cost[end] and place[end] != _NONE:
                # Cheaper ones go in the order they had, before those found here.
                old_cost[end], old_since[end] = cost[end], since[end]
                at = num_changed
                while at > 0 and _goes_first(end, changed[at - 1], old_cost, old_since):
                    changed[at] = changed[at - 1]
                    at -= 1
                changed[at] = end
                num_changed += 1
                cost[end], came_from[end], indices[end] = new_cost, start, records[i]
        for i in range(num_changed):
            since[changed[i]] = clock
            clock += 1
        for i in range(num_changed):
            end = changed[i]
            if old_cost[end] == np.inf:
                place[end] = num_open
                num_open += 1
            _sift_up(heap, place, end, cost, since)
    num_pieces, end = 0, size
    while end > 0:
        if came_from[end] == _NONE:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        num_pieces += 1
        end = came_from[end]
    piece_ends = np.empty(num_pieces, np.int64)
    piece_indices = np.empty(num_pieces, np.int64)
    end = size
    for i in range(num_pieces - 1, -1, -1):
        piece_ends[i], piece_indices[i] = end, indices[end]
        end = came_from[end]
    return piece_ends, piece_indices


@compiled
def _drawn_cuts(
    units: np.ndarray,
    guide: np.ndarray,
    word: np.ndarray,
    alpha: float,
    sigma: float,
    draws_records: bool,
    seed: np.uint64,
    table: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what ``_cut_word`` does, drawn anew while a mark is cut, the cheapest in the end."""
    for attempt in range(NUM_ATTEMPTS):
        of_attempt = mixed(seed + np.uint64(attempt + 1) * STEP)
        ends, indices = _cut_word(
            units, guide, word, alpha, sigma, draws_records, of_attempt, table
        )
        if len(ends) < 2:
            return ends, indices
        # The marks are characters of several bytes: pieces that hold one whole end beside it.
        if (word[ends[0]] & 0xC0) != 0x80 and (word[ends[-2]] & 0xC0) != 0x80:
            return ends, indices
    return _cut_word(units, guide, word, alpha, 0.0, False, seed, table)


@compiled
def _holds_unknown(text: np.ndarray, begin: int, end: int) -> bool:
    """Say whether the bytes from begin to end hold ``[unk]``, in capitals or not."""
    for start in range(begin, end - len(_UNKNOWN_WORD) + 1):
        same = True
        for i in range(len(_UNKNOWN_WORD)):
            byte = text[start + i]
            if 65 <= byte <= 90:
                byte += 32
            if byte != _UNKNOWN_WORD[i]:
                same = False
                break
        if same:
            return True
    return False


@compiled
def _space_bytes(text: np.ndarray, at: int, end: int) -> int:
    """Return how many bytes the whitespace character at a position has, 0 for another character."""
    byte = text[at]
    if byte <= 0x20:
        return 1 if byte == 0x20 or 9 <= byte <= 13 or 0x1C <= byte <= 0x1F else 0
    if byte == 0xC2 and at + 1 < end:
        return 2 if text[at + 1] in (0x85, 0xA0) else 0
    if byte not in (0xE1, 0xE2, 0xE3) or at + 2 >= end:
        return 0
    second, third = text[at + 1], text[at + 2]
    if byte == 0xE1:
        is_space = second == 0x9A and third == 0x80
    elif byte == 0xE3:
        is_space = second == 0x80 and third == 0x80
    elif second == 0x80:
        is_space = 0x80 <= third <= 0x8A or third in (0xA8, 0xA9, 0xAF)
    else:
        is_space = second == 0x81 and third == 0x9F
    return 3 if is_space else 0


@compiled
def encode_rows(
    units: np.ndarray,
    guide: np.ndarray,
    text: np.ndarray,
    offsets: np.ndarray,
    alpha: float,
    merge_unknown: bool,
    sigma: float,
    draws_records: bool,
    seeds: np.ndarray,
    table: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids uint16 [M, 3] and offsets int64 [N + 1] of N rows of words.

    Args:
        units: The graph.
        guide: Its order.
        text: uint8 [B], UTF-8 of all rows.
        offsets: int64 [N + 1], where rows begin.
        alpha: What each piece costs beside its score.
        merge_unknown: Whether a word with an unknown piece is one unknown.
        sigma: How much dearer a piece becomes for each of its bytes, on the median.
        draws_records: Draw which of a piece's records is taken.
        seeds: uint64 [N], of the rows' draws; empty: nothing is drawn.
        table: See ``stretches``.
    """
    ids = np.empty((max(16, len(text)), 3), np.uint16)
    row_offsets = np.zeros(len(offsets), np.int64)
    num_ids = 0
    for row in range(len(offsets) - 1):
        at, row_end = offsets[row], offsets[row + 1]
        seed = seeds[row] if len(seeds) else np.uint64(0)
        while at < row_end:
            num_space = _space_bytes(text, at, row_end)
            if num_space:
                at += num_space
                continue
            end = at + 1
            while end < row_end and not _space_bytes(text, end, row_end):
                end += 1
            size = end - at
            word = np.empty(size + 2 * _MARK_BYTES, np.uint8)
            for i in range(_MARK_BYTES):
                word[i] = _MARKS[i]
                word[size + _MARK_BYTES + i] = _MARKS[_MARK_BYTES + i]
            for i in range(size):
                word[_MARK_BYTES + i] = text[at + i]
            may_be_unknown = _holds_unknown(word, 0, len(word))
            at = end
            if may_be_unknown and size == len(_UNKNOWN_WORD):
                ends, indices = np.empty(0, np.int64), np.empty(0, np.int64)
            elif len(seeds):
                ends, indices = _drawn_cuts(
                    units, guide, word, alpha, sigma, draws_records, mixed(seed), table
                )
            else:
                ends, indices = _cut_word(units, guide, word, alpha, 0.0, False, seed, table)
            seed += STEP
            if num_ids + max(1, len(ends)) > len(ids):
                larger = np.empty((2 * len(ids) + len(ends), 3), np.uint16)
                for i in range(num_ids):  # loops compile in a tenth of what slices take
                    for stream in range(3):
                        larger[i, stream] = ids[i, stream]
                ids = larger
            first, start = num_ids, 0
            is_unknown = len(ends) == 0
            for i in range(len(ends)):
                if may_be_unknown and _holds_unknown(word, start, ends[i]):
                    is_unknown = is_unknown or merge_unknown
                    for stream in range(3):
                        ids[num_ids, stream] = UNKNOWN_IDS[stream]
                else:
                    ids[num_ids, 0] = (indices[i] >> 16) + NUM_SPECIAL
                    ids[num_ids, 1] = (indices[i] >> 8 & 0xFF) + NUM_SPECIAL
                    ids[num_ids, 2] = (indices[i] & 0xFF) + NUM_SPECIAL
                start = ends[i]
                num_ids += 1
            if is_unknown:
                for stream in range(3):
                    ids[first, stream] = UNKNOWN_IDS[stream]
                num_ids = first + 1
        row_offsets[row + 1] = num_ids
    return ids[:num_ids].copy(), row_offsets


@compiled
def list_records(units: np.ndarray, guide: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all records in the order of the dictionary.

    Returns:
        keys: uint8 [B], the keys of all records one after another, in the dictionary's alphabet.
        ends: int64 [R], where keys end.
        indices: int64 [R], three indices in one number.
    """
    keys = np.empty(1024, np.uint8)
    ends = np.empty(256, np.int64)
    indices = np.empty(256, np.int64)
    num_records, num_bytes = 0, 0
    states: list[Any] = [np.int64(0)]
    labels: list[Any] = [np.int64(0)]
    label: Any = np.int64(guide[0, 0])
    separator_depth = 0
    while True:
        if label:
            states.append(follow(units, states[-1], label))
            labels.append(label)
            if label == SEPARATOR and not separator_depth:
                separator_depth = len(labels) - 1
            is_record = separator_depth and len(labels) - 1 == separator_depth + RECORD_CHARACTERS
            if not is_record:
                label = np.int64(guide[states[-1], 0])
                continue
            size = separator_depth - 1
            if num_bytes + size > len(keys):
                more = np.empty(2 * (len(keys) + size), np.uint8)
                for i in range(num_bytes):
                    more[i] = keys[i]
                keys = more
            if num_records == len(indices):
                longer, values = np.empty(2 * len(indices), np.int64), indices
                indices = np.empty(2 * len(indices), np.int64)
                for i in range(num_records):
                    longer[i], indices[i] = ends[i], values[i]
                ends = longer
            for i in range(size):
                keys[num_bytes + i] = labels[1 + i]
            num_bytes += size
            value = np.int64(0)
            for i in range(5, 11):
                value = (value << 6) | _BASE64[labels[separator_depth + i]]
            # Bytes 3..6 of seven; the last two characters hold 4 bits beyond them.
            indices[num_records] = (value >> 4) & 0xFFFFFF
            ends[num_records] = num_bytes
            num_records += 1
        if len(states) == 1:
            return keys[:num_bytes], ends[:num_records], indices[:num_records]
        label = np.int64(guide[states[-1], 1])
        states.pop()
        labels.pop()
        if len(labels) - 1 < separator_depth:
            separator_depth = 0
