"""An export from beginning to end: what is to be done, what is done already, and the rest."""

import json
import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from operators.base import FieldSpec
from pipeline import lease
from pipeline.errors import (
    FingerprintMismatchError,
    IntegrityError,
    SetupError,
    SpecError,
    TransientError,
)
from pipeline.export.base import KEY, KEY_SPEC, ExportFormat, PartRecord
from pipeline.export.files import ExportFiles, WrittenFile
from pipeline.export.formats import FORMATS
from pipeline.export.shards import ShardRange
from pipeline.lease import Lease
from pipeline.manifest import DataSet, Manifest, open_data_set
from pipeline.storage import NotFoundError, Storage, join

VERSION = 1
FOLDER = "_export"
PLAN = f"{FOLDER}/plan.json"
DONE = "export.json"
"""Written last: where it is, the export is whole."""

_TEMPORARY = re.compile(r"(^|/)\.[^/]+\.tmp$")
"""What ``Storage`` calls a file on a disk until it is whole."""

Progress = Callable[[int, int], None]
"""Told how many samples are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What decides the bytes of an export, beside the data set.

    Attributes:
        format: A name of ``FORMATS``.
        fields: What to export, in this order; None is what the format takes by default.
        part_bytes: Size of files, in bytes of shards; 0 puts all in one, None is the format's own.
        allow_random_weights: Export tokens that mean nothing, for a dry run.
    """

    format: str
    fields: Sequence[str] | None = None
    part_bytes: int | None = None
    allow_random_weights: bool = False


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
    workers: int = 1,
    progress: Progress | None = None,
) -> ExportResult:
    """Write a finished data set in another format, or go on where an earlier call stopped.

    The bytes depend on data set and settings alone, not on the number of workers.

    Args:
        data_set: Its folder, or the address of its ``manifest.json``.
        output: The export's folder: none yet, empty, or of the same export.
        settings: What to write.
        storage: How to reach both.
        workers: Processes that write parts. With 1 it is this one.
        progress: Told about samples, from this thread.

    Raises:
        SpecError: no such format or field, or the folder holds something else.
        ContractError: the format cannot hold a field.
        SetupError: the tokens were made with random weights, or a folder is closed.
        FingerprintMismatchError: the folder holds an export of another data set or settings.
        IntegrityError: a shard is not what manifest and index say.
        LeaseError: another export is at work on the folder.
        TransientError: a worker process was ended from outside.
    """
    storage = storage or Storage()
    task = _Task(open_data_set(data_set, storage), output, settings)
    task.check_random_weights()
    _is_begun(storage, output, task.plan())
    with Lease(storage, output) as held:
        if not _is_begun(storage, output, task.plan()):
            storage.write(join(output, PLAN), _json(task.plan()))
        storage.drop_uploads(output)
        records = _records(storage, output, len(task.parts))
        skipped = len(records)
        done = sum(record.num_samples for record in records.values())
        left = [number for number in range(len(task.parts)) if number not in records]
        count = _Count(done, task.num_samples, progress)
        write = _in_processes if workers > 1 and len(left) > 1 else _here
        for record in write(task, left, workers, count):
            held.check()
            records[record.part] = record
        ordered = [records[number] for number in range(len(task.parts))]
        files = ExportFiles(storage, output)
        task.format.finish(ordered, files)
        every = [file for record in ordered for file in record.files] + files.written
        held.check()
        storage.write(join(output, DONE), _json(task.provenance(ordered, every)))
    return ExportResult(output, task.num_samples, every, len(ordered), skipped)


