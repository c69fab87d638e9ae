"""Retries of quarantined samples: what is written down of each, and how it is planned.

A retry is a plan of its own for a finished data set. Its partitions are numbered after those that
there are, and each supersedes the quarantine of one of these: the samples then count where they
were tried last. Records of retries stand in the same ledger as those of the run.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import AlreadyCommittedError, IntegrityError
from pipeline.plan import with_secrets, without_secrets
from pipeline.protocols import Partition, PartitionResult, Rejected, Source, SourceFile, SourceRange
from pipeline.quarantine import read_quarantine
from pipeline.sources.blocks import REST_OF_FILE
from pipeline.storage import NotFoundError, Storage, join

FOLDER = "_retry"
RETRY_VERSION = 1
_DROPPED = ".dropped"


@dataclass(frozen=True, slots=True)
class Retry:
    """One retry.

    Attributes:
        number: From 1.
        fingerprint: Of its recipe: an operator may have been mended since the run.
        recipe: Its own.
        operators: What identifies its operators.
        libraries: Package -> version.
        manifest_sha256: Of the manifest that it began with.
        samples: How many it tries.
        supersedes: Partitions whose quarantine is tried again.
        partitions: Its plan.
        version: Of this structure.
        is_dropped: It was given up. Its fingerprint stays known, since the ledger holds segments of
            it, and its numbers are not used again.
    """

    number: int
    fingerprint: str
    recipe: dict[str, Any]
    operators: list[dict[str, Any]]
    libraries: dict[str, str]
    manifest_sha256: str
    samples: int
    supersedes: tuple[int, ...]
    partitions: tuple[Partition, ...]
    version: int = RETRY_VERSION
    is_dropped: bool = False

    def is_finished(self, committed: Set[int]) -> bool:
        """Say whether all its partitions are committed."""
        return not self.is_dropped and all(
            partition.index in committed for partition in self.partitions
        )

    def uri(self, output: str) -> str:
        """Return where it is written down."""
        return join(output, FOLDER, f"{self.number:07d}.json")


_RETRY = TypeAdapter(Retry)


def read_retries(storage: Storage, output: str, urls: Sequence[str] = ()) -> list[Retry]:
    """Return the retries of a data set, in order; the last one may not be finished.

    Args:
        storage: How to reach it.
        output: The data set.
        urls: As for ``read_plan``.

    Raises:
        IntegrityError: one cannot be read, or is of another version.
    """
    found: list[Retry] = []
    entries = {
        entry.uri.rsplit("/", 1)[-1]: entry.uri for entry in storage.walk(join(output, FOLDER))
    }
    for name, uri in entries.items():
        if not name.endswith(".json") or name.startswith("."):
            continue
        try:
            retry = _RETRY.validate_json(storage.read(uri))
        except ValidationError as error:
            raise IntegrityError(
                f"{uri}: not a retry ({error.errors()[0]['msg']})",
                hint="put it back from a copy, or start anew with --fresh",
            ) from None
        found.append(replace(retry, is_dropped=name.removesuffix(".json") + _DROPPED in entries))
        if retry.version != RETRY_VERSION:
            raise IntegrityError(
                f"{uri}: version {retry.version}, this program reads {RETRY_VERSION}",
                hint="use the program version that wrote it",
            )
    whole = [
        replace(retry, partitions=tuple(with_secrets(list(retry.partitions), urls)))
        for retry in found
    ]
    return sorted(whole, key=lambda retry: retry.number)


def write_retry(storage: Storage, output: str, retry: Retry) -> None:
    """Write a retry down; it begins with that."""
    public = replace(retry, partitions=tuple(map(without_secrets, retry.partitions)))
    text = json.dumps(
        _RETRY.dump_python(public, mode="json"), indent=1, sort_keys=True, ensure_ascii=False
    )
    storage.create_exclusive(retry.uri(output), text.encode())


def drop_retry(storage: Storage, output: str, retry: Retry) -> None:
    """Note that a retry was given up; take its commits back before."""
    uri = retry.uri(output).removesuffix(".json") + _DROPPED
    with suppress(AlreadyCommittedError):
        storage.create_exclusive(uri, b"")


def superseded(retries: Iterable[Retry]) -> frozenset[int]:
    """Return the partitions whose quarantine finished retries took over."""
    return frozenset(index for retry in retries for index in retry.supersedes)


def plan_retry(
    storage: Storage,
    output: str,
    source: Source,
    plan: Mapping[int, Partition] | Sequence[Partition],
    records: Iterable[PartitionResult],
    first: int,
) -> tuple[list[Partition], list[int], int]:
    """Plan what is in the quarantine again, file by file.

    Source files may have been replaced, so they are listed anew and found by their names.

    Args:
        storage: How to reach the data set.
        output: The data set.
        source: Where the samples come from.
        plan: Partitions by index, those of earlier retries among them.
        records: Commit records whose quarantine counts.
        first: Index of the first new partition.

    Returns:
        The partitions, what they supersede, and how many samples they try.

    Raises:
        NotFoundError: a source file is gone.
        IntegrityError: the quarantine does not say which rows its samples were.
    """
    listed = {r.file.name: r.file for p in source.list_partitions() for r in p.ranges}
    partitions: list[Partition] = []
    supersedes: list[int] = []
    samples = 0
    for record in sorted(records, key=lambda record: record.partition):
        if record.quarantine is None:
            continue
        rejected = list(read_quarantine(storage, output, record.quarantine.path))
        for part in _again(plan[record.partition], rejected, listed):
            partitions.append(replace(part, index=first + len(partitions)))
        supersedes.append(record.partition)
        samples += len(rejected)
    return partitions, supersedes, samples


def _again(
    old: Partition, rejected: Sequence[Rejected], listed: Mapping[str, SourceFile]
) -> Iterator[Partition]:
    by_file: dict[str, list[Rejected]] = {}
    for item in rejected:
        by_file.setdefault(item.uri, []).append(item)
    for name, items in by_file.items():
        place = next((found for found in old.ranges if found.file.name == name), None)
        if place is None:  # every sample is a file of its own
            files = [_listed(old.ranges[item.row].file, listed) for item in items]
            yield Partition(0, tuple(SourceRange(file, file.num_bytes) for file in files))
        else:
            yield _rows_again(old, place, items, _listed(place.file, listed))


def _rows_again(
    old: Partition, place: SourceRange, items: Sequence[Rejected], file: SourceFile
) -> Partition:
    first = items[0]
    if first.file_row is None:
        raise IntegrityError(
            f"the quarantine of partition {old.index} does not say which rows of {first.uri} its "
            "samples were",
            hint="an older version of this program wrote it; run the job anew with --fresh",
        )
    if file != place.file:  # replaced: its parts may lie elsewhere, its rows are numbered the same
        place = SourceRange(file, file.num_bytes)
    rows = {
        item.file_row - place.first_row: item.error for item in items if item.file_row is not None
    }
    rest = [row for row, error in rows.items() if error in REST_OF_FILE]
    limit = None
    if old.max_samples is not None:
        limit = old.max_samples - first.row + first.file_row - place.first_row
    return Partition(
        0,
        (place,),
        max_samples=limit,
        only=tuple(sorted(set(rows) - set(rest))),
        rest_from=min(rest) if rest else None,
    )


def _listed(file: SourceFile, listed: Mapping[str, SourceFile]) -> SourceFile:
    found = listed.get(file.name)
    if found is None:
        raise NotFoundError(
            f"{file.name}: no such object in the source any more",
            hint="put it back: samples of it are in the quarantine and are to be tried again",
        )
    return found
