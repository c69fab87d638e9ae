"""The lease: one holder at a time; a holder that is gone is followed at once or after its time."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from uuid import uuid4

import pytest

from pipeline import lease
from pipeline.errors import LeaseError, TransientError
from pipeline.lease import Holder, Lease
from pipeline.storage import Storage

pytestmark = pytest.mark.timeout(60)

TTL_S = 0.4


def take(folder: Path, storage: Storage | None = None, ttl_s: float = TTL_S) -> Lease:
    return Lease(storage or Storage(), str(folder), ttl_s=ttl_s)


def leases(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "_lease").glob("[0-9]*"))


def leave_behind(folder: Path, number: int = 5, **changes: object) -> Holder:
    """Write what a run leaves that could not give its lease back."""
    holder = Holder(uuid4().hex, "other-host", 77, "another boot", "2026-01-02 03:04:05 UTC")
    holder = replace(holder, **changes)  # type: ignore[arg-type]
    path = folder / "_lease" / f"{number:07d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"version": 1, **asdict(holder)}))
    return holder


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.005)


def test_it_is_given_back(tmp_path: Path) -> None:
    with take(tmp_path) as held:
        assert leases(tmp_path) == ["0000001.json"]
        held.check()
    assert leases(tmp_path) == []


def test_it_is_given_back_when_the_run_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), take(tmp_path):
        raise KeyboardInterrupt
    assert leases(tmp_path) == []


def test_it_is_renewed_and_tidied_up(tmp_path: Path) -> None:
    with take(tmp_path) as held:
        until(lambda: "0000006.json" in leases(tmp_path))
        assert len(leases(tmp_path)) <= 3
        held.check()
    assert leases(tmp_path) == []


def test_a_live_holder_is_named_and_left_alone(tmp_path: Path) -> None:
    told: list[str] = []
    with take(tmp_path) as held:
        with (
            pytest.raises(LeaseError) as caught,
            Lease(Storage(), str(tmp_path), ttl_s=10 * TTL_S, waiting=told.append),
        ):
            raise AssertionError("two hold it")
        held.check()
        until(lambda: len(leases(tmp_path)) > 0)
    message = caught.value.message
    assert f"{tmp_path}: another run is at work on it: process {os.getpid()} on " in message
    assert " UTC" in message
    assert caught.value.exit_code == 8
    assert "--output" in str(caught.value)
    assert len(told) == 1
    assert f"process {os.getpid()} on " in told[0]


def test_who_gives_it_back_meanwhile_is_followed(tmp_path: Path) -> None:
    first = take(tmp_path, ttl_s=8.0)
    first.__enter__()
    waits = threading.Event()
    second = Lease(Storage(), str(tmp_path), ttl_s=8.0, waiting=lambda message: waits.set())
    thread = threading.Thread(target=second.__enter__)
    thread.start()
    waits.wait()
    first.__exit__(None, None, None)
    thread.join()
    second.check()
    second.__exit__(None, None, None)
    assert leases(tmp_path) == []


def test_a_holder_elsewhere_that_gives_no_sign_is_followed_after_its_time(tmp_path: Path) -> None:
    leave_behind(tmp_path)
    begin = time.monotonic()
    with take(tmp_path) as held:
        assert time.monotonic() - begin >= TTL_S
        held.check()
    assert leases(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 9}', "null"])
def test_a_lease_that_cannot_be_read_counts_for_its_time(tmp_path: Path, text: str) -> None:
    leave_behind(tmp_path)
    (tmp_path / "_lease/0000005.json").write_text(text)
    begin = time.monotonic()
    with take(tmp_path):
        assert time.monotonic() - begin >= TTL_S


def test_a_killed_process_of_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pipeline.lease import Lease; from pipeline.storage import Storage\n"
        "Lease(Storage(), sys.argv[1]).__enter__(); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        until(lambda: not Path(f"/proc/{process.pid}/cmdline").read_bytes())  # a zombie now
        with take(tmp_path, ttl_s=3600) as held:
            held.check()
    assert leases(tmp_path) == []


def test_only_its_own_machine_knows_that_a_process_is_gone(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    holder = leave_behind(tmp_path, pid=done.pid, place=lease._place())
    assert holder.is_gone()
    assert not replace(holder, place="another boot").is_gone()
    assert not replace(holder, pid=os.getpid()).is_gone()


def test_who_was_stopped_for_too_long_has_lost_it(tmp_path: Path) -> None:
    with take(tmp_path, ttl_s=2.0) as held:
        until(lambda: "0000002.json" in leases(tmp_path))
        newest = max(leases(tmp_path))
        other = leave_behind(tmp_path, number=int(newest[:7]) + 1)
        until(lambda: held._lost is not None)
        with pytest.raises(LeaseError, match=f"took it over from this one: {other}"):
            held.check()
    assert leases(tmp_path) == [f"{int(newest[:7]) + 1:07d}.json"]  # the other's stays


def test_a_higher_number_elsewhere_is_noticed_too(tmp_path: Path) -> None:
    with take(tmp_path) as held:
        leave_behind(tmp_path, number=900)
        until(lambda: held._lost is not None)
        with pytest.raises(LeaseError, match="other-host"):
            held.check()


class FlakyStorage(Storage):
    """Fails, or loses its answers, while it is told to."""

    away = False
    forgetful = False

    def create_exclusive(self, uri: str, data: bytes) -> None:
        if self.away:
            raise TransientError("503")
        super().create_exclusive(uri, data)
        if self.forgetful:
            raise TransientError("the connection was reset")


def test_a_store_that_was_away_is_renewed_when_it_is_back(tmp_path: Path) -> None:
    storage = FlakyStorage()
    with take(tmp_path, storage, ttl_s=0.4) as held:
        storage.away = True
        time.sleep(1.0)  # longer than it lives
        before = leases(tmp_path)
        storage.away = False
        until(lambda: leases(tmp_path) != before)
        held.check()


def test_who_took_over_while_the_store_was_away_is_noticed_when_it_is_back(tmp_path: Path) -> None:
    storage = FlakyStorage()
    with take(tmp_path, storage, ttl_s=0.4) as held:
        storage.away = True
        time.sleep(0.5)
        leave_behind(tmp_path, number=900)
        storage.away = False
        until(lambda: held._lost is not None)
        with pytest.raises(LeaseError, match="other-host"):
            held.check()


def test_a_renewal_whose_answer_was_lost_counts(tmp_path: Path) -> None:
    storage = FlakyStorage()
    with take(tmp_path, storage) as held:
        storage.forgetful = True
        until(lambda: "0000003.json" in leases(tmp_path))
        storage.forgetful = False
        until(lambda: "0000005.json" in leases(tmp_path))
        held.check()


def test_a_slow_starter_does_not_take_a_number_that_was_given_up(tmp_path: Path) -> None:
    """It listed before the holder renewed twice, and creates a number that was removed since."""
    listed = threading.Event()
    go = threading.Event()

    class SlowStorage(Storage):
        def create_exclusive(self, uri: str, data: bytes) -> None:
            if not listed.is_set():
                listed.set()
                go.wait()
            super().create_exclusive(uri, data)

    def start() -> None:
        try:
            with take(tmp_path, SlowStorage()):
                outcome.append("held")
        except LeaseError:
            outcome.append("refused")

    outcome: list[str] = []
    slow = threading.Thread(target=start)
    slow.start()
    listed.wait()
    with take(tmp_path) as held:
        until(lambda: "0000001.json" not in leases(tmp_path))
        go.set()
        slow.join()
        held.check()
    assert outcome == ["refused"]


def test_of_many_starters_one_holds_it(tmp_path: Path) -> None:
    gate = threading.Barrier(6)
    held: list[str] = []
    refused: list[str] = []

    def start() -> None:
        gate.wait()
        try:
            with take(tmp_path, ttl_s=4.0) as mine:
                held.append("held")
                until(lambda: len(refused) == 5)
                mine.check()
        except LeaseError as error:
            refused.append(error.message)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)
    assert leases(tmp_path) == []


def test_a_renewal_between_listing_and_reading_is_followed(tmp_path: Path) -> None:
    """The newest number that was listed may be gone when it is read: no error, it looks again."""

    class RacingStorage(Storage):
        raced = 0

        def read(self, uri: str) -> bytes:
            if self.raced < 2:
                self.raced += 1
                self.remove(uri)
            return super().read(uri)

    leave_behind(tmp_path)
    with take(tmp_path, RacingStorage()) as held:
        held.check()
    assert leases(tmp_path) == []
