"""Which source stands at each position of a mixture: exact proportions, entered anywhere.

The sources are the leaves of a binary tree, built as Huffman (1952) builds codes: the two lightest
nodes become one until one is left. A node of weight c = a + b with children of weights a and b
sends its first n items to the left child ``n * a / c`` times, rounded to the nearest: its item p
goes left exactly where that number grows. So the child and the place in it follow from p alone,
and a source's place in the mixture from at most as many steps as the tree is deep.

How exact that is. Each node rounds by at most 1/2. Among n items a source of weight w therefore has
its share ``n * w / W`` within half the sum of ``w / w_i``, taken over the weights w_i of the nodes
from its leaf up to below the root, and any window within the whole sum. In a Huffman tree a node's
grandparent weighs at least as much as the node and its parent together, so the w_i grow like
Fibonacci's numbers, and the sum stays under 3.36 for any sources and weights. With two sources it
is 1, with three under 2.

To order all items by when they are due, ``(j + 1/2) / w``, would be simpler and is not exact: with
one source of weight 100 and a hundred of weight 1, the first 150 items hold 50 of the heavy source,
25 less than its share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import heapify, heappop, heappush
from math import gcd, lcm

import numpy as np

from pipeline.errors import ContractError

MAX_TOTAL_WEIGHT = 1 << 50
"""Whole weights add up to at most this: so quotients of doubles are off by one at most."""

_ROUNDED_TOTAL = 1 << 40  # what weights that need more are rounded to


@dataclass(frozen=True, slots=True)
class _Node:
    """A leaf (``source`` is a number) or an inner node (``left`` and ``right`` are nodes)."""

    weight: int
    source: int = -1
    left: "_Node | None" = None
    right: "_Node | None" = None


class Proportions:
    """Deals positions 0, 1, 2, ... out to sources by their weights.

    Args:
        weights: Whole, 0 or more, one of them positive, ``MAX_TOTAL_WEIGHT`` together at most.
            A source of weight 0 gets no position.

    Raises:
        ContractError: the weights are not like that.

    Example:
        >>> Proportions([3, 1]).sources(np.arange(8))[0].tolist()
        [0, 0, 1, 0, 0, 0, 1, 0]
    """

    def __init__(self, weights: Sequence[int]) -> None:
        if min(weights, default=0) < 0 or not 0 < sum(weights) <= MAX_TOTAL_WEIGHT:
            raise ContractError(
                f"mixture: weights {list(weights)}, expected 0 or more each and from 1 to "
                f"{MAX_TOTAL_WEIGHT:,} together"
            )
        self.weights = tuple(weights)
        divisor = gcd(*weights)
        heap = [
            (weight // divisor, source, _Node(weight // divisor, source))
            for source, weight in enumerate(weights)
            if weight
        ]
        heapify(heap)
        for number in range(len(weights), len(weights) + len(heap) - 1):
            (first, _, light), (second, _, heavy) = heappop(heap), heappop(heap)
            total = first + second
            heappush(heap, (total, number, _Node(total, left=heavy, right=light)))
        [(_, _, self._root)] = heap

    def sources(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what stands at some positions.

        Args:
            positions: int64 [K], each 0 or more.

        Returns:
            int64 [K], the source; int64 [K], which of the source's items, from 0.
        """
        sources = np.empty(len(positions), np.int64)
        indices = np.empty(len(positions), np.int64)
        todo = [(self._root, np.arange(len(positions)), positions)]
        while todo:
            node, places, numbers = todo.pop()
            if node.left is None or node.right is None:
                sources[places], indices[places] = node.source, numbers
                continue
            before, is_left = _dealt_left(node.left.weight, node.weight, numbers)
            is_right = ~is_left
            todo.append((node.left, places[is_left], before[is_left]))
            todo.append((node.right, places[is_right], (numbers - before)[is_right]))
        return sources, indices

    def counts(self, num: int) -> list[int]:
        """Return how many of the first ``num`` positions each source has."""
        counts = [0] * len(self.weights)
        todo = [(self._root, num)]
        while todo:
            node, total = todo.pop()
            if node.left is None or node.right is None:
                counts[node.source] = total
                continue
            left = (total * node.left.weight + node.weight // 2) // node.weight
            todo += [(node.left, left), (node.right, total - left)]
        return counts

    def position(self, source: int, index: int) -> int:
        """Return where an item of a source of positive weight stands: ``sources`` backwards."""
        for node, child in reversed(self._path(source)):
            half = node.weight // 2
            # Of n items, floor((n * weight + carried) / node.weight) go to the child.
            carried = half if child is node.left else node.weight - 1 - half
            index = -((carried - (index + 1) * node.weight) // child.weight) - 1
        return index

    def bound(self, source: int) -> Fraction:
        """Return how far a source's items in any window may be off from its share.

        In the first n positions, for any n, they are off by half of that at most.
        """
        weight = self.weights[source]
        if not weight:
            return Fraction(0)
        nodes = [child.weight for _, child in self._path(source)]
        return sum((Fraction(nodes[-1], node) for node in nodes), Fraction(0))

    def _path(self, source: int) -> list[tuple[_Node, _Node]]:
        """Return parent and child of every step from the root down to a source."""
        todo: list[tuple[_Node, list[tuple[_Node, _Node]]]] = [(self._root, [])]
        while True:
            node, path = todo.pop()
            if node.source == source:
                return path
            todo += [(c, [*path, (node, c)]) for c in (node.left, node.right) if c is not None]


def whole_weights(weights: Sequence[Fraction]) -> list[int]:
    """Return whole numbers in the proportions of some weights.

    Exactly so while they add up to ``MAX_TOTAL_WEIGHT`` at most. Others are rounded to parts of
    2**40, but not down to 0.
    """
    denominator = lcm(*(weight.denominator for weight in weights))
    exact = [int(weight * denominator) for weight in weights]
    divisor = gcd(*exact)
    total = sum(exact)
    if not divisor or total // divisor <= MAX_TOTAL_WEIGHT:
        return [weight // (divisor or 1) for weight in exact]
    return [weight and max(1, round(Fraction(weight * _ROUNDED_TOTAL, total))) for weight in exact]


def _dealt_left(left: int, total: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many items before each of a node's went left, and whether it does itself."""
    rounds, rest = np.divmod(numbers, total)
    # Products may pass 2**63 and wrap around, but what is left of them after the quotient, which
    # the doubles give to within one, is small and so comes out right.
    quotient = (rest * (left / total) + 0.5).astype(np.int64)
    remainder = rest * left + total // 2 - quotient * total
    more, remainder = np.divmod(remainder, total)
    return rounds * left + quotient + more, remainder + left >= total
