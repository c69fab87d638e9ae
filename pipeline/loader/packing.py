"""Puts pieces of known lengths into packs of bounded length."""

from typing import Literal

import numpy as np

from pipeline.loader.compiled import compiled

Method = Literal["first_fit", "best_fit"]


def pack(lengths_N: np.ndarray, capacity: int, method: Method) -> tuple[np.ndarray, np.ndarray]:
    """Divide pieces among packs.

    ``first_fit`` takes the pieces in the given order and puts each into the first pack, in the
    order in which packs were begun, that has room. ``best_fit`` takes the longest first, of equally
    long ones the first given, and puts each into a pack with the least room that suffices; among
    several it is the pack that came to this room last.

    Args:
        lengths_N: int64, each from 1 to ``capacity``.
        capacity: The most that a pack holds.
        method: How.

    Returns:
        int64 [P + 1], where each pack begins in the second, and int64 [N], the pieces pack by pack.
        In a pack they rise, and packs are ordered by their first piece.
    """
    packs_N = (_first_fit if method == "first_fit" else _best_fit)(lengths_N, capacity)
    return _by_pack(packs_N)


def cut(lengths_N: np.ndarray, capacity: int, *, skip_long: bool) -> tuple[np.ndarray, np.ndarray]:
    """Cut samples into pieces of at most ``capacity`` tokens; only the last of a sample is shorter.

    Args:
        lengths_N: int64, tokens of neighbouring samples.
        capacity: The most that a piece may have.
        skip_long: Leave out longer samples instead.

    Returns:
        int64 [M] twice: where each piece begins, counted from the first sample, and its tokens.
        Samples without tokens give none.
    """
    starts_N = np.cumsum(lengths_N) - lengths_N
    if skip_long:
        fits = lengths_N <= capacity
        starts_N, lengths_N = starts_N[fits], lengths_N[fits]
    pieces_N = -(-lengths_N // capacity)
    sample_M = np.repeat(np.arange(len(lengths_N)), pieces_N)
    first_M = np.repeat(np.cumsum(pieces_N) - pieces_N, pieces_N)
    done_M = (np.arange(len(sample_M)) - first_M) * capacity
    return starts_N[sample_M] + done_M, np.minimum(lengths_N[sample_M] - done_M, capacity)


@compiled
def _first_fit(lengths_N: np.ndarray, capacity: int) -> np.ndarray:
    """Return int64 [N], each piece's pack, numbered as they are begun."""
    packs_N = np.empty(len(lengths_N), np.int64)
    # At most one pack is half empty, or a piece of it would be in an earlier one.
    most = 2 * (lengths_N.sum() // capacity) + 2
    num_leaves = 1
    while num_leaves < most:
        num_leaves *= 2
    # A tree of the most room below each node: its leaves are packs, those not begun among them.
    room = np.full(2 * num_leaves, capacity, np.int64)
    for n in range(len(lengths_N)):
        node = 1
        while node < num_leaves:
            node = 2 * node if room[2 * node] >= lengths_N[n] else 2 * node + 1
        packs_N[n] = node - num_leaves
        room[node] -= lengths_N[n]
        node //= 2
        while node:
            room[node] = max(room[2 * node], room[2 * node + 1])
            node //= 2
    return packs_N


@compiled
def _best_fit(lengths_N: np.ndarray, capacity: int) -> np.ndarray:
    """Return int64 [N], each piece's pack, numbered as they are begun."""
    packs_N = np.empty(len(lengths_N), np.int64)
    num_leaves = 1
    while num_leaves <= capacity:
        num_leaves *= 2
    # A tree of whether there is a pack below each node: its leaves are amounts of room.
    is_there = np.zeros(2 * num_leaves, np.bool_)
    newest = np.full(capacity + 1, -1, np.int64)  # the pack that came to this room last
    before = np.full(len(lengths_N), -1, np.int64)  # the one that came to a pack's room before it
    num_packs = 0
    for n in _longest_first(lengths_N, capacity):
        room = _least_room(is_there, num_leaves, lengths_N[n])
        if room < 0:
            room, packs_N[n] = capacity, num_packs
            num_packs += 1
        else:
            packs_N[n] = newest[room]
            newest[room] = before[newest[room]]
            _mark(is_there, num_leaves + room, newest[room] >= 0)
        room -= lengths_N[n]
        before[packs_N[n]] = newest[room]
        newest[room] = packs_N[n]
        _mark(is_there, num_leaves + room, True)
    return packs_N


@compiled
def _least_room(is_there: np.ndarray, num_leaves: int, length: int) -> int:
    """Return the least room of a pack from ``length`` on, or -1."""
    node = num_leaves + length
    if is_there[node]:
        return length
    while node > 1:
        if node % 2 == 0 and is_there[node + 1]:
            node += 1
            while node < num_leaves:
                node = 2 * node if is_there[2 * node] else 2 * node + 1
            return node - num_leaves
        node //= 2
    return -1


@compiled
def _mark(is_there: np.ndarray, node: int, there: bool) -> None:
    """Set a leaf and the nodes above it."""
    is_there[node] = there
    node //= 2
    while node:
        is_there[node] = is_there[2 * node] or is_there[2 * node + 1]
        node //= 2


@compiled
def _longest_first(lengths_N: np.ndarray, capacity: int) -> np.ndarray:
    """Return int64 [N], the pieces by falling length, equally long ones in the given order."""
    next_place = np.zeros(capacity + 2, np.int64)
    for length in lengths_N:
        next_place[length] += 1
    for length in range(capacity, -1, -1):  # how many are longer
        next_place[length] += next_place[length + 1]
    order_N = np.empty(len(lengths_N), np.int64)
    for n in range(len(lengths_N)):
        place = next_place[lengths_N[n] + 1]
        order_N[place] = n
        next_place[lengths_N[n] + 1] += 1
    return order_N


@compiled
def _by_pack(packs_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number packs by their first piece; return where each begins and the pieces pack by pack."""
    new_number = np.full(len(packs_N), -1, np.int64)
    sizes = np.zeros(len(packs_N), np.int64)
    num_packs = 0
    for old in packs_N:
        if new_number[old] < 0:
            new_number[old] = num_packs
            num_packs += 1
        sizes[new_number[old]] += 1
    stops_P = np.zeros(num_packs + 1, np.int64)
    stops_P[1:] = np.cumsum(sizes[:num_packs])
    next_place = stops_P[:-1].copy()
    order_N = np.empty(len(packs_N), np.int64)
    for n in range(len(packs_N)):
        number = new_number[packs_N[n]]
        order_N[next_place[number]] = n
        next_place[number] += 1
    return stops_P, order_N
