"""How long each stage waited, measured at the queues between them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spdl.pipeline import AsyncQueue, StageInfo


class TimedQueue(AsyncQueue):  # type: ignore[misc]
    """An SPDL queue that sums up how long its two sides waited, in seconds."""

    def __init__(self, info: StageInfo, *, buffer_size: int = 1) -> None:
        super().__init__(info, buffer_size=buffer_size)
        self.get_wait_s = 0.0
        self.put_wait_s = 0.0

    async def get(self) -> Any:
        """Take an item; time spent here is the next stage starving."""
        started = time.perf_counter()
        item = await super().get()
        self.get_wait_s += time.perf_counter() - started
        return item

    async def put(self, item: Any) -> None:
        """Add an item; time spent here is the stage before being blocked."""
        started = time.perf_counter()
        await super().put(item)
        self.put_wait_s += time.perf_counter() - started


@dataclass(slots=True)
class Waits:
    """Waiting times of a worker, handed out to its partitions as they finish.

    Attributes:
        stages: Names of the stages between read and write, in order.
        queues: SPDL's stage name -> the queue behind that stage (``src`` is behind read).
        read_s: Seconds the read stage waited for a partition.
        write_s: Seconds the write stage waited for a block.
    """

    stages: Sequence[str]
    queues: dict[str, TimedQueue] = field(default_factory=dict)
    read_s: float = 0.0
    write_s: float = 0.0
    _seen: dict[str, tuple[float, float]] = field(default_factory=dict)

    def since_last(self) -> Mapping[str, tuple[float, float]]:
        """Return stage -> seconds starved and blocked since the last call."""
        behind = ["src", *self.stages]
        now = {"read": (self.read_s, self.queues["src"].put_wait_s), "write": (self.write_s, 0.0)}
        for name, before in zip(self.stages, behind, strict=False):
            now[name] = (self.queues[before].get_wait_s, self.queues[name].put_wait_s)
        before_now, self._seen = self._seen, now
        passed = {}
        for name, (starved_s, blocked_s) in now.items():
            starved_before, blocked_before = before_now.get(name, (0.0, 0.0))
            passed[name] = (starved_s - starved_before, blocked_s - blocked_before)
        return passed
