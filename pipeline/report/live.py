"""The live view of a run: a table in a terminal, plain log lines elsewhere."""

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
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
FIGURES_EVERY_S = 2.0
LOG_WITH_FIGURES_S = 60.0
FIGURES = "TOKENMILL_FIGURES"
"""Environment variable: when set, a run also logs figures from which a program that follows its log
can draw the table, as ``pipeline submit`` does."""

FIGURES_MARK = "@tokenmill-figures "

_NOTHING = StageFigures("", 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1)


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """Where a run stands at one moment.

    Attributes:
        elapsed_s: Since it began.
        left_s: Until its end, estimated; None when nothing is known yet.
        share: Of the input that was to be done, 0 to 1.
        num_done, num_partitions: Partitions.
        num_bad: Samples in the quarantine, of this run.
        num_workers: Workers that are ready.
        stages: What every stage does.
    """

    elapsed_s: float
    left_s: float | None
    share: float
    num_done: int
    num_partitions: int
    num_bad: int
    num_workers: int
    stages: Sequence[StageFigures]

    def table(self, width: int) -> RenderableType:
        """Return what is shown, for a terminal of ``width`` columns."""
        head = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(6):
            head.add_column(no_wrap=True)
        head.add_row(
            ProgressBar(total=1.0, completed=self.share, width=min(40, max(8, width - 72))),
            f"{self.num_done:,} of {self.num_partitions:,} partitions",
            f"{duration(self.elapsed_s)}",
            f"left {self._left()}",
            f"{self.num_workers} worker{'s' if self.num_workers > 1 else ''}",
            f"[red]{self.num_bad:,} quarantined[/]" if self.num_bad else "",
        )
        return Group(head, stage_table(self.stages))

    def line(self) -> str:
        """Return what is logged where there is no terminal."""
        parts = {stage.name: stage for stage in self.stages}
        read, write = parts.get("read", _NOTHING), parts.get("write", _NOTHING)
        return (
            f"{duration(self.elapsed_s)}: {self.num_done:,} of {self.num_partitions:,} partitions, "
            f"{write.samples:,} samples written ({write.samples_per_s:,.1f}/s), "
            f"{size(read.bytes_per_s)}/s read, {write.tokens_per_s:,.0f} tokens/s, "
            f"{self.num_bad:,} quarantined, left {self._left()}"
        )

    def _left(self) -> str:
        return duration(self.left_s) if self.left_s is not None else "?"

    def to_line(self) -> str:
        """Return a log line that ``from_line`` reads."""
        return FIGURES_MARK + json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> "LiveFigures | None":
        """Read what ``to_line`` wrote; None for what another version of this program may write."""
        try:
            raw = json.loads(line.removeprefix(FIGURES_MARK))
            raw["stages"] = [StageFigures(**stage) for stage in raw["stages"]]
            return cls(**raw)
        except (ValueError, KeyError, TypeError):
            return None


class LiveView:
    """Shows a run while it goes on. Use it as a context manager around the run.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._for_program = bool(os.environ.get(FIGURES))
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

    def decided(self, warning: str) -> None:
        """Say that the run begins anew, or has begun, with another setting."""
        self._halt()
        self._console.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False)

    def begin(self, partitions: Sequence[Partition], done: Set[int], engine: Engine) -> None:
        """Start showing; ``done`` are partitions of earlier runs."""
        self._engine, self._started = engine, time.monotonic()
        self._partitions, self._finished = partitions, {}
        self._num_bad = self._bytes_now = 0
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
        self._halt()

    def _halt(self) -> None:
        """Stop showing, until the next beginning."""
        self._stop.set()
        if self._live is not None:
            self._live.stop()
        if self._logger is not None:
            self._logger.join()
        self._live, self._logger, self._stop = None, None, threading.Event()

    def _running(self) -> Mapping[str, StageCounts]:
        return self._engine.progress() if self._engine is not None else {}

    def _render(self) -> RenderableType:
        return self._figures().table(self._console.width)

    def _figures(self) -> LiveFigures:
        running = self._running()
        done = self._bytes_done(running)
        elapsed = max(time.monotonic() - self._started, 1e-3)
        workers = max(self._engine.num_workers if self._engine is not None else 0, 1)
        return LiveFigures(
            elapsed_s=elapsed,
            left_s=elapsed * (self._bytes_left - done) / done if done else None,
            share=done / max(self._bytes_left, 1),
            num_done=self._num_done,
            num_partitions=len(self._partitions),
            num_bad=self._num_bad,
            num_workers=workers,
            stages=_live_figures(add_counts(self._finished, running), elapsed, workers),
        )

    def _log_lines(self) -> None:
        waited_s = 0.0
        while not self._stop.wait(FIGURES_EVERY_S if self._for_program else LOG_EVERY_S):
            figures = self._figures()
            if self._for_program:
                self._console.print(figures.to_line(), soft_wrap=True, markup=False)
                waited_s += FIGURES_EVERY_S
                if waited_s < LOG_WITH_FIGURES_S:
                    continue
                waited_s = 0.0
            self._console.print(figures.line(), soft_wrap=True)

    def _bytes_done(self, running: Mapping[str, StageCounts]) -> int:
        """Return input bytes of finished partitions, and the processed share of those at work."""
        read = running.get("read", StageCounts())
        through = min((c.samples for name, c in running.items() if name != "write"), default=0)
        at_work = read.num_bytes * through // max(read.samples, 1)
        return min(self._bytes_now + at_work, self._bytes_left)


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
