"""The parts of an export, and the worker that writes them on any engine."""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from operators.base import FieldSpec
from pipeline.errors import IntegrityError, SetupError, SpecError
from pipeline.export.base import KEY, KEY_SPEC, ExportFormat, Part, PartRecord
from pipeline.export.files import ExportFiles, WrittenFile
from pipeline.export.formats import FORMATS
from pipeline.export.shards import ShardRange
from pipeline.manifest import DataSet, Manifest, open_data_set
from pipeline.protocols import (
    Partition,
    PartitionCounts,
    PartitionResult,
    Placement,
    Pull,
    Shard,
    SourceFile,
    SourceRange,
    StageCounts,
)
from pipeline.storage import Storage, join

VERSION = 1
FOLDER = "_export"


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


class ExportParts:
    """The parts of an export: what each holds, and how it is written.

    Args:
        data_set: What is exported.
        output: The export's folder.
        settings: What to write.

    Raises:
        SpecError: no such format or field.
        ContractError: the format cannot hold a field.
    """

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
        """Rows of the data set."""
        return int(self._stops[-1])

    def check_random_weights(self) -> None:
        """Raise SetupError when the tokens mean nothing, and nobody asked for such."""
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

    def partitions(self) -> list[Partition]:
        """Return the parts as an engine knows them, by their number."""
        sizes = self.data_set.shards["num_bytes"].to_numpy()
        return [
            Partition(number, (_range_of(shards, int(sizes[shards.start : shards.stop].sum())),))
            for number, shards in enumerate(self.parts)
        ]

    def write(self, number: int, progress: "_Progress") -> tuple[PartRecord, Sequence[Shard]]:
        """Write a part and its record; return the record, and its files as an engine knows them."""
        shards = self.parts[number]
        storage = self.data_set.storage
        part = ShardRange(
            self.data_set,
            list(self.fields),
            shards,
            number=number,
            count=len(self.parts),
            first_row=int(self._stops[shards.start]),
        )
        files = ExportFiles(storage, self.output)
        notes = self.format.write(_Counted(part, progress), files)
        num_samples = int(self._stops[shards.stop] - self._stops[shards.start])
        record = PartRecord(number, num_samples, files.written, notes)
        storage.write(join(self.output, record_path(number)), to_json(asdict(record)))
        return record, [Shard(f.path, f.num_bytes, f.sha256, 0, {}, ()) for f in files.written]

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


def _range_of(shards: range, num_bytes: int) -> SourceRange:
    name = f"shards {shards.start} to {shards.stop - 1}" if shards else "no shards"
    return SourceRange(SourceFile("", name, num_bytes), num_bytes)


@dataclass(frozen=True, slots=True)
class ExportTask:
    """What an export's workers must be told; an ``EngineTask``.

    Attributes:
        data_set: Folder of the data set, resolved.
        output: Folder of the export, resolved.
        storage: How to reach both.
        settings: What to write.
        plan: What the driver made of it: a worker refuses to write anything else.
        worker: A name for reports.
    """

    data_set: str
    output: str
    storage: Storage
    settings: ExportSettings
    plan: Mapping[str, Any]
    worker: str = "inline"

    @property
    def placement(self) -> Placement:
        """See ``EngineTask.placement``: one core each; no row may be left out."""
        return Placement()

    @property
    def shared_files(self) -> Mapping[str, Path]:
        """See ``EngineTask.shared_files``: a worker needs none."""
        return {}

    def named(self, worker: str) -> Self:
        """See ``EngineTask.named``."""
        return replace(self, worker=worker)

    def start(self, pull: Pull | None = None) -> "PartWorker":  # noqa: ARG002
        """See ``EngineTask.start``.

        Raises:
            IntegrityError: the data set here is not the one that the driver saw.
        """
        data_set = open_data_set(self.data_set, self.storage)
        parts = ExportParts(data_set, self.output, self.settings)
        if parts.plan() != self.plan:
            raise IntegrityError(
                f"{self.data_set}: {self.worker} sees another data set than the driver",
                hint="it changed while it was exported, or is not on a disk that all nodes share",
            )
        return PartWorker(parts, self.worker)


class PartWorker:
    """Writes parts one after another, in a thread of its own; a ``PartitionWorker``."""

    def __init__(self, parts: ExportParts, name: str) -> None:
        self._parts, self._name = parts, name
        self._running: dict[int, _Progress] = {}
        self._stopped = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="export")

    def submit(self, partition: Partition) -> "Future[PartitionResult]":
        """Queue a part, by its number; see ``PartitionWorker.submit``."""
        return self._thread.submit(self._write, partition.index)

    def progress(self) -> PartitionCounts:
        """Return what was done so far of the part at work."""
        return {number: counts.stages() for number, counts in list(self._running.items())}

    def close(self) -> None:
        """Stop after the record batch at work; what it was for leaves nothing behind."""
        self._stopped.set()
        self._thread.shutdown(cancel_futures=True)

    def _write(self, number: int) -> PartitionResult:
        progress = self._running[number] = _Progress(self._stopped)
        try:
            record, files = self._parts.write(number, progress)
        finally:
            del self._running[number]
        progress.finish(sum(file.num_bytes for file in files))
        return PartitionResult(
            partition=number,
            num_input=record.num_samples,
            num_written=record.num_samples,
            filtered={},
            quarantined={},
            shards=tuple(files),
            quarantine=None,
            golden=None,
            stages=progress.stages(),
            wall_s=progress.wall_s,
            worker=self._name,
        )


@dataclass(slots=True)
class _Progress:
    """What was done of a part: reading is the wait for its batches, writing all the rest."""

    stopped: threading.Event
    began: float = field(default_factory=time.perf_counter)
    samples: int = 0
    num_bytes: int = 0
    written_bytes: int = 0
    read_s: float = 0.0
    wall_s: float = 0.0

    def add(self, batch: pa.RecordBatch, read_s: float) -> None:
        self.samples += batch.num_rows
        self.num_bytes += batch.nbytes
        self.read_s += read_s
        self.wall_s = time.perf_counter() - self.began

    def finish(self, written_bytes: int) -> None:
        self.written_bytes = written_bytes
        self.wall_s = time.perf_counter() - self.began

    def stages(self) -> dict[str, StageCounts]:
        write_s = max(self.wall_s - self.read_s, 0.0)
        return {
            "read": StageCounts(self.samples, self.num_bytes, busy_s=self.read_s),
            "write": StageCounts(self.samples, self.written_bytes, busy_s=write_s),
        }


class _Counted:
    """A part whose batches are counted, and which ends when its worker is told to stop."""

    def __init__(self, part: Part, progress: _Progress) -> None:
        self.number, self.count, self.first_row = part.number, part.count, part.first_row
        self._part, self._progress = part, progress

    def batches(self) -> Iterator[pa.RecordBatch]:
        began = time.perf_counter()
        for batch in self._part.batches():
            if self._progress.stopped.is_set():
                raise SetupError("the worker was stopped")
            self._progress.add(batch, time.perf_counter() - began)
            yield batch
            began = time.perf_counter()


def record_path(number: int) -> str:
    """Return where the record of a part is kept, below the export's folder."""
    return f"{FOLDER}/{number:07d}.json"


def to_json(content: Mapping[str, Any]) -> bytes:
    """Return JSON for people: sorted keys, a final newline."""
    return (json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


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
