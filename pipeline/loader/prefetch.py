"""Fetches the shards that come next while those before them are read."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.errors import TokenmillError

PREFETCH_THREADS = 4
"""Shards that one reader fetches at a time."""

LOOK_ITEMS = 256
"""Items looked at together."""

LOOKS = 16
"""How many looks ahead a batch may pay for, so that the first comes at once."""


class FetchesShards(Protocol):
    """Brings shards to this machine."""

    @property
    def num_ahead(self) -> int:
        """How many are fetched before they are needed."""
        ...

    @property
    def max_ahead(self) -> int:
        """How many these, and those that the next items need, may be together."""
        ...

    def fetch(self, shard: int, stopped: Callable[[], bool]) -> None:
        """Fetch a shard, unless it is here or on its way; give up when told to stop."""
        ...


def looks(
    items: Iterator[np.ndarray], shards_of: Callable[[np.ndarray], np.ndarray], num_shards: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield how many items come next, and which shards they need first, for ``Prefetch``.

    Ends when there is no new shard left.

    Args:
        items: Of an iteration, as many at a time as one likes.
        shards_of: Items -> the shards that hold them.
        num_shards: Shards of the data set.
    """
    is_new = np.ones(num_shards, np.bool_)
    num_new = num_shards
    for look in in_looks(items):
        shards = shards_of(look)
        shards = shards[is_new[shards]]
        is_new[shards] = False
        num_new -= len(shards)
        yield len(look), shards.tolist()
        if not num_new:
            return


def in_looks(items: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the items of an iteration, some at a time."""
    for block in items:
        for first in range(0, len(block), LOOK_ITEMS):
            yield block[first : first + LOOK_ITEMS]


class Prefetch:
    """Keeps the next shards of one iteration on their way, in threads that end with it.

    What a thread meets is not told: the reader, who wants the same shard, meets it too.

    Args:
        source: Fetches them.
        looks: For the items of the iteration, some at a time, in order: how many they are, and the
            shards that they need and that none before them did.
    """

    def __init__(self, source: FetchesShards, looks: Iterator[tuple[int, list[int]]]) -> None:
        self._source, self._looks = source, looks
        self._num_read = self._num_looked = 0  # items
        self._found: deque[_Need] = deque()  # not asked for yet
        self._held: deque[_Need] = deque()  # asked for, and not behind the reader
        self._ahead: deque[_Need] = deque()  # of these, the ones that are not needed yet
        self._tasks: queue.SimpleQueue[_Need | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name="prefetch", daemon=True)
            for _ in range(PREFETCH_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def advance(self, num_items: int) -> None:
        """Tell that the next items of the iteration are about to be read."""
        self._num_read += num_items
        while self._held and self._held[0].stop <= self._num_read:
            self._held.popleft()
        while self._ahead and self._ahead[0].start < self._num_read:
            self._ahead.popleft()
        looks_left = LOOKS
        while len(self._held) < self._source.max_ahead:
            if not self._found:
                if not looks_left or not self._look():
                    return
                looks_left -= 1
                continue
            need = self._found[0]
            if need.start >= self._num_read:
                if len(self._ahead) >= self._source.num_ahead:
                    return
                self._ahead.append(need)
            self._found.popleft()
            if need.stop > self._num_read:
                self._held.append(need)
                self._tasks.put(need)

    def _look(self) -> bool:
        """Find which new shards the next items need; False when there are no more items."""
        num_items, shards = next(self._looks, (0, []))
        if not num_items:
            return False
        start, self._num_looked = self._num_looked, self._num_looked + num_items
        self._found.extend(_Need(shard, start, self._num_looked) for shard in shards)
        return True

    def close(self) -> None:
        """Let the threads end, when what they are reading has arrived; does not wait for them."""
        self._stopped.set()
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while not self._stopped.is_set():
            need = self._tasks.get()
            if need is None:
                return
            if need.stop > self._num_read:  # else the reader has been there
                with suppress(TokenmillError):
                    self._source.fetch(need.shard, self._stopped.is_set)


@dataclass(frozen=True, slots=True)
class _Need:
    """A shard that is needed for the first time by one of the items from start to stop."""

    shard: int
    start: int
    stop: int