class _Task:
    """The parts of an export. Each process makes its own."""

    def __init__(self, data_set: DataSet, output: str, settings: ExportSettings) -> None:
        if settings.format not in FORMATS:
            near = get_close_matches(settings.format, FORMATS, 1)
            raise SpecError(
                f"--to {settings.format}: no such format",
                hint=f"did you mean {near[0]!r}?" if near else f"choose of {', '.join(FORMATS)}",
            )
        kind = FORMATS[settings.format]
        manifest = data_set.manifest
        names = settings.fields or kind.default_fields(manifest)
        self.data_set, self.output, self.settings = data_set, output, settings
        self.fields = _chosen(manifest, names)
        self.format: ExportFormat = kind(manifest, self.fields)
        self.part_bytes = kind.part_bytes if settings.part_bytes is None else settings.part_bytes
        self.parts = _cut(data_set.shards["num_bytes"].to_numpy(), self.part_bytes)
        samples = data_set.shards["num_samples"].to_numpy()
        self._stops = np.concatenate(([0], np.cumsum(samples, dtype=np.int64)))

    @property
    def num_samples(self) -> int:
        return int(self._stops[-1])

    def check_random_weights(self) -> None:
        if self.data_set.manifest.random_weights and not self.settings.allow_random_weights:
            raise SetupError(
                f"{self.data_set.uri}: its tokens were made with random weights and mean nothing",
                hint="make them again with real weights, or pass --allow-random-weights",
            )

    def plan(self) -> dict[str, Any]:
        """Return what decides the bytes; a folder is of one plan."""
        manifest = self.data_set.manifest
        return {
            "version": VERSION,
            "format": self.settings.format,
            "fields": list(self.fields),
            "part_bytes": self.part_bytes,
            "parts": len(self.parts),
            "data_set": {
                "name": manifest.name,
                "fingerprint": manifest.fingerprint,
                "index_sha256": manifest.index_sha256,
            },
        }

    def write(self, number: int, progress: Callable[[int], None] | None = None) -> PartRecord:
        """Write a part and its record."""
        shards = self.parts[number]
        storage = self.data_set.storage
        part = ShardRange(
            self.data_set,
            list(self.fields),
            shards,
            number=number,
            count=len(self.parts),
            first_row=int(self._stops[shards.start]),
            progress=progress,
        )
        files = ExportFiles(storage, self.output)
        notes = self.format.write(part, files)
        num_samples = int(self._stops[shards.stop] - self._stops[shards.start])
        record = PartRecord(number, num_samples, files.written, notes)
        storage.write(join(self.output, _record_path(number)), _json(asdict(record)))
        return record

    def provenance(
        self, records: Sequence[PartRecord], files: Sequence[WrittenFile]
    ) -> dict[str, Any]:
        """Return what ``export.json`` says: what this is, and where it comes from."""
        manifest = self.data_set.manifest
        return {
            **self.plan(),
            "reader": self.format.reader,
            "samples": self.num_samples,
            "files": [asdict(file) for file in files],
            "notes": [record.notes for record in records],
            "fields": {name: asdict(spec) for name, spec in self.fields.items()},
            "recipe": manifest.recipe,
            "operators": manifest.operators,
            "libraries": manifest.libraries,
            "warnings": manifest.warnings,
            "random_weights": manifest.random_weights,
        }


class _Count:
    """Adds up samples for the progress."""

    def __init__(self, done: int, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = done, total, progress
        self.add(0)

    def add(self, num: int) -> None:
        self._done += num
        if self._progress is not None:
            self._progress(self._done, self._total)


def _here(task: _Task, parts: Sequence[int], _workers: int, count: _Count) -> Iterator[PartRecord]:
    for number in parts:
        yield task.write(number, count.add)


def _in_processes(
    task: _Task, parts: Sequence[int], workers: int, count: _Count
) -> Iterator[PartRecord]:
    """Write parts in processes of their own; what they wrote is recorded, whatever ends this."""
    before = set(multiprocessing.active_children())
    data = task.data_set
    pool = ProcessPoolExecutor(
        min(workers, len(parts)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(data.uri, data.storage, task.output, task.settings, task.plan()),
    )
    try:
        waiting = {pool.submit(_write_part, number) for number in parts}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                record = future.result()
                count.add(record.num_samples)
                yield record
    except BrokenProcessPool:
        raise TransientError(
            f"{task.output}: a process that wrote to it was ended from outside",
            hint="was there too little memory? Run the same command again, with fewer --workers",
        ) from None
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()  # a part may take minutes, and is not recorded before its end
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_task: _Task | None = None
"""Of a worker process."""


def _start_worker(
    uri: str, storage: Storage, output: str, settings: ExportSettings, plan: Mapping[str, Any]
) -> None:
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    global _task  # noqa: PLW0603 - a pool gives its workers no other place
    _task = _Task(open_data_set(uri, storage), output, settings)
    if _task.plan() != plan:
        raise IntegrityError(f"{uri}: changed while it was exported", hint="run it again")


def _end_with_parent() -> None:
    """End this process when its parent was killed: nobody would hand it anything any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_part(number: int) -> PartRecord:
    assert _task is not None
    return _task.write(number)


def _chosen(manifest: Manifest, names: Sequence[str]) -> dict[str, FieldSpec]:
    known = {KEY: KEY_SPEC, **{n: manifest.fields[n] for n in manifest.recipe["shards"]["fields"]}}
    for name in names:
        if name not in known:
            raise SpecError(
                f"--field {name}: the data set has no such field",
                hint=f"choose of {', '.join(known)}",
            )
    if len(set(names)) < len(names):
        raise SpecError(f"--field: {', '.join(names)}: one is named twice")
    return {name: known[name] for name in names}


def _cut(num_bytes: np.ndarray, limit: int) -> list[range]:
    """Put neighbouring shards together, up to a size; a data set without shards is one part."""
    if not limit or not len(num_bytes):
        return [range(len(num_bytes))]
    ends = np.cumsum(num_bytes, dtype=np.int64)
    parts, start, done = [], 0, 0
    while start < len(ends):
        stop = max(int(np.searchsorted(ends, done + limit, side="right")), start + 1)
        parts.append(range(start, stop))
        start, done = stop, int(ends[stop - 1])
    return parts


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
    numbers = [number for number in range(num_parts) if _record_path(number) in sizes]
    found = storage.read_many(join(output, _record_path(number)) for number in numbers)
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


def _record_path(number: int) -> str:
    return f"{FOLDER}/{number:07d}.json"


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
