"""An export from beginning to end: what is to be done, what is done already, and the rest.

Parts are written by the workers of an engine, as a run's partitions are. What a run's ledger is to
them their records are here: small files that appear when a part is whole.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from operators.base import Resources
from pipeline import lease
from pipeline.errors import (
    FingerprintMismatchError,
    IntegrityError,
    SpecError,
    TransientError,
)
from pipeline.export.base import PartRecord
from pipeline.export.files import ExportFiles, WrittenFile
from pipeline.export.parts import (
    FOLDER,
    ExportParts,
    ExportSettings,
    ExportTask,
    record_path,
    to_json,
)
from pipeline.lease import Lease
from pipeline.manifest import open_data_set
from pipeline.protocols import Listener
from pipeline.runner import engine_for
from pipeline.spec import WorkerRange
from pipeline.storage import NotFoundError, Storage, join

PLAN = f"{FOLDER}/plan.json"
DONE = "export.json"
"""Written last: where it is, the export is whole."""

_TEMPORARY = re.compile(r"(^|/)\.[^/]+\.tmp$")
"""What ``Storage`` calls a file on a disk until it is whole."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A finished export.

    Attributes:
        output: Its folder.
        num_samples: Rows.
        files: Everything that was written, but the records.
        parts: How many parts it has.
        skipped: How many of them were done by an earlier call.
    """

    output: str
    num_samples: int
    files: Sequence[WrittenFile]
    parts: int
    skipped: int

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.num_bytes for file in self.files)


def export(
    data_set: str,
    output: str,
    settings: ExportSettings,
    *,
    storage: Storage | None = None,
    engine: str = "inline",
    address: str | None = None,
    workers: int | WorkerRange | None = None,
    listener: Listener | None = None,
) -> ExportResult:
    """Write a finished data set in another format, or go on where an earlier call stopped.

    The bytes depend on data set and settings alone, not on the engine or its workers.

    Args:
        data_set: Its folder, or the address of its ``manifest.json``.
        output: The export's folder: none yet, empty, or of the same export.
        settings: What to write.
        storage: How to reach both.
        engine: ``inline`` (in this process) or ``ray``.
        address: Ray cluster to join; None starts a private one.
        workers: Number of workers, or a range; None is as many as fit.
        listener: Hears of the progress.

    Raises:
        SpecError: no such format or field, or the folder holds something else.
        ContractError: the format cannot hold a field.
        SetupError: the tokens were made with random weights, or a folder is closed.
        FingerprintMismatchError: the folder holds an export of another data set or settings.
        IntegrityError: a shard is not what manifest and index say.
        LeaseError: another export is at work on the folder.
        PoisonPartitionError: workers that wrote a part were ended from outside, again and again.
        TransientError: storage failed, or a part that was written is not there.
    """
    storage = storage or Storage()
    parts = ExportParts(open_data_set(data_set, storage), output, settings)
    parts.check_random_weights()
    _is_begun(storage, output, parts.plan())
    waiting = None if listener is None else listener.waiting
    with Lease(storage, output, waiting=waiting) as held:
        if not _is_begun(storage, output, parts.plan()):
            storage.write(join(output, PLAN), to_json(parts.plan()))
        storage.drop_uploads(output)
        records = _records(storage, output, len(parts.parts))
        skipped = len(records)
        if skipped < len(parts.parts):
            _write(parts, set(records), held, engine, address, workers, listener)
            # Second attempts and lost workers leave files half done; they are gone by now.
            storage.drop_uploads(output)
            records = _records(storage, output, len(parts.parts))
        ordered = [_found(records, number, output) for number in range(len(parts.parts))]
        files = ExportFiles(storage, output)
        parts.format.finish(ordered, files)
        every = [file for record in ordered for file in record.files] + files.written
        held.check()
        storage.write(join(output, DONE), to_json(parts.provenance(ordered, every)))
    return ExportResult(output, parts.num_samples, every, len(ordered), skipped)


def _write(
    parts: ExportParts,
    done: set[int],
    held: Lease,
    engine: str,
    address: str | None,
    workers: int | WorkerRange | None,
    listener: Listener | None,
) -> None:
    """Have the parts written that are not done."""
    storage = parts.data_set.storage
    task = ExportTask(
        storage.resolve(parts.data_set.uri),
        storage.resolve(parts.output),
        storage,
        parts.settings,
        parts.plan(),
    )
    partitions = parts.partitions()
    pending = [partition for partition in partitions if partition.index not in done]
    made = engine_for(task, Resources(), engine, address, workers)
    try:
        if listener is not None:
            listener.begin(partitions, done, made)
        for result in made.run(pending):
            held.check()
            if result is not None and listener is not None:
                listener.committed(result)
    finally:
        made.close()


def _found(records: Mapping[int, PartRecord], number: int, output: str) -> PartRecord:
    if number not in records:
        raise TransientError(
            f"{output}: part {number} was written and is not there",
            hint="the folder must be one that all nodes share; run the same command again",
        )
    return records[number]


def _is_begun(storage: Storage, output: str, plan: Mapping[str, Any]) -> bool:
    """Say whether this export was begun in a folder, which may hold nothing else."""
    uri = join(output, PLAN)
    try:
        found = json.loads(storage.read(uri))
    except NotFoundError:
        _check_empty(storage, output)
        return False
    except ValueError:
        raise IntegrityError(
            f"{uri}: not a plan", hint="remove the folder, and export again"
        ) from None
    if found != plan:
        differences = [
            f"{key} {json.dumps(found.get(key))}, now {json.dumps(plan.get(key))}"
            for key in sorted({*found, *plan})
            if found.get(key) != plan.get(key)
        ]
        raise FingerprintMismatchError(
            f"{output}: holds another export: {'; '.join(differences)}",
            hint="choose another --output, or remove the folder",
        )
    return True


def _check_empty(storage: Storage, output: str) -> None:
    for path, _ in _listing(storage, output):
        if not path.startswith(FOLDER + "/"):
            raise SpecError(
                f"{output}: there are files in it that are no export ({path})",
                hint="choose another --output, or an empty folder",
            )


def _records(storage: Storage, output: str, num_parts: int) -> dict[int, PartRecord]:
    """Return the records of parts whose files are there, with the size that they had.

    What a writer that was killed left half done is removed: the lease says that it is gone.
    """
    sizes = {}
    for path, num_bytes in _listing(storage, output):
        if _TEMPORARY.search(path):
            storage.remove(join(output, path))
        else:
            sizes[path] = num_bytes
    numbers = [number for number in range(num_parts) if record_path(number) in sizes]
    found = storage.read_many(join(output, record_path(number)) for number in numbers)
    records = {}
    for number, data in zip(numbers, found, strict=True):
        raw = json.loads(data)
        files = [WrittenFile(**file) for file in raw["files"]]
        if all(sizes.get(file.path) == file.num_bytes for file in files):
            records[number] = replace(PartRecord(**raw), files=files)
    return records


def _listing(storage: Storage, output: str) -> Iterator[tuple[str, int]]:
    """Yield path and size of every object of a folder, but those of the lease."""
    folder = storage.resolve(output)
    for entry in storage.walk(folder):
        path = entry.uri[len(folder.rstrip("/")) + 1 :]
        if not path.startswith(lease.FOLDER + "/"):
            yield path, entry.num_bytes
