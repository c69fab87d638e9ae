"""The live view: what it shows in a terminal and what it logs elsewhere."""

import io
import time

import pytest
from rich.console import Console

from pipeline.protocols import StageCounts
from pipeline.report import live
from pipeline.report.live import LiveView
from tests.unit.fake_engine import FakeEngine, counts, partition, result

ESCAPE = "\x1b["


class Clock:
    """Stands for ``time.monotonic``."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("pipeline.report.live.time.monotonic", clock)
    return clock


def shown(view: LiveView, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(view._render())
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_terminal_shows_progress_and_stages(width: int, clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    engine = FakeEngine(counts(5, 500))
    with LiveView(console) as view:
        view.begin([partition(i) for i in range(4)], set(), engine)
        view.committed(result(0, quarantined=3))
        clock.now += 30.0
        head, titles, *stages = shown(view, width)
    assert head.endswith("1 of 4 partitions  30.0 s  left 50.0 s  2 workers  3 quarantined")
    assert titles.split()[:5] == ["stage", "samples", "samples/s", "MB/s", "tokens/s"]
    assert titles.split()[5:] == ["busy", "starved", "blocked"]
    assert [line.split()[0] for line in stages] == ["read", "cpu", "resize", "crop", "write"]
    assert stages[0].split()[1:3] == ["15", "0.5"]
    assert stages[-1].split()[4] == "128"
    assert all(len(line) <= width for line in (head, titles, *stages))


def test_time_left_follows_from_the_bytes_that_are_through(clock: Clock) -> None:
    """1,500 of 4,000 bytes took 30 seconds: half of a partition at work counts."""
    view = begun(FakeEngine(counts(5, 500)), set())
    view.committed(result(0))
    clock.now += 30.0
    assert "left 50.0 s" in shown(view, 120)[0]


def test_what_is_read_but_not_processed_does_not_count(clock: Clock) -> None:
    running = {**counts(5, 500), "cpu": StageCounts(0, 0)}
    view = begun(FakeEngine(running), set())
    clock.now += 30.0
    assert "left ?" in shown(view, 120)[0]


def test_resumed_partitions_count_as_done_but_not_as_speed(clock: Clock) -> None:
    view = begun(FakeEngine({}), {0, 1})
    clock.now += 10.0
    assert "2 of 4 partitions" in shown(view, 120)[0]
    assert "left ?" in shown(view, 120)[0]
    view.committed(result(2))
    head, _, read, *_ = shown(view, 120)
    assert "3 of 4 partitions" in head
    assert "left 10.0 s" in head
    assert read.split()[1:3] == ["10", "1.0"]


def begun(engine: FakeEngine, done: set[int]) -> LiveView:
    view = LiveView(Console(file=io.StringIO(), force_terminal=True, width=120))
    view.begin([partition(i) for i in range(4)], done, engine)
    view.__exit__(None, None, None)
    return view


def test_terminal_is_left_clean(clock: Clock) -> None:
    file = io.StringIO()
    with LiveView(Console(file=file, force_terminal=True, width=100)) as view:
        view.begin([partition(0)], set(), FakeEngine(counts(5, 500)))
    hide, show = f"{ESCAPE}?25l", f"{ESCAPE}?25h"
    assert file.getvalue().index(hide) < file.getvalue().index(show)
    assert file.getvalue().rstrip().endswith(f"{ESCAPE}2K")  # the last line is erased


def test_elsewhere_plain_lines_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LOG_EVERY_S", 0.01)
    file = io.StringIO()
    with LiveView(Console(file=file, width=80)) as view:
        view.begin([partition(i) for i in range(4)], {3}, FakeEngine(counts(5, 500)))
        view.committed(result(0, quarantined=3))
        while file.getvalue().count("\n") < 3:
            time.sleep(0.01)
    first, *lines = file.getvalue().splitlines()
    assert first == "1 of 4 partitions are done already"
    assert "2 of 4 partitions, 15 samples written (" in lines[-1]
    assert "3 quarantined, left " in lines[-1]
    assert ESCAPE not in file.getvalue()


def test_nothing_to_do_shows_nothing() -> None:
    file = io.StringIO()
    with LiveView(Console(file=file, force_terminal=True)):
        pass
    assert file.getvalue() == ""
