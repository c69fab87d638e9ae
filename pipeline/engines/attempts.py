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
        self._deaths: Counter[int] = Counter()

    def after_error(self, partition: Partition, error: TransientError) -> float:
        """Note that storage failed; return the seconds to wait before the next attempt.

        Raises:
            TransientError: it was the last attempt.
        """
        self._failed[partition.index] += 1
        failed = self._failed[partition.index]
        if failed >= self._max_attempts:
            raise TransientError(
                f"{partition.named}: {failed} attempts failed, the last: {error}",
                hint="run the same command again when the store answers; nothing done is lost",
            ) from error
        longest: float = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**failed)
        return longest * random.uniform(0.5, 1.0)  # so that workers do not all come back at once

    def is_suspect(self, partition: Partition) -> bool:
        """Say whether it has lost a worker before: another death is not the machine's fault."""
        return self._deaths[partition.index] > 0 and self._max_attempts > 1

    def forgive(self, partition: Partition) -> None:
        """Note that a row which killed the workers was found: the count begins again.

        It stays a suspect, so that its next death starts the next search.
        """
        self._failed[partition.index] = 1
        self._deaths[partition.index] = 1

    def after_death(self, partition: Partition, cause: str) -> None:
        """Note that the partition's worker died.

        Raises:
            PoisonPartitionError: it was the last attempt.
        """
        self._failed[partition.index] += 1
        self._deaths[partition.index] += 1
        failed = self._failed[partition.index]
        if failed >= self._max_attempts:
            raise PoisonPartitionError(
                f"{partition.named}: {failed} attempts failed, the last: {cause}",
                hint="run it with --engine inline to see where, or raise run.max_attempts",
            )
