"""Rows on their way through a worker, and what is known of the partition they belong to."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa

from operators.base import Batch, Column, FieldSpec, Ragged, Verdict
from operators.columns import take
from pipeline.errors import IntegrityError, PoisonSampleError, SampleError
from pipeline.protocols import (
    GoldenSample,
    Partition,
    PartitionResult,
    QuarantineFile,
    Rejected,
    SampleBlock,
    Shard,
    Sink,
    StageCounts,
)

GOLDEN_HEAD = 16
ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class Block:
    """Rows of one partition; the last block of a partition may be empty.

    Attributes:
        state: The partition.
        rows: int64 [N], positions in the partition's input.
        files: int32 [N], positions in the partition's ``file_names``.
        file_rows: int64 [N], row numbers in that file.
        columns: N rows each.
        dead: int64, positions of quarantined samples among these rows: they keep their slots in
            device batches.
        last: Nothing of this partition comes after it.
    """

    state: "PartitionState"
    rows: np.ndarray
    files: np.ndarray
    file_rows: np.ndarray
    columns: dict[str, Column]
    dead: np.ndarray
    last: bool = False

    @property
    def num_rows(self) -> int:
        """Rows that are alive."""
        return len(self.rows)

    def mask(self) -> None:
        """Take out the rows that nothing may be done with; their slots stay.

        These are the partition's ``masked`` rows, which go to the quarantine, and silently all
        rows but those that are asked for.
        """
        partition = self.state.partition
        wanted = self.state.are_wanted(self.rows)
        if not wanted.all():
            self.dead = np.concatenate([self.dead, self.rows[~wanted]])
            self.select(np.flatnonzero(wanted))
        if partition.masked and self.num_rows:
            bad = np.flatnonzero(np.isin(self.rows, partition.masked))
            if len(bad):
                self.reject("worker", {int(row): PoisonSampleError(_POISON) for row in bad})

    def select(self, index: np.ndarray) -> None:
        """Keep only the rows at ``index``."""
        self.rows, self.files = self.rows[index], self.files[index]
        self.file_rows = self.file_rows[index]
        self.columns = {name: take(column, index) for name, column in self.columns.items()}

    def reject(self, step: str, errors: Mapping[int, SampleError]) -> None:
        """Quarantine the rows at the given positions of this block; their slots stay."""
        self.state.reject(step, self, errors)
        bad = np.fromiter(errors, np.int64, len(errors))
        self.dead = np.concatenate([self.dead, self.rows[bad]])
        self.select(np.setdiff1d(np.arange(self.num_rows), bad))


_POISON = "the process that works on it dies (found by trying parts of its partition)"


class PartitionState:
    """What is known of a partition while it is processed. Stages add to it under a lock.

    Args:
        partition: The partition.
        threads: Stage -> how many it has.
        payload_fields: Fields to keep of samples that cannot be used.
        probed: Work on these rows alone and write nothing: all others are masked.
    """

    def __init__(
        self,
        partition: Partition,
        threads: Mapping[str, int],
        payload_fields: Sequence[str] = (),
        probed: range | None = None,
    ) -> None:
        self.partition = partition
        self.probed = probed
        self.future: Future[PartitionResult] = Future()
        self.error: BaseException | None = None
        self.rejected: list[Rejected] = []
        self.filtered: Counter[str] = Counter()
        self.file_names: list[str] = []  # in the order of reading; blocks refer to positions
        self.num_input = 0
        self.num_written = 0
        self.sink: Sink | None = None
        self.shards: Sequence[Shard] = ()
        self.quarantine: QuarantineFile | None = None
        self.golden: GoldenSample | None = None
        self._payload_fields = payload_fields
        self._lock = threading.Lock()
        self._counts = {name: _Counts(threads=number) for name, number in threads.items()}
        self._started = time.perf_counter()

    def start(self) -> None:
        """Start the partition's clock."""
        self._started = time.perf_counter()

    def guard(self, work: Callable[..., ResultT], *args: object) -> ResultT | None:
        """Do a stage's work unless the partition has failed; an error fails it."""
        if self.error is None:
            try:
                return work(*args)
            except BaseException as error:  # no stage may stop: others wait for its answer
                self.fail(error)
        return None

    def are_wanted(self, rows: np.ndarray) -> np.ndarray:
        """Return bool [N]: which rows of the partition's input are asked for."""
        wanted = np.ones(len(rows), bool)
        if self.partition.only is not None:
            wanted = np.isin(rows, self.partition.only)
            if self.partition.rest_from is not None:
                wanted |= rows >= self.partition.rest_from
        if self.probed is not None:
            wanted &= (rows >= self.probed.start) & (rows < self.probed.stop)
        return wanted

    @property
    def stop(self) -> int | None:
        """One past the last row that is asked for; None is the end of the partition."""
        if self.probed is not None:
            return self.probed.stop
        partition = self.partition
        if partition.only is None or partition.rest_from is not None:
            return None
        return max(partition.only, default=-1) + 1

    def check_reached(self) -> None:
        """Make sure that all rows that the partition names were there: none may be lost unseen.

        Raises:
            IntegrityError: the input ends before.
        """
        partition = self.partition
        if partition.only is None or self.probed is not None:
            return
        least = len(partition.only) + (partition.rest_from is not None)
        if self.num_input < least:
            last = max([*partition.only, partition.rest_from or 0])
            raise IntegrityError(
                f"{partition.named}: {self.num_input:,} of {least:,} rows that are to be tried "
                f"again are there; the last is row {last:,} of the file",
                hint="the file was replaced by a shorter one; put one with all its rows there",
            )

    def add_input(self, block: SampleBlock, shift: int) -> None:
        """Count the samples of a block as read, some of them as unusable.

        Args:
            block: As the source gave it.
            shift: From a position in the partition to a row number in the block's file.
        """
        first, stop = block.first_row, block.first_row + block.num_samples
        samples = int(self.are_wanted(np.arange(first, stop)).sum())
        found = np.array([item.row for item in block.rejected], np.int64)
        wanted = self.are_wanted(found)
        rejected = [
            replace(item, file_row=item.row + shift)
            for item, is_in in zip(block.rejected, wanted, strict=True)
            if is_in
        ]
        if not self._payload_fields:
            rejected = [replace(item, payload=None) for item in rejected]
        with self._lock:
            self.num_input += samples
            self.rejected += rejected

    def fail(self, error: BaseException) -> None:
        """Stop the partition; the first error counts."""
        with self._lock:
            self.error = self.error or error

    def count(
        self,
        stage: str,
        started: float,
        samples: int = 0,
        num_bytes: int = 0,
        tokens: int = 0,
        steps: Mapping[str, float] | None = None,
    ) -> None:
        """Add to a stage's counts: busy seconds since ``started``, and what was done in them."""
        busy_s = time.perf_counter() - started
        with self._lock:
            counts = self._counts[stage]
            counts.busy_s += busy_s
            counts.samples += samples
            counts.num_bytes += num_bytes
            counts.tokens += tokens
            counts.steps.update(steps or {})

    def finish(self, waits: Mapping[str, tuple[float, float]], worker: str) -> None:
        """Set the future: the result, or the error after dropping what was written.

        Args:
            waits: Stage -> seconds starved and blocked.
            worker: Who did it.
        """
        if self.error is not None:
            if self.sink is not None:
                with suppress(Exception):  # what stopped the partition is what counts
                    self.sink.abort()
            self.future.set_exception(self.error)
            return
        for stage, (starved_s, blocked_s) in waits.items():
            self._counts[stage].starved_s = starved_s
            self._counts[stage].blocked_s = blocked_s
        self.future.set_result(self._result(worker))

    def drop(self, step: str, verdict: Verdict) -> None:
        """Count what a filter drops, by reason."""
        names = Counter(verdict.codes[verdict.codes > 0].tolist())
        with self._lock:
            for code, number in names.items():
                self.filtered[f"{step}: {verdict.reasons[code - 1]}"] += number

    def reject(self, step: str, block: Block, errors: Mapping[int, SampleError]) -> None:
        """Note rows of a block as unusable; see ``Block.reject``."""
        found = []
        for i, error in errors.items():
            payload = _payload(block.columns, self._payload_fields, i)
            found.append(
                Rejected(
                    row=int(block.rows[i]),
                    key=block.columns["key"][i].as_py(),
                    uri=self.file_names[block.files[i]],
                    step=step,
                    error=type(error).__name__,
                    reason=str(error),
                    payload=payload or None,
                    file_row=int(block.file_rows[i]),
                )
            )
        with self._lock:
            self.rejected += found

    def snapshot(self) -> dict[str, StageCounts]:
        """Return the counts so far."""
        with self._lock:
            return {name: counts.freeze() for name, counts in self._counts.items()}

    def _result(self, worker: str) -> PartitionResult:
        quarantined = Counter(f"{item.step}: {item.error}" for item in self.rejected)
        return PartitionResult(
            partition=self.partition.index,
            num_input=self.num_input,
            num_written=self.num_written,
            filtered=dict(sorted(self.filtered.items())),
            quarantined=dict(sorted(quarantined.items())),
            shards=tuple(self.shards),
            quarantine=self.quarantine,
            golden=self.golden,
            stages=self.snapshot(),
            wall_s=time.perf_counter() - self._started,
            worker=worker,
        )


