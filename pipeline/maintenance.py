"""Look at an output folder and tidy it up: status, and the removal of what no commit names."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline import lease
from pipeline.errors import SpecError
from pipeline.finish import JOB
from pipeline.lease import Holder, Lease
from pipeline.ledger import Ledger
from pipeline.manifest import MANIFEST
from pipeline.plan import read_plan
from pipeline.report.summary import Sums
from pipeline.retries import read_retries, superseded
from pipeline.storage import Entry, NotFoundError, Storage, join


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run stands.

    Attributes:
        name: The job's name.
        fingerprint: Of its recipe.
        num_partitions: In the plan.
        sums: What the commit records add up to.
        finished: The manifest is written.
        holder: Who holds the output's lease, if anybody.
    """

    name: str
    fingerprint: str
    num_partitions: int
    sums: Sums
    finished: bool
    holder: Holder | None


def status(uri: str, storage: Storage) -> Status:
    """Read plan and ledger of an output folder.

    Raises:
        NotFoundError: no run wrote there.
    """
    job = _job(uri, storage)
    retries = read_retries(storage, uri)
    records = _ledger(uri, storage, job)
    committed = {record.partition for record in records.records()} if retries else set()
    finished = [retry for retry in retries if retry.is_finished(committed)]
    sums = Sums(superseded=superseded(finished))
    for record in records.records():
        sums.add(record)
    return Status(
        name=job["recipe"]["name"],
        fingerprint=job["fingerprint"],
        num_partitions=len(read_plan(storage, uri))
        + sum(len(retry.partitions) for retry in retries if not retry.is_dropped),
        sums=sums,
        finished=storage.stat(join(uri, MANIFEST)) is not None,
        holder=Lease(storage, uri).holder(),
    )


def unreferenced(uri: str, storage: Storage, *, unfinished: bool = False) -> Iterator[Entry]:
    """Yield what killed attempts left behind: objects that no commit record names.

    Args:
        uri: The output folder.
        storage: How to reach it.
        unfinished: Look at a folder without a manifest too. Its shards without a record may
            belong to workers that are still at work, though their driver is gone.

    Raises:
        NotFoundError: no run wrote there.
        SpecError: the run is not finished.
    """
    job = _check_finished(uri, storage, unfinished)
    named: set[str] = set()
    for record in _ledger(uri, storage, job).records():
        named.update(shard.path for shard in record.shards)
        if record.quarantine is not None:
            named.add(record.quarantine.path)
    folder = storage.resolve(uri)  # as the walk gives names: "./out" would not match "out"
    for entry in storage.walk(folder):
        path = entry.uri[len(folder.rstrip("/")) + 1 :]
        if path.startswith(lease.FOLDER + "/"):
            continue  # whoever holds the lease tidies up there
        temporary = path.rsplit("/", 1)[-1].startswith(".") and path.endswith(".tmp")
        if temporary or (path.startswith(("shards/", "quarantine/")) and path not in named):
            yield replace(entry, uri=join(uri, path))


def remove_unreferenced(uri: str, storage: Storage, *, unfinished: bool = False) -> Iterator[Entry]:
    """Remove what ``unreferenced`` gives, and yield it; holds the lease meanwhile.

    Raises:
        LeaseError: a run is at work on the folder.
    """
    _check_finished(uri, storage, unfinished)  # before anything is written there
    with Lease(storage, uri):
        for entry in list(unreferenced(uri, storage, unfinished=unfinished)):
            storage.remove(entry.uri)
            yield entry


def _ledger(uri: str, storage: Storage, job: Mapping[str, Any]) -> Ledger:
    others = [retry.fingerprint for retry in read_retries(storage, uri)]
    return Ledger(storage, uri, job["fingerprint"], others)


def _check_finished(uri: str, storage: Storage, unfinished: bool) -> dict[str, Any]:
    job = _job(uri, storage)
    if not unfinished and storage.stat(join(uri, MANIFEST)) is None:
        raise SpecError(
            f"{uri}: the run is not finished, a shard without a record may be in the making",
            hint="finish it, or use --unfinished when no worker is at work on it",
        )
    return job


def _job(uri: str, storage: Storage) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(storage.read(join(uri, JOB)))
    except NotFoundError:
        raise NotFoundError(
            f"{uri}: no run wrote here", hint="give the output folder of a run"
        ) from None
    return found
