"""The ledger: one record per partition, created exclusively and never changed. It is the commit."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pipeline.errors import AlreadyCommittedError, IntegrityError
from pipeline.protocols import (
    GoldenSample,
    PartitionResult,
    QuarantineFile,
    RowRange,
    Shard,
    StageCounts,
)
from pipeline.storage import Storage, join

LEDGER_VERSION = 1
FOLDER = "_ledger"


class Ledger:
    """The commit records of one output folder.

    Args:
        storage: How to reach it.
        output: The output folder's URI.
        fingerprint: Of the recipe; every record carries it.
    """

    def __init__(self, storage: Storage, output: str, fingerprint: str) -> None:
        self._storage = storage
        self._folder = join(output, FOLDER)
        self._fingerprint = fingerprint

    def commit(self, result: PartitionResult) -> None:
        """Make a partition's shards part of the data set, once.

        When several attempts finish one partition exactly one wins. Call it last: readers trust
        every shard that a record names.

        Raises:
            AlreadyCommittedError: another attempt won; drop yours and go on.
        """
        record = {
            "version": LEDGER_VERSION,
            "fingerprint": self._fingerprint,
            **asdict(result),
        }
        uri = self._uri(result.partition)
        data = json.dumps(record, ensure_ascii=False).encode()
        try:
            self._storage.create_exclusive(uri, data)
        except AlreadyCommittedError:
            raise AlreadyCommittedError(f"partition {result.partition} is done") from None

    def records(self) -> Iterator[PartitionResult]:
        """Yield all commit records by partition.

        Raises:
            IntegrityError: a record cannot be read, has another version or another fingerprint.
        """
        for entry in self._storage.walk(self._folder):
            name = entry.uri.rsplit("/", 1)[-1]
            if not name.endswith(".json") or name.startswith("."):
                continue  # the temporary file of an interrupted commit
            yield self._parse(entry.uri, self._storage.read(entry.uri))

    def record(self, partition: int) -> PartitionResult:
        """Return the commit record of one partition.

        Raises:
            IntegrityError: as ``records``, or there is none.
        """
        uri = self._uri(partition)
        return self._parse(uri, self._storage.read(uri))

    def withdraw(self, partition: int) -> None:
        """Take a commit back, for a repair: the next run does the partition anew."""
        self._storage.remove(self._uri(partition))

    def _uri(self, partition: int) -> str:
        return join(self._folder, f"{partition:07d}.json")

    def _parse(self, uri: str, data: bytes) -> PartitionResult:
        try:
            record: dict[str, Any] = json.loads(data)
            version, fingerprint = record.pop("version"), record.pop("fingerprint")
            if version != LEDGER_VERSION:
                raise IntegrityError(
                    f"{uri}: record version {version}, this program reads {LEDGER_VERSION}",
                    hint="run the program version that wrote it",
                )
            if fingerprint != self._fingerprint:
                raise IntegrityError(
                    f"{uri}: fingerprint {fingerprint[:12]}, the run's is {self._fingerprint[:12]}",
                    hint="the folder mixes two runs; start again with --fresh",
                )
            return _result(record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"{uri}: not a commit record ({error})",
                hint="remove this record: its partition is then done again",
            ) from None


def _result(record: dict[str, Any]) -> PartitionResult:
    shards = tuple(
        Shard(**{**shard, "sources": tuple(RowRange(**r) for r in shard["sources"])})
        for shard in record.pop("shards")
    )
    quarantine, golden = record.pop("quarantine"), record.pop("golden")
    stages = {name: StageCounts(**counts) for name, counts in record.pop("stages").items()}
    return PartitionResult(
        **record,
        shards=shards,
        quarantine=QuarantineFile(**quarantine) if quarantine else None,
        golden=GoldenSample(**golden) if golden else None,
        stages=stages,
    )
