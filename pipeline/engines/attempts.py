"""How often a partition may fail before the run stops."""

import random
from collections import Counter

from pipeline.errors import PoisonPartitionError, TransientError
from pipeline.protocols import Partition

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0


class Attempts:
    """Counts failed attempts and says when to give up.

    Args:
        max_attempts: Attempts at one partition before the run ends.
    """

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._failed: Counter[int] = Counter()

    def after_error(self, partition: Partition, error: TransientError) -> float:
        """Note that storage failed; return the seconds to wait before the next attempt.

        Raises:
            TransientError: it was the last attempt.
        """
        self._failed[partition.index] += 1
        failed = self._failed[partition.index]
        if failed >= self._max_attempts:
            raise TransientError(
                f"partition {partition.index}: {failed} attempts failed, the last: {error}",
                hint="run the same command again when the store answers; nothing done is lost",
            ) from error
        longest: float = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**failed)
        return longest * random.uniform(0.5, 1.0)  # so that workers do not all come back at once

    def after_death(self, partition: Partition, cause: str) -> None:
        """Note that the partition's worker died.

        Raises:
            PoisonPartitionError: it was the last attempt.
        """
        self._failed[partition.index] += 1
        failed = self._failed[partition.index]
        if failed >= self._max_attempts:
            names = ", ".join(item.file.name for item in partition.ranges[:3])
            raise PoisonPartitionError(
                f"partition {partition.index} ({names}): its worker died {failed} times ({cause})",
                hint="run it with --engine inline to see where, or raise run.max_attempts",
            )
