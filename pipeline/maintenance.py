"""Look at an output folder and tidy it up: status, and the removal of what no commit names."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import SpecError
from pipeline.ledger import Ledger
from pipeline.manifest import MANIFEST
from pipeline.plan import read_plan
from pipeline.protocols import PartitionResult
from pipeline.runner import JOB
from pipeline.storage import Entry, NotFoundError, Storage, join


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run stands.

    Attributes:
        name: The job's name.
        fingerprint: Of its recipe.
        num_partitions: In the plan; ``results`` holds those that are committed.
        results: Commit records.
        finished: The manifest is written.
    """

    name: str
    fingerprint: str
    num_partitions: int
    results: list[PartitionResult]
    finished: bool


def status(uri: str, storage: Storage) -> Status:
    """Read plan and ledger of an output folder.

    Raises:
        NotFoundError: no run wrote there.
    """
    job = _job(uri, storage)
    return Status(
        name=job["recipe"]["name"],
        fingerprint=job["fingerprint"],
        num_partitions=len(read_plan(storage, uri)),
        results=list(Ledger(storage, uri, job["fingerprint"]).records()),
        finished=storage.stat(join(uri, MANIFEST)) is not None,
    )


def unreferenced(uri: str, storage: Storage, *, unfinished: bool = False) -> Iterator[Entry]:
    """Yield what killed attempts left behind: objects that no commit record names.

    Args:
        uri: The output folder.
        storage: How to reach it.
        unfinished: Look at a folder without a manifest too. Its shards without a record may
            belong to a run that is at work: say so only when none is.

    Raises:
        NotFoundError: no run wrote there.
        SpecError: the run is not finished.
    """
    job = _job(uri, storage)
    if not unfinished and storage.stat(join(uri, MANIFEST)) is None:
        raise SpecError(
            f"{uri}: the run is not finished, a shard without a record may be in the making",
            hint="finish it, or use --unfinished when no run is at work on it",
        )
    named: set[str] = set()
    for record in Ledger(storage, uri, job["fingerprint"]).records():
        named.update(shard.path for shard in record.shards)
        if record.quarantine is not None:
            named.add(record.quarantine.path)
    folder = storage.resolve(uri)  # as the walk gives names: "./out" would not match "out"
    for entry in storage.walk(folder):
        path = entry.uri[len(folder.rstrip("/")) + 1 :]
        temporary = path.rsplit("/", 1)[-1].startswith(".") and path.endswith(".tmp")
        if temporary or (path.startswith(("shards/", "quarantine/")) and path not in named):
            yield replace(entry, uri=join(uri, path))


def _job(uri: str, storage: Storage) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(storage.read(join(uri, JOB)))
    except NotFoundError:
        raise NotFoundError(
            f"{uri}: no run wrote here", hint="give the output folder of a run"
        ) from None
    return found
