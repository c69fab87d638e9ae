"""The ledger: a log of segments, each created exclusively. A record in it is the commit.

A segment holds many records, so that a million partitions are a few thousand objects. Nobody needs
a clock or a lock: who writes segment n has read all before it, and when n is there already reads
that one too, leaves out what it commits, and tries the next number. So a partition is in the log
once, whoever writes.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import NoReturn

from pydantic import TypeAdapter, ValidationError

from pipeline.decisions import read_decisions
from pipeline.errors import AlreadyCommittedError, IntegrityError
from pipeline.protocols import PartitionResult
from pipeline.storage import Storage, join

LEDGER_VERSION = 2
FOLDER = "_ledger"
_SEGMENT = re.compile(r"(\d{7,})\.jsonl")
_VERSION_1 = re.compile(r"\d{7,}\.json")
_RECORD = TypeAdapter(PartitionResult)


@dataclass(frozen=True, slots=True)
class _Withdrawal:
    """A line that takes back the commits before it."""

    partitions: frozenset[int]


_WITHDRAWAL = TypeAdapter(dict[str, frozenset[int]])
_WITHDRAWN = b'{"withdrawn":'

OnDamage = Callable[[IntegrityError], None]
"""Hears of a line or a segment that cannot be read; the rest of the log is read all the same."""


def _stop(error: IntegrityError) -> NoReturn:
    raise error


class Ledger:
    """The commit records of one output folder. One thread uses it.

    Args:
        storage: How to reach it.
        output: The output folder's URI.
        fingerprint: Of the recipe; every segment that is written carries it.
        others: Fingerprints of retries (or, for a retry, of the run): their segments count too.
    """

    def __init__(
        self, storage: Storage, output: str, fingerprint: str, others: Iterable[str] = ()
    ) -> None:
        self._storage, self._output = storage, output
        self._folder = join(output, FOLDER)
        self._fingerprint = fingerprint
        self._accepted = {fingerprint, *others}
        self._discarded: frozenset[str] | None = None
        self._committed: set[int] = set()
        self._last = 0

    @property
    def committed(self) -> Set[int]:
        """Partitions that are committed, as far as this log was read or written here."""
        return self._committed

    @property
    def num_segments(self) -> int:
        """Segments that were read or written here."""
        return self._last

    def load(self, each: Callable[[PartitionResult], None]) -> None:
        """Read the log to its end, so that ``commit`` need not, and call ``each`` for the records.

        Raises:
            IntegrityError: as ``records``.
        """
        present, missing = self._numbers()
        committed = set()
        for record in self._replay(present, missing, _stop):
            committed.add(record.partition)
            each(record)
        self._committed, self._last = committed, max(present, default=0)

    def records(self, on_damage: OnDamage = _stop) -> Iterator[PartitionResult]:
        """Yield the records that count, one a partition, the newest segment first.

        Memory holds a few segments and the numbers of the partitions.

        Args:
            on_damage: Told what cannot be read; by default it is raised.

        Raises:
            IntegrityError: a segment is damaged or missing, or is of another version or another
                fingerprint; or the log commits a partition twice.
        """
        yield from self._replay(*self._numbers(), on_damage)

    def commit(self, results: Iterable[PartitionResult]) -> None:
        """Make the shards of partitions part of the data set, each once, in one segment.

        Partitions that are committed already, by this or another writer, are left out. Call it
        last: readers trust every shard that a record names.
        """
        pending: dict[int, bytes] = {}
        for result in results:
            if result.partition not in pending:
                pending[result.partition] = _RECORD.dump_json(result, exclude_defaults=True)
        while left := {p: line for p, line in pending.items() if p not in self._committed}:
            if self._append(list(left.values())):
                self._committed.update(left)

    def withdraw(self, partitions: Iterable[int]) -> None:
        """Take commits back, for a repair: the next run does these partitions anew."""
        taken_back = sorted(set(partitions))
        line = _WITHDRAWN + json.dumps(taken_back).encode() + b"}"
        while not self._append([line]):
            pass  # another writer's segment came first
        self._committed.difference_update(taken_back)

    def mend(self) -> list[str]:
        """Put what can be read of damaged segments in their place; return what was wrong.

        This alone replaces a segment. No other writer may be at work: nobody could read the log
        before, and who has read it before that would keep what is gone now.
        """
        present, missing = self._numbers()
        found: list[str] = []
        for number in missing:
            found.append(self._missing(number).message)
            self._storage.write(self._uri(number), self._segment([]))
        for number, data in self._read(present):
            wrong: list[IntegrityError] = []
            items = list(self._parse(number, data, wrong.append))
            if wrong:
                found += [error.message for error in wrong]
                self._storage.write(self._uri(number), self._segment(map(_line, items)))
        return found

    def _append(self, lines: Sequence[bytes]) -> bool:
        """Write the next segment; where another writer's is, read that one and return False."""
        number = self._last + 1
        try:
            self._storage.create_exclusive(self._uri(number), self._segment(lines))
        except AlreadyCommittedError:
            for item in self._parse(number, self._storage.read(self._uri(number)), _stop):
                if isinstance(item, _Withdrawal):
                    self._committed -= item.partitions
                else:
                    self._committed.add(item.partition)
        else:
            self._last = number
            return True
        self._last = number
        return False

    def _segment(self, lines: Iterable[bytes]) -> bytes:
        found = list(lines)
        head = {
            "version": LEDGER_VERSION,
            "fingerprint": self._fingerprint,
            "lines": len(found),
        }
        return b"\n".join([json.dumps(head).encode(), *found, b""])

    def _numbers(self) -> tuple[list[int], list[int]]:
        """Return the numbers of the segments that there are, and those missing among them."""
        found: list[int] = []
        for entry in self._storage.walk(self._folder):
            name = entry.uri.rsplit("/", 1)[-1]
            if match := _SEGMENT.fullmatch(name):
                found.append(int(match[1]))
            elif _VERSION_1.fullmatch(name):
                raise IntegrityError(
                    f"{entry.uri}: a record of ledger version 1, this program reads "
                    f"{LEDGER_VERSION}",
                    hint="go on with the program version that wrote it, or start again with "
                    "--fresh",
                )
        found.sort()
        holes = sorted(set(range(1, max(found, default=0))).difference(found))
        # A folder that others write to may be listed with a later file and without an earlier one.
        missing = [number for number in holes if self._storage.stat(self._uri(number)) is None]
        return sorted({*found, *holes} - {*missing}), missing

    def _replay(
        self, present: Sequence[int], missing: Sequence[int], on_damage: OnDamage
    ) -> Iterator[PartitionResult]:
        for number in missing:
            on_damage(self._missing(number))
        seen: set[int] = set()
        withdrawn: set[int] = set()
        # Backwards, so that a withdrawal is known before the records that it takes back.
        for number, data in self._read(present[::-1]):
            for item in self._parse(number, data, on_damage, backwards=True):
                if isinstance(item, _Withdrawal):
                    withdrawn |= item.partitions
                elif item.partition in withdrawn:
                    continue
                elif item.partition in seen:
                    raise IntegrityError(
                        f"{self._uri(number)}: commits partition {item.partition}, which a later "
                        "record commits too",
                        hint="the store let two writers create one object, or this is a defect",
                    )
                else:
                    seen.add(item.partition)
                    yield item

    def _read(self, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        return zip(numbers, self._storage.read_many(map(self._uri, numbers)), strict=True)

    def _parse(
        self, number: int, data: bytes, on_damage: OnDamage, *, backwards: bool = False
    ) -> Iterator[PartitionResult | _Withdrawal]:
        """Yield what the lines of a segment say."""
        uri = self._uri(number)
        lines = self._lines(uri, data, on_damage)
        places = range(len(lines))
        for place in reversed(places) if backwards else places:
            line = lines[place]
            try:
                if line.startswith(_WITHDRAWN):
                    yield _Withdrawal(_WITHDRAWAL.validate_json(line, strict=True)["withdrawn"])
                else:
                    yield _RECORD.validate_json(line, strict=True, extra="forbid")
            except ValidationError as error:
                on_damage(self._damage(uri, place + 2, f"not a commit record ({_reason(error)})"))

    def _lines(self, uri: str, data: bytes, on_damage: OnDamage) -> list[bytes]:
        """Return the lines of a segment without its head."""
        head, _, body = data.partition(b"\n")
        try:
            about = json.loads(head)
            version, fingerprint, num_lines = (
                about[key] for key in ("version", "fingerprint", "lines")
            )
        except (ValueError, KeyError, TypeError) as error:
            on_damage(self._damage(uri, 1, f"not the head of a segment ({error})"))
            return []
        if version != LEDGER_VERSION:
            raise IntegrityError(
                f"{uri}: ledger version {version}, this program reads {LEDGER_VERSION}",
                hint="go on with the program version that wrote it",
            )
        if fingerprint not in self._accepted and fingerprint in self._read_discarded():
            return []  # it was written before the run decided to begin anew
        if fingerprint not in self._accepted:
            raise IntegrityError(
                f"{uri}: fingerprint {fingerprint!s:.12}, the run's is {self._fingerprint:.12}",
                hint="the folder mixes two runs; start again with --fresh",
            )
        *lines, rest = body.split(b"\n")
        if rest:
            on_damage(self._damage(uri, len(lines) + 2, "the line is cut"))
        elif len(lines) != num_lines:
            what = f"{num_lines} lines should follow, there are {len(lines):,}"
            on_damage(self._damage(uri, 1, what))
        return lines

    def _read_discarded(self) -> frozenset[str]:
        """Return the fingerprints whose segments do not count any more."""
        if self._discarded is None:
            decisions = read_decisions(self._storage, self._output)
            self._discarded = frozenset(decision.discards for decision in decisions)
        return self._discarded

    def _damage(self, uri: str, line: int, what: str) -> IntegrityError:
        return IntegrityError(f"{uri}, line {line}: {what}", hint=self._hint())

    def _missing(self, number: int) -> IntegrityError:
        return IntegrityError(
            f"{self._uri(number)}: no such object, though there are later segments",
            hint=self._hint(),
        )

    def _hint(self) -> str:
        return (
            f"`pipeline verify {self._output} --repair` keeps what can be read of the ledger; "
            "then run the job again: it does the rest anew"
        )

    def _uri(self, number: int) -> str:
        return join(self._folder, f"{number:07d}.jsonl")


def _line(item: PartitionResult | _Withdrawal) -> bytes:
    if isinstance(item, _Withdrawal):
        return _WITHDRAWN + json.dumps(sorted(item.partitions)).encode() + b"}"
    return _RECORD.dump_json(item, exclude_defaults=True)


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
