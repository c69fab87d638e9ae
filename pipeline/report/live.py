"""The live view of a run: a table in a terminal, plain log lines elsewhere."""

import threading
import time
from collections.abc import Mapping, Sequence, Set
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from pipeline.protocols import Engine, Partition, PartitionResult, StageCounts, add_counts
from pipeline.report.summary import StageFigures
from pipeline.report.tables import duration, size, stage_table

LOG_EVERY_S = 10.0
REFRESH_PER_S = 2.0


class LiveView:
    """Shows a run while it goes on. Use it as a context manager around the run.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._engine: Engine | None = None
        self._live: Live | None = None
        self._stop = threading.Event()
        self._logger: threading.Thread | None = None
        self._started = time.monotonic()
        self._finished: dict[str, StageCounts] = {}
        self._partitions: Sequence[Partition] = ()
        self._num_done = 0
        self._num_bad = 0
        self._bytes_left = 0
        self._bytes_now = 0

    def waiting(self, message: str) -> None:
        """Say whom the run waits for."""
        self._console.print(message, soft_wrap=True, markup=False)

    def begin(self, partitions: Sequence[Partition], done: Set[int], engine: Engine) -> None:
        """Start showing; ``done`` are partitions of earlier runs."""
        self._engine, self._started = engine, time.monotonic()
        self._partitions = partitions
        self._num_done = len(done)
        self._bytes_left = sum(p.num_bytes for p in partitions if p.index not in done)
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=REFRESH_PER_S,
                transient=True,
            )
            self._live.start()
            return
        if done:
            self._console.print(f"{len(done):,} of {len(partitions):,} partitions are done already")
        self._logger = threading.Thread(target=self._log_lines, name="log", daemon=True)
        self._logger.start()

    def committed(self, result: PartitionResult) -> None:
        """Count a committed partition."""
        self._finished = add_counts(self._finished, result.stages)
        self._num_done += 1
        self._num_bad += result.num_quarantined
        self._bytes_now += self._partitions[result.partition].num_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._live is not None:
            self._live.stop()
        if self._logger is not None:
            self._logger.join()

    def _running(self) -> Mapping[str, StageCounts]:
        return self._engine.progress() if self._engine is not None else {}

    def _render(self) -> RenderableType:
        running = self._running()
        done = self._bytes_done(running)
        elapsed = max(time.monotonic() - self._started, 1e-3)
        workers = max(self._engine.num_workers if self._engine is not None else 0, 1)
        head = Table.grid(padding=(0, 2, 0, 0))
        width = min(40, max(8, self._console.width - 72))
        for _ in range(6):
            head.add_column(no_wrap=True)
        head.add_row(
            ProgressBar(total=max(self._bytes_left, 1), completed=done, width=width),
            f"{self._num_done:,} of {len(self._partitions):,} partitions",
            f"{duration(elapsed)}",
            f"left {self._left(elapsed, done)}",
            f"{workers} worker{'s' if workers > 1 else ''}",
            f"[red]{self._num_bad:,} quarantined[/]" if self._num_bad else "",
        )
        figures = _live_figures(add_counts(self._finished, running), elapsed, workers)
        return Group(head, stage_table(figures))

    def _log_lines(self) -> None:
        while not self._stop.wait(LOG_EVERY_S):
            running = self._running()
            counts = add_counts(self._finished, running)
            elapsed = time.monotonic() - self._started
            left = self._left(elapsed, self._bytes_done(running))
            read, write = (counts.get(name, StageCounts()) for name in ("read", "write"))
            self._console.print(
                f"{duration(elapsed)}: {self._num_done:,} of {len(self._partitions):,} partitions, "
                f"{write.samples:,} samples written ({write.samples / elapsed:,.1f}/s), "
                f"{size(read.num_bytes / elapsed)}/s read, {write.tokens / elapsed:,.0f} tokens/s, "
                f"{self._num_bad:,} quarantined, left {left}",
                soft_wrap=True,
            )

    def _bytes_done(self, running: Mapping[str, StageCounts]) -> int:
        """Return input bytes of finished partitions, and the processed share of those at work."""
        read = running.get("read", StageCounts())
        through = min((c.samples for name, c in running.items() if name != "write"), default=0)
        at_work = read.num_bytes * through // max(read.samples, 1)
        return min(self._bytes_now + at_work, self._bytes_left)

    def _left(self, elapsed: float, done: int) -> str:
        return duration(elapsed * (self._bytes_left - done) / done) if done else "?"


def _live_figures(
    counts: Mapping[str, StageCounts], elapsed: float, workers: int
) -> list[StageFigures]:
    figures = []
    for name, part in counts.items():
        thread_s = elapsed * workers * part.threads
        busy = min(part.busy_s / thread_s, 1.0)
        waits = part.starved_s + part.blocked_s or 1.0
        total = sum(part.steps.values()) or 1.0
        figures.append(
            StageFigures(
                name=name,
                samples=part.samples,
                num_bytes=part.num_bytes,
                tokens=part.tokens,
                samples_per_s=part.samples / elapsed,
                bytes_per_s=part.num_bytes / elapsed,
                tokens_per_s=part.tokens / elapsed,
                busy=busy,
                starved=(1 - busy) * part.starved_s / waits,
                blocked=(1 - busy) * part.blocked_s / waits,
                threads=part.threads,
                steps={step: s / total for step, s in part.steps.items()},
            )
        )
    return figures