def golden_sample(block: Block, output: Mapping[str, FieldSpec]) -> GoldenSample:
    """Return what ``verify`` needs to check the block's first row."""
    fields = {
        name: row_digest(block.columns[name][0])
        for name, spec in output.items()
        if spec.vocab_size is not None
    }
    key = block.columns["key"][0].as_py()
    return GoldenSample(block.state.partition.index, int(block.rows[0]), key, fields)


def row_digest(ids: np.ndarray) -> dict[str, object]:
    """Return what a golden sample keeps of one row's ids: count, SHA-256, and the first few."""
    flat = np.ascontiguousarray(ids).reshape(-1)
    digest = hashlib.sha256(flat.tobytes()).hexdigest()
    return {"num": int(flat.size), "sha256": digest, "head": flat[:GOLDEN_HEAD].tolist()}


def empty_column(spec: FieldSpec) -> Column:
    """Return a column of no rows."""
    if spec.dtype == "pillow":
        return []
    if not spec.is_numeric:
        return pa.array([], pa.large_string() if spec.dtype == "string" else pa.large_binary())
    if spec.is_ragged:
        values = np.zeros((0, *(n or 0 for n in spec.shape[1:])), spec.dtype)
        return Ragged(values, np.zeros(1, np.int64))
    return np.zeros((0, *(n or 0 for n in spec.shape)), spec.dtype)


@dataclass(slots=True)
class _Counts:
    threads: int
    samples: int = 0
    num_bytes: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    starved_s: float = 0.0
    blocked_s: float = 0.0
    steps: Counter[str] = field(default_factory=Counter)

    def freeze(self) -> StageCounts:
        return StageCounts(
            samples=self.samples,
            num_bytes=self.num_bytes,
            tokens=self.tokens,
            busy_s=round(self.busy_s, 6),
            starved_s=round(self.starved_s, 6),
            blocked_s=round(self.blocked_s, 6),
            threads=self.threads,
            steps={name: round(float(s), 6) for name, s in self.steps.items()},
        )


def _payload(columns: Batch, names: Sequence[str], row: int) -> dict[str, bytes]:
    found = {}
    for name in names:
        value = columns[name][row]
        value = value.as_py() if hasattr(value, "as_py") else json.dumps(np.asarray(value).tolist())
        found[name] = value if isinstance(value, bytes) else value.encode()
    return found
