"""Two drivers write one ledger, in any interleaving and with crashes anywhere: no double commit."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import TransientError
from pipeline.ledger import Ledger
from pipeline.storage import Entry, Storage
from tests.unit.test_ledger import results

FINGERPRINT = "f" * 64
PARTITIONS = 6
T = TypeVar("T")


class _KilledError(BaseException):
    """Ends a writer's thread where it stands, as kill -9 would."""


@dataclass
class Turns:
    """Lets one writer at a time take one step at the store, and says how the step ends."""

    ready: dict[str, threading.Semaphore] = field(default_factory=dict)
    outcome: str = "done"
    stepped: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def step(self, writer: str, action: Callable[[], T]) -> T:
        """Wait for a turn and take it; called by the writer's thread."""
        self.ready[writer].acquire()
        if self.outcome == "killed before":
            raise _KilledError
        try:
            found = action()
        finally:
            if self.outcome == "killed after":
                raise _KilledError
        if self.outcome == "answer lost":
            raise TransientError("the connection was reset")
        return found

    def let(self, writer: str, outcome: str) -> None:
        """Give a writer a turn, and wait until it asks for the next or ends."""
        self.outcome = outcome
        self.ready[writer].release()
        self.stepped.acquire()


class SteppedStorage(Storage):
    """A storage whose user shares its steps with others."""

    def __init__(self, writer: str, turns: Turns) -> None:
        super().__init__()
        self._writer, self._turns = writer, turns

    def read(self, uri: str) -> bytes:
        return self._step(lambda: super(SteppedStorage, self).read(uri))

    def read_many(self, uris: Iterable[str], *, at_once: int = 1) -> Iterator[bytes]:
        return map(self.read, uris)

    def walk(self, uri: str) -> Iterator[Entry]:
        return iter(self._step(lambda: list(super(SteppedStorage, self).walk(uri))))

    def create_exclusive(self, uri: str, data: bytes) -> None:
        self._step(lambda: super(SteppedStorage, self).create_exclusive(uri, data))

    def _step(self, action: Callable[[], T]) -> T:
        self._turns.stepped.release()
        return self._turns.step(self._writer, action)


def write(
    storage: Storage, output: str, writer: str, groups: Sequence[Sequence[int]], loads: bool = True
) -> None:
    """Commit groups as a driver does: again when the store did not answer."""
    ledger = Ledger(storage, output, FINGERPRINT)
    if loads:
        again(lambda: ledger.load(lambda record: None))
    for group in groups:
        again(lambda: ledger.commit(results(*group, worker=writer)))  # noqa: B023 - called here


def again(action: Callable[[], None]) -> None:
    while True:
        with suppress(TransientError):
            return action()


GROUPS = st.lists(
    st.lists(st.integers(0, PARTITIONS - 1), min_size=1, max_size=3), min_size=1, max_size=4
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.sampled_from(["done"] * 6 + ["answer lost", "killed before", "killed after"]),
    ),
    max_size=30,
)


@pytest.mark.parametrize("store", ["disk", "memory"])
@settings(max_examples=100, deadline=None)
@given(a=GROUPS, b=GROUPS, loads=st.booleans(), steps=STEPS)
def test_no_partition_is_committed_twice(
    tmp_path_factory: pytest.TempPathFactory,
    store: str,
    a: list[list[int]],
    b: list[list[int]],
    loads: bool,
    steps: list[tuple[str, str]],
) -> None:
    output = (
        str(tmp_path_factory.mktemp("out"))
        if store == "disk"
        else f"memory://two-writers/{uuid4().hex}"
    )
    turns = Turns()
    threads: dict[str, threading.Thread] = {}
    killed: set[str] = set()
    ended: set[str] = set()

    def run(writer: str, groups: list[list[int]]) -> None:
        try:
            write(SteppedStorage(writer, turns), output, writer, groups, loads)
        except _KilledError:
            killed.add(writer)
        finally:
            ended.add(writer)
            turns.stepped.release()

    for writer, groups in (("a", a), ("b", b)):
        turns.ready[writer] = threading.Semaphore(0)
        threads[writer] = threading.Thread(target=run, args=(writer, groups), daemon=True)
        threads[writer].start()
        turns.stepped.acquire()
    seen: dict[int, str] = {}
    to_the_end = [(writer, "done") for writer in "ab"] * 100
    for writer, outcome in [*steps, *to_the_end]:
        if writer in ended:
            continue
        turns.let(writer, outcome)
        found = {r.partition: r.worker for r in Ledger(Storage(), output, FINGERPRINT).records()}
        assert found.items() >= seen.items()  # what is committed stays as it is
        seen = found
    for thread in threads.values():
        thread.join(10)
        assert not thread.is_alive()
    for writer, groups in (("a", a), ("b", b)):
        if writer not in killed:
            assert {index for group in groups for index in group} <= seen.keys()
    # The next driver does what is missing, and all is there, once.
    write(Storage(), output, "next", [list(range(PARTITIONS))])
    found = {r.partition: r.worker for r in Ledger(Storage(), output, FINGERPRINT).records()}
    assert found.items() >= seen.items()
    assert sorted(found) == list(range(PARTITIONS))
