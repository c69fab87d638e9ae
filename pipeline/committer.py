"""Group commit: few segments for many partitions, and none that waits long."""

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pipeline.errors import TransientError
from pipeline.ledger import Ledger
from pipeline.protocols import PartitionResult

MAX_RECORDS = 512
"""A segment is written as soon as so many results wait for it."""

RETRY_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Before each further attempt at a segment that the store did not take."""

LAST_WAIT_S = 20.0
"""How long a run that ends with an error waits for its last segment."""


class Committer:
    """Commits results in groups, from a thread of its own.

    A result is committed at once when no segment was written lately; else it waits, together with
    those that come meanwhile, until ``MAX_RECORDS`` are there or ``spacing_s`` is over. Leaving the
    context commits what is left, on the way out of an error too.

    Args:
        ledger: Where to commit; only this committer writes to it meanwhile.

    Raises:
        TokenmillError: from ``add`` and at the end: a segment could not be written. What was not
            committed is done anew by the next run.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pending: list[PartitionResult] = []
        self._changed = threading.Condition()
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="commit", daemon=True)

    def add(self, result: PartitionResult) -> None:
        """Take a result to commit; waits only where the store is slower than the workers."""
        with self._changed:
            self._pending.append(result)
            self._changed.notify_all()
            while self._error is None and len(self._pending) >= 2 * MAX_RECORDS:
                self._changed.wait()
            if self._error is not None:
                raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # An error that ends the run is told rather than what it leads to here.
        self._thread.join(None if kind is None else LAST_WAIT_S)
        if kind is None and self._error is not None:
            raise self._error

    def _work(self) -> None:
        wrote_at = float("-inf")
        try:
            while group := self._next_group(wrote_at):
                self._commit(group)
                wrote_at = time.monotonic()
        except BaseException as error:  # told to the thread that waits for it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_group(self, wrote_at: float) -> Sequence[PartitionResult]:
        """Wait for results to commit and take them; none are left when it returns none."""
        with self._changed:
            while not self._closing and len(self._pending) < MAX_RECORDS:
                left = wrote_at + spacing_s(self._ledger.num_segments) - time.monotonic()
                if self._pending and left <= 0:
                    break
                self._changed.wait(left if self._pending else None)
            group, self._pending = self._pending[:MAX_RECORDS], self._pending[MAX_RECORDS:]
            self._changed.notify_all()
            return group

    def _commit(self, group: Sequence[PartitionResult]) -> None:
        for wait_s in RETRY_WAITS_S:
            try:
                return self._ledger.commit(group)
            except TransientError:
                time.sleep(wait_s)
        try:
            return self._ledger.commit(group)
        except TransientError as error:
            raise TransientError(
                f"commit: {len(RETRY_WAITS_S) + 1} attempts failed, the last: {error.message}",
                hint="run the same command again when the store answers; what was committed stays",
            ) from error


def spacing_s(num_segments: int) -> float:
    """Return the least time between two segments that are not full.

    It grows with the log, to keep the log short: a run of 60 hours leaves some 5,000 segments
    however slowly its partitions come. What a killed driver loses is at most as much work, little
    beside the hours that led there.
    """
    return min(60.0, max(1.0, 0.02 * num_segments))
