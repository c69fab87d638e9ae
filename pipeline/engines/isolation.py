"""Find the row of a partition that ends the process it is worked on in, by halving."""

from pipeline.protocols import Partition


class Isolation:
    """Says which rows to try next, from what became of the last ones.

    A probe works on some rows of the partition in a process that may die of them; all other rows
    are masked, so that they keep their places. Every probe halves what is left, so a partition of
    n rows takes about log2(n) + 1 of them. It looks for one row: a partition with several takes
    several isolations.

    Args:
        partition: The partition, its known bad rows masked.
    """

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.num_probes = 0
        self._first = self._stop = 0
        self._asked = range(0)
        self._confirmed = False

    def begin(self, num_rows: int) -> None:
        """Tell how many rows the partition has."""
        self._first, self._stop = 0, num_rows

    @property
    def found(self) -> int | None:
        """The row, once a process has died of it alone."""
        return self._first if self._confirmed else None

    @property
    def failed(self) -> bool:
        """True when no row of the partition ends a process by itself."""
        return self._first >= self._stop

    def next(self) -> range:
        """Return the rows to try: the first half of what is left, or the only row."""
        middle = (self._first + self._stop) // 2
        self._asked = range(self._first, max(middle, self._first + 1))
        return self._asked

    def answer(self, *, died: bool) -> None:
        """Tell what became of a process that worked on the rows of ``next``."""
        self.num_probes += 1
        if died:
            self._stop = self._asked.stop
            self._confirmed = len(self._asked) == 1
        else:
            self._first = self._asked.stop
