"""The lease: one driver at a time works on an output folder.

Again a log: ``_lease/<n>.json``, each created exclusively, and the newest number is the lease. Its
holder renews it by creating the next number. No clocks are compared: who finds a lease watches it
for its time to live by a clock of its own, and takes over when no renewal comes.

The lease keeps two runs from doing the same work and one from being removed under another's hands.
That nothing is doubled does not rest on it but on the ledger.
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from pipeline.errors import AlreadyCommittedError, LeaseError, TokenmillError
from pipeline.storage import NotFoundError, Storage, join

LEASE_VERSION = 1
FOLDER = "_lease"
TTL_S = 40.0
"""A holder that shows no sign for so long is taken to be gone. It renews four times as often."""

_LEASE = re.compile(r"(\d{7,})\.json")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease.

    Attributes:
        id: Random, one per lease taken.
        host: Name of the machine, for people.
        pid: Process id.
        place: What the process id is unique in: a boot of a machine, and a pid namespace there.
        since: UTC time, for people.
    """

    id: str
    host: str
    pid: int
    place: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_gone(self) -> bool:
        """Tell whether the process is known to have ended; only its own machine can know."""
        if self.place != _place():
            return False
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


class Lease:
    """Holds the lease of an output folder; a context manager around all that writes there.

    Args:
        storage: How to reach the folder.
        output: The output folder's URI.
        ttl_s: Time to live.
        waiting: Told, once, whom it waits for.

    Raises:
        LeaseError: another run is at work there.
    """

    def __init__(
        self,
        storage: Storage,
        output: str,
        *,
        ttl_s: float = TTL_S,
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        self._storage, self._output, self._ttl_s = storage, output, ttl_s
        self._folder = join(output, FOLDER)
        self._waiting = waiting
        self._holder = Holder(
            uuid.uuid4().hex,
            socket.gethostname(),
            os.getpid(),
            _place(),
            time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        )
        self._number = 0
        self._lost: LeaseError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def check(self) -> None:
        """Make sure that the lease is still held, as far as is known.

        Raises:
            LeaseError: another run took it over.
        """
        if self._lost is not None:
            raise self._lost

    def holder(self) -> Holder | None:
        """Return who holds it, of those that can be told; they may be gone."""
        number = max(self._numbers(), default=0)
        return self._read(number) if number else None

    def __enter__(self) -> Self:
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(5)
        try:
            for number in self._numbers():
                if number <= self._number:
                    self._storage.remove(self._uri(number))
        except TokenmillError:
            pass  # the store is away: the lease ends by itself

    def _take(self) -> None:
        """Become the holder, at once or when the present one gives no sign for ``ttl_s``."""
        watched: int | None = None
        since = 0.0
        while True:
            number = max(self._numbers(), default=0)
            holder = self._read(number) if number else None
            free = number == 0 or (holder is not None and holder.is_gone())
            if watched is not None and number not in (0, watched):
                raise self._refusal(holder)
            if free or (watched is not None and time.monotonic() - since >= self._ttl_s):
                if self._create(number + 1) and max(self._numbers(), default=0) == number + 1:
                    self._number = number + 1
                    self._tidy()
                    return
                continue  # another one took it
            if watched is None:
                watched, since = number, time.monotonic()
                if self._waiting is not None:
                    self._waiting(
                        f"{self._output} is held by {_name(holder)}; it is free in "
                        f"{self._ttl_s:.0f} s if that run is gone"
                    )
            time.sleep(min(self._ttl_s / 20, 0.5))

    def _keep(self) -> None:
        """Renew the lease until it is given back or lost.

        While the store is away nobody can take it over either, so that is no loss: whether the run
        can go on without the store is not decided here.
        """
        while not self._stop.wait(self._ttl_s / 4):
            try:
                self._renew()
            except LeaseError as error:
                self._lost = error
                return
            except TokenmillError:
                continue

    def _renew(self) -> None:
        number = self._number + 1
        if not self._create(number):
            holder = self._read(number)
            if holder is None or holder.id != self._holder.id:  # else the store's answer was lost
                raise self._loss(holder)
        self._number = number
        newest = max(self._numbers(), default=0)
        if newest != number:
            raise self._loss(self._read(newest) if newest else None)
        self._tidy()

    def _tidy(self) -> None:
        """Remove older numbers, but the one before: who lists right now must see one of them."""
        for number in self._numbers():
            if number < self._number - 1:
                self._storage.remove(self._uri(number))

    def _create(self, number: int) -> bool:
        data = json.dumps({"version": LEASE_VERSION, **asdict(self._holder)}).encode()
        try:
            self._storage.create_exclusive(self._uri(number), data)
        except AlreadyCommittedError:
            return False
        return True

    def _numbers(self) -> list[int]:
        names = (entry.uri.rsplit("/", 1)[-1] for entry in self._storage.walk(self._folder))
        return [int(match[1]) for match in map(_LEASE.fullmatch, names) if match]

    def _read(self, number: int) -> Holder | None:
        """Return who created a number; None when it is gone, or is not what we know."""
        try:
            found = json.loads(self._storage.read(self._uri(number)))
            if found.pop("version") == LEASE_VERSION:
                return Holder(**found)
        except (NotFoundError, ValueError, TypeError, AttributeError, KeyError):
            pass
        return None

    def _uri(self, number: int) -> str:
        return join(self._folder, f"{number:07d}.json")

    def _refusal(self, holder: Holder | None) -> LeaseError:
        return LeaseError(
            f"{self._output}: another run is at work on it: {_name(holder)}",
            hint="wait for it, or stop it; or choose another --output",
        )

    def _loss(self, holder: Holder | None) -> LeaseError:
        return LeaseError(
            f"{self._output}: another run took it over from this one: {_name(holder)}",
            hint=f"that run goes on with it. This one had not renewed its lease for "
            f"{self._ttl_s:.0f} s: was it stopped, or the store away?",
        )


def _name(holder: Holder | None) -> str:
    return str(holder) if holder is not None else "a run that does not say which"


def _place() -> str:
    """Return what process ids are unique in: two containers on one machine share the boot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
