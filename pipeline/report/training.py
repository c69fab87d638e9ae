"""The view of a training: a bar for each of its steps in a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, TaskID

LOG_EVERY_S = 10.0


class TrainingView:
    """Shows a training while it goes on. Use it as a context manager around the training.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._logged_at = 0.0

    def show(self, what: str, done: int, total: int) -> None:
        """Show how much of a step is done; a ``total`` of 0 is not known."""
        is_new = what not in self._tasks
        if is_new:
            self._tasks[what] = self._bars.add_task(what, total=total or None)
        self._bars.update(self._tasks[what], completed=done, total=total or None)
        now = time.monotonic()
        if self._console.is_terminal or not (is_new or now - self._logged_at > LOG_EVERY_S):
            return
        self._logged_at = now
        self._console.print(f"{what} {done / total:.0%}" if total else f"{what} {done:,}")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()
