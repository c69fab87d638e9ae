"""Group commit: few segments, soon; nothing lost on the way out; errors reach the run."""

import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline import committer
from pipeline.committer import MAX_RECORDS, Committer, spacing_s
from pipeline.errors import SetupError, TransientError
from pipeline.ledger import Ledger
from pipeline.protocols import PartitionResult
from pipeline.storage import Storage
from tests.corpus import commit_records, ledger_files
from tests.unit.test_ledger import results

pytestmark = pytest.mark.timeout(60)


class WatchedLedger(Ledger):
    """Says when it wrote a segment, waits until it may, and fails as it is told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Storage(), str(folder), "f" * 64)
        self.wrote = threading.Semaphore(0)
        self.may_write = threading.Event()
        self.may_write.set()
        self.errors: list[BaseException] = []

    def commit(self, results: Iterable[PartitionResult]) -> None:
        self.may_write.wait()
        if self.errors:
            raise self.errors.pop(0)
        super().commit(results)
        self.wrote.release()


@pytest.fixture
def ledger(tmp_path: Path) -> WatchedLedger:
    return WatchedLedger(tmp_path)


@pytest.fixture
def never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be written for its age after the first segment."""
    monkeypatch.setattr(committer, "spacing_s", lambda num_segments: 3600.0)


def test_a_result_after_a_quiet_time_is_committed_at_once(
    ledger: WatchedLedger, tmp_path: Path, never_again: None
) -> None:
    with Committer(ledger) as commits:
        commits.add(results(5)[0])
        ledger.wrote.acquire()
        assert list(commit_records(tmp_path)) == [5]


def test_later_ones_wait_for_company_and_leaving_commits_them(
    ledger: WatchedLedger, tmp_path: Path, never_again: None
) -> None:
    with Committer(ledger) as commits:
        commits.add(results(0)[0])
        ledger.wrote.acquire()
        for result in results(1, 2, 3):
            commits.add(result)
        assert list(commit_records(tmp_path)) == [0]
    assert list(commit_records(tmp_path)) == [0, 1, 2, 3]
    assert len(ledger_files(tmp_path)) == 2


def test_none_waits_longer_than_the_spacing(
    ledger: WatchedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "spacing_s", lambda num_segments: 0.05)
    with Committer(ledger) as commits:
        for result in results(0, 1, 2):
            commits.add(result)
            ledger.wrote.acquire()
    assert len(ledger_files(tmp_path)) == 3


def test_a_full_group_does_not_wait(
    ledger: WatchedLedger, tmp_path: Path, never_again: None
) -> None:
    count = 3 * MAX_RECORDS + 1
    with Committer(ledger) as commits:
        commits.add(results(0)[0])
        ledger.wrote.acquire()
        for result in results(*range(1, count)):
            commits.add(result)
        for _ in range(3):
            ledger.wrote.acquire()
        assert len(commit_records(tmp_path)) == count
    assert len(ledger_files(tmp_path)) == 4


def test_workers_wait_for_a_slow_store(ledger: WatchedLedger, tmp_path: Path) -> None:
    ledger.may_write.clear()
    added: list[int] = []

    def run() -> None:
        with Committer(ledger) as commits:
            for result in results(*range(5 * MAX_RECORDS)):
                commits.add(result)
                added.append(result.partition)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(0.5)
    assert len(added) < 3 * MAX_RECORDS  # one group is being written, two wait
    ledger.may_write.set()
    thread.join()
    assert len(commit_records(tmp_path)) == 5 * MAX_RECORDS


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SetupError("the weights are gone")])
def test_an_error_of_the_run_commits_what_is_done(
    ledger: WatchedLedger, tmp_path: Path, never_again: None, error: BaseException
) -> None:
    def stopped() -> None:
        with Committer(ledger) as commits:
            for result in results(0, 1, 2):
                commits.add(result)
            raise error

    with pytest.raises(type(error)) as caught:
        stopped()
    assert caught.value is error
    assert list(commit_records(tmp_path)) == [0, 1, 2]


def test_an_error_of_the_store_reaches_the_run(ledger: WatchedLedger) -> None:
    error = SetupError("no space left on device")
    ledger.errors = [error]

    def add_for_ever() -> None:
        with Committer(ledger) as commits:
            while True:
                commits.add(results(0)[0])

    with pytest.raises(SetupError) as caught:
        add_for_ever()
    assert caught.value is error


def test_an_error_at_the_last_segment_reaches_the_run(
    ledger: WatchedLedger, never_again: None
) -> None:
    error = SetupError("no space left on device")

    def add_two() -> None:
        with Committer(ledger) as commits:
            commits.add(results(0)[0])
            ledger.wrote.acquire()
            ledger.errors = [error]
            commits.add(results(1)[0])

    with pytest.raises(SetupError) as caught:
        add_two()
    assert caught.value is error


def test_a_store_that_is_away_for_a_while_is_waited_for(
    ledger: WatchedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "RETRY_WAITS_S", (0.0, 0.0))
    ledger.errors = [TransientError("503"), TransientError("slow down")]
    with Committer(ledger) as commits:
        commits.add(results(0)[0])
    assert list(commit_records(tmp_path)) == [0]

    ledger.errors = [TransientError("503"), TransientError("503"), TransientError("slow down")]
    with (
        pytest.raises(TransientError, match=r"commit: 3 attempts failed, the last: slow down"),
        Committer(ledger) as commits,
    ):
        commits.add(results(1)[0])


def test_a_long_run_of_slow_partitions_keeps_its_log_short() -> None:
    num_segments, seconds = 0, 0.0
    while seconds < 60 * 3600:
        num_segments += 1
        seconds += spacing_s(num_segments)
    assert num_segments < 6_000
    assert spacing_s(0) == 1.0
    assert spacing_s(10**6) == 60.0
