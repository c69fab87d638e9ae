"""Fetches the shards that come next while those before them are read."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pipeline.errors import TokenmillError
from pipeline.loader.files import ShardFiles

PREFETCH_THREADS = 4
"""Shards that one reader fetches at a time."""

LOOK_ITEMS = 256
"""Items looked at together."""

LOOKS = 16
"""How many looks ahead a batch may pay for, so that the first comes at once."""


class Prefetch:
    """Keeps the next shards of one iteration on their way, in threads that end with it.

    What a thread meets is not told: the reader, who wants the same shard, meets it too.

    Args:
        files: The shards.
        num_shards: How many that are not needed yet are fetched at most. Those that the next items
            need, and these, together take no more than ``files.max_ahead``.
        items: All items of the iteration, as many at a time as one likes.
        shards_of: Items -> the shards that hold them.
    """

    def __init__(
        self,
        files: ShardFiles,
        num_shards: int,
        items: Iterator[np.ndarray],
        shards_of: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self._files, self._num_shards, self._shards_of = files, num_shards, shards_of
        self._looks = (
            block[first : first + LOOK_ITEMS]
            for block in items
            for first in range(0, len(block), LOOK_ITEMS)
        )
        self._seen = np.zeros(files.num_shards, np.bool_)
        self._num_seen = 0
        self._num_read = self._num_looked = 0  # items
        self._found: deque[_Need] = deque()  # not asked for yet
        self._held: deque[_Need] = deque()  # asked for, and not behind the reader
        self._ahead: deque[_Need] = deque()  # of these, the ones that are not needed yet
        self._tasks: queue.SimpleQueue[_Need | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name="prefetch", daemon=True)
            for _ in range(min(PREFETCH_THREADS, num_shards))
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
        while len(self._held) < self._files.max_ahead:
            if not self._found:
                if not looks_left or not self._look():
                    return
                looks_left -= 1
                continue
            need = self._found[0]
            if need.start >= self._num_read:
                if len(self._ahead) >= self._num_shards:
                    return
                self._ahead.append(need)
            self._found.popleft()
            if need.stop > self._num_read:
                self._held.append(need)
                self._tasks.put(need)

    def _look(self) -> bool:
        """Find which new shards the next items need; False when there can be none."""
        look = next(self._looks, None) if self._num_seen < len(self._seen) else None
        if look is None:
            return False
        shards = self._shards_of(look)
        shards = shards[~self._seen[shards]]
        self._seen[shards] = True
        self._num_seen += len(shards)
        start, self._num_looked = self._num_looked, self._num_looked + len(look)
        self._found.extend(_Need(shard, start, self._num_looked) for shard in shards.tolist())
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
                    self._files.fetch(need.shard, self._stopped.is_set)


@dataclass(frozen=True, slots=True)
class _Need:
    """A shard that is needed for the first time by one of the items from start to stop."""

    shard: int
    start: int
    stop: int
