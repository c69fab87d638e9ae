"""Find which tokens of a vocabulary begin at a place of a text: a double-array trie over bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from operators.text.algorithms.compiled import compiled

BASE, CHECK, ID = 0, 1, 2
"""Columns of a node: where its children stand, its parent's slot, its token's id or -1."""

ROOT = 0
MAX_TRIES = 512
"""Places tried for the children of one node before they go to the end of the array."""


@dataclass(frozen=True, slots=True)
class Trie:
    """Tokens by their bytes.

    The child of a node in slot ``s`` by byte ``c`` is in slot ``t = nodes[s, BASE] + c`` where
    ``nodes[t, CHECK] == s``, and there is none otherwise.

    Attributes:
        nodes: int32 [S, 4] (the last column fills a cache line evenly); slot 0 is the root, and
            the last 256 slots are empty, so that every step stays inside.
        longest: Bytes of the longest token.
    """

    nodes: np.ndarray
    longest: int


def build_trie(tokens: Mapping[bytes, int], *, is_reversed: bool = False) -> Trie:
    """Return the trie of tokens, none of them empty.

    Args:
        tokens: Bytes -> id.
        is_reversed: Spell tokens from their last byte to their first, to search from an end.
    """
    spelled = {(token[::-1] if is_reversed else token): i for token, i in tokens.items()}
    keys = sorted(spelled)
    offsets = np.zeros(len(keys) + 1, np.int64)
    np.cumsum([len(key) for key in keys], out=offsets[1:])
    values = np.frombuffer(b"".join(keys), np.uint8)
    ids = np.array([spelled[key] for key in keys], np.int32)
    return Trie(_build(values, offsets, ids), int(np.diff(offsets).max(initial=0)))


@compiled
def _build(values: np.ndarray, offsets: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return ``nodes`` of distinct keys in rising order."""
    size = 2048
    nodes = np.zeros((size, 4), np.int32)
    nodes[:, CHECK] = -1
    nodes[:, ID] = -1
    # Empty slots in a ring, in rising order, through slot 0, which the root takes.
    after = (np.arange(size) + 1) % size
    before = (np.arange(size) + size - 1) % size
    last_used = 0

    # Nodes whose children are not placed yet: their slot, keys [low, high) and depth.
    pending = np.empty((len(values) + 1, 4), np.int64)
    pending[0] = (ROOT, 0, len(ids), 0)
    num_pending = 1
    bytes_found = np.empty(256, np.int64)
    lows = np.empty(257, np.int64)
    while num_pending:
        num_pending -= 1
        node, low, high, depth = pending[num_pending]
        if low < high and offsets[low + 1] - offsets[low] == depth:
            nodes[node, ID] = ids[low]
            low += 1
        if low == high:
            continue
        num_found = 0
        for key in range(low, high):
            byte = values[offsets[key] + depth]
            if num_found == 0 or bytes_found[num_found - 1] != byte:
                bytes_found[num_found] = byte
                lows[num_found] = key
                num_found += 1
        lows[num_found] = high

        base = 0
        slot = after[0]
        for _ in range(MAX_TRIES):
            if slot == 0:
                break
            base = slot - bytes_found[0]
            fits = base > 0 and base + 256 <= size
            for i in range(num_found):
                fits = fits and nodes[base + bytes_found[i], CHECK] < 0
                if not fits:
                    break
            if fits:
                break
            base = 0
            slot = after[slot]
        if base <= 0:
            base = last_used + 1
        while base + 512 > size:
            grown = np.zeros((2 * size, 4), np.int32)
            grown[:, CHECK] = -1
            grown[:, ID] = -1
            grown[:size] = nodes
            nodes = grown
            more = np.arange(size, 2 * size)
            last = before[0]
            after = np.concatenate((after, (more + 1) % (2 * size)))
            before = np.concatenate((before, more - 1))
            after[last] = size
            before[size] = last
            before[0] = 2 * size - 1
            size *= 2

        nodes[node, BASE] = base
        for i in range(num_found):
            slot = base + bytes_found[i]
            nodes[slot, CHECK] = node
            after[before[slot]] = after[slot]
            before[after[slot]] = before[slot]
            last_used = max(last_used, slot)
            pending[num_pending] = (slot, lows[i], lows[i + 1], depth + 1)
            num_pending += 1
    return nodes[: last_used + 257].copy()


@compiled
def longest_match(nodes: np.ndarray, values: np.ndarray, at: int, stop: int) -> tuple[int, int]:
    """Return the longest token that begins here and ends by ``stop``, and its end; -1 for none."""
    node = ROOT
    token = -1
    end = at
    for i in range(at, stop):
        child = nodes[node, BASE] + values[i]
        if nodes[child, CHECK] != node:
            break
        node = child
        if nodes[node, ID] >= 0:
            token = nodes[node, ID]
            end = i + 1
    return token, end
