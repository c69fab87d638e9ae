"""What the parts of the engine promise each other."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np

from operators.base import Batch, FieldSpec


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One object of a source's listing.

    Attributes:
        uri: Where to read it.
        name: Path below the listing's fixed prefix: the same wherever the data lies, so it may
            stand in shards.
        num_bytes: Size at planning time.
        version: etag or modification time at planning time, "" when the store has neither.
    """

    uri: str
    name: str
    num_bytes: int
    version: str = ""


@dataclass(frozen=True, slots=True)
class SourceRange:
    """A file, or a range of a file's row groups.

    Attributes:
        file: The object.
        first: First row group, 0 for a whole file.
        stop: One past the last row group; None is the end of the file.
        first_row: Row number in the file of the range's first row.
        num_bytes: Bytes of the range, for scheduling.
    """

    file: SourceFile
    num_bytes: int
    first: int = 0
    stop: int | None = None
    first_row: int = 0


@dataclass(frozen=True, slots=True)
class Partition:
    """The unit of scheduling, retry, determinism, commit and shard naming.

    Attributes:
        index: Position in the plan, from 0.
        ranges: What to read, in order.
        max_samples: Stop after this many input samples; None reads all.
        masked: Rows, by position in the partition's input, that end the process that works on
            them: they are quarantined as they are read, and keep their slots. Found by the
            engine, never planned.
        only: The only rows to process, rising; None is all. The others are read past, and keep
            their slots.
        rest_from: With ``only``: all rows from here on are processed, too.
    """

    index: int
    ranges: tuple[SourceRange, ...]
    max_samples: int | None = None
    masked: tuple[int, ...] = ()
    only: tuple[int, ...] | None = None
    rest_from: int | None = None

    @property
    def num_bytes(self) -> int:
        """Input bytes."""
        return sum(r.num_bytes for r in self.ranges)

    @property
    def named(self) -> str:
        """Index and first files, for messages."""
        names = ", ".join(item.file.name for item in self.ranges[:3])
        more = f" and {len(self.ranges) - 3:,} more" if len(self.ranges) > 3 else ""
        return f"partition {self.index} ({names}{more})"


@dataclass(frozen=True, slots=True)
class Rejected:
    """One sample that could not be used.

    Attributes:
        row: Position in the partition's input, from 0.
        key: The sample's key.
        uri: File it came from (``SourceFile.name``).
        step: ``read`` or the operator's name.
        error: Class of the error, e.g. ``SampleError``.
        reason: What was found, one line.
        payload: The sample's original fields, when the job asks to keep them.
        file_row: Row number in that file, from 0; None in what older versions wrote.
    """

    row: int
    key: str
    uri: str
    step: str
    error: str
    reason: str
    payload: Mapping[str, bytes] | None = None
    file_row: int | None = None


@dataclass(slots=True)
class SampleBlock:
    """Consecutive input samples of one partition, as read.

    The block covers input rows ``first_row .. first_row + num_samples``; those in ``rejected`` have
    no row in the columns, all others do, in order.

    Attributes:
        first_row: Position of the block's first sample in the partition's input.
        rows: int64 [N], the input position of each column row.
        columns: Fields, N rows each, with ``key`` (large_string) among them.
        file_name: The file that all samples of the block come from; where every sample is a file
            of its own, the folder that holds all files of the partition ("" is the listing's
            root). It stands in shards, so it may not depend on where blocks are cut.
        num_samples: Samples covered: N + len(rejected).
        num_bytes: Bytes read for it.
        rejected: Samples that could not be read.
    """

    first_row: int
    rows: np.ndarray
    columns: Batch
    file_name: str
    num_samples: int
    num_bytes: int
    rejected: list[Rejected] = field(default_factory=list)


class Source(Protocol):
    """Lists partitions and reads their samples, both in a stable order; O(1) samples in memory."""

    @property
    def chunk_size(self) -> int:
        """Samples worth handing on at a time: few when each is a file, many when each is a row."""
        ...

    @property
    def fields(self) -> Mapping[str, FieldSpec]:
        """The fields of a sample, without ``key``."""
        ...

    def list_partitions(self) -> Iterator[Partition]:
        """Turn the sorted listing into partitions. Called once per data set, by the planner.

        Raises:
            SetupError: nothing matches, or credentials are missing.
        """
        ...

    def count_samples(self, partition: Partition, at_most: int) -> int:
        """Count the samples that ``read`` would cover, without reading them where possible.

        Stops at ``at_most``. Errors as ``read``.
        """
        ...

    def read(self, partition: Partition, block_rows: int) -> Iterator[SampleBlock]:
        """Yield the partition's samples, up to ``block_rows`` input samples a block.

        Blocks are cut every ``block_rows`` input samples of a file (never across files, unless
        every sample is a file of its own), and sooner when they grow large: where they are cut
        changes nothing that is written.

        Raises:
            TransientError: the store did not answer, or answered with fewer bytes.
            IntegrityError: the object is not the one that was planned.
        """
        ...


@dataclass(frozen=True, slots=True)
class RowRange:
    """Consecutive input rows of one source file.

    Attributes:
        name: ``SourceFile.name``.
        first: First row, counted in the file.
        stop: One past the last row.
    """

    name: str
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One written file of the data set.

    Attributes:
        path: Relative to the output folder.
        num_bytes: Size.
        sha256: Of the bytes, hex.
        num_samples: Rows.
        tokens: Token field -> ids in it (scalars, all streams together).
        sources: Input rows that its rows come from, in order.
    """

    path: str
    num_bytes: int
    sha256: str
    num_samples: int
    tokens: Mapping[str, int]
    sources: tuple[RowRange, ...]


@dataclass(frozen=True, slots=True)
class GoldenSample:
    """A written row by which ``verify`` tells that the operators still give the same ids.

    Attributes:
        partition: Where it was read.
        row: Position in the partition's input.
        key: The sample's key.
        fields: Token field -> number of ids, SHA-256 of their bytes, and the first few.
    """

    partition: int
    row: int
    key: str
    fields: Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class StageCounts:
    """What one stage did.

    Attributes:
        samples: Samples it finished.
        num_bytes: Bytes it read (read), took in (operators) or wrote (write).
        tokens: Ids it produced.
        busy_s: Seconds of work, summed over its threads.
        starved_s: Seconds it waited for input.
        blocked_s: Seconds it waited for room behind it.
        threads: Threads it may use.
        steps: Operator -> busy seconds, for a stage of several operators.
    """

    samples: int = 0
    num_bytes: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    starved_s: float = 0.0
    blocked_s: float = 0.0
    threads: int = 1
    steps: Mapping[str, float] = field(default_factory=dict)


PartitionCounts = Mapping[int, Mapping[str, StageCounts]]
"""Partition -> stage -> what was done in it so far."""


def add_counts(
    a: Mapping[str, StageCounts], b: Mapping[str, StageCounts]
) -> dict[str, StageCounts]:
    """Add the counts of two sets of partitions, stage by stage."""
    total = dict(a)
    for name, counts in b.items():
        have = total.get(name, StageCounts(threads=counts.threads))
        steps = Counter(have.steps)
        steps.update(counts.steps)
        total[name] = StageCounts(
            samples=have.samples + counts.samples,
            num_bytes=have.num_bytes + counts.num_bytes,
            tokens=have.tokens + counts.tokens,
            busy_s=have.busy_s + counts.busy_s,
            starved_s=have.starved_s + counts.starved_s,
            blocked_s=have.blocked_s + counts.blocked_s,
            threads=max(have.threads, counts.threads),
            steps=dict(steps),
        )
    return total


@dataclass(frozen=True, slots=True)
class PartitionResult:
    """What became of one partition: the content of its commit record.

    ``num_input == num_written + num_filtered + num_quarantined``.

    Attributes:
        partition: Index in the plan.
        num_input: Samples read.
        num_written: Rows in the shards.
        filtered: ``filter: reason`` -> samples.
        quarantined: ``step: error`` -> samples.
        shards: What was written.
        quarantine: The quarantine file, or None when it is empty.
        golden: The first written row.
        stages: Stage name -> counts.
        wall_s: Seconds from the first read to the last write.
        worker: Which worker did it.
    """

    partition: int
    num_input: int
    num_written: int
    filtered: Mapping[str, int]
    quarantined: Mapping[str, int]
    shards: tuple[Shard, ...]
    quarantine: "QuarantineFile | None"
    golden: GoldenSample | None
    stages: Mapping[str, StageCounts]
    wall_s: float
    worker: str

    @property
    def num_filtered(self) -> int:
        """Samples that filters dropped."""
        return sum(self.filtered.values())

    @property
    def num_quarantined(self) -> int:
        """Samples that could not be used."""
        return sum(self.quarantined.values())


@dataclass(frozen=True, slots=True)
class QuarantineFile:
    """The rejected samples of one partition, as JSON lines.

    Attributes:
        path: Relative to the output folder.
        num_bytes: Size.
        sha256: Of the bytes, hex.
        num_samples: Lines.
    """

    path: str
    num_bytes: int
    sha256: str
    num_samples: int


class Sink(Protocol):
    """Writes one partition's rows to whole shards; the same rows give the same bytes."""

    def write(self, columns: Batch, files: np.ndarray, rows: np.ndarray) -> None:
        """Append rows, in order.

        Args:
            columns: The output fields and ``key``; N rows each; numpy, Ragged or pyarrow.
            files: int32 [N], which of the sink's source files each row was read from.
            rows: int64 [N], row number in that file.
        """
        ...

    def close(self) -> Sequence[Shard]:
        """Finish the last shard and return all of them."""
        ...

    def abort(self) -> None:
        """Drop what was written; called instead of ``close``."""
        ...


@dataclass(frozen=True, slots=True)
class JobState:
    """How a job on a cluster stands.

    Attributes:
        status: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``.
        why: What the cluster says of it.
        exit_code: Of its driver, once that has ended by itself.
    """

    status: str
    why: str = ""
    exit_code: int | None = None

    @property
    def has_ended(self) -> bool:
        """True when nothing more will come of it."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(slots=True)
class AttemptCounts:
    """What an engine had to do again.

    Attributes:
        failed: Attempts at a partition that failed: storage, a death, a hanging worker.
        retried: Partitions given out again after that.
        second: Second attempts at what took too long.
    """

    failed: int = 0
    retried: int = 0
    second: int = 0


Pull = Callable[[str], Iterable[bytes | memoryview]]
"""SHA-256 of a file that the driver has -> its bytes, piece by piece."""


class PartitionWorker(Protocol):
    """Processes partitions one after another, in threads of its own. One caller submits."""

    def submit(self, partition: Partition) -> "Future[PartitionResult]":
        """Queue a partition; the future gives its result, or the error that stopped it."""
        ...

    def progress(self) -> PartitionCounts:
        """Return what was done so far in the partitions that are not finished."""
        ...

    def close(self) -> None:
        """Stop; partitions that are not finished are dropped."""
        ...


@runtime_checkable
class RowWorker(PartitionWorker, Protocol):
    """A worker that can leave rows out, so that one which ends the process can be searched for."""

    def probe(self, partition: Partition, rows: range) -> "Future[PartitionResult]":
        """Work on these rows alone and write nothing, to see whether the process lives."""
        ...

    def count(self, partition: Partition) -> int:
        """Return how many rows a partition has."""
        ...


@dataclass(frozen=True, slots=True)
class Placement:
    """How an engine is to place workers and treat what they have.

    Attributes:
        max_attempts: Attempts at a partition when storage fails or its worker dies.
        deadline_s: Seconds without progress after which a worker is taken to hang; None measures.
        accelerator_type: Kind of accelerator that a worker's node must have.
        worker_memory_bytes: What a worker may use.
        resources: What else it needs of the cluster's own kinds.
        search_rows: Search a partition that ends its workers for the row that does so, and go on
            without it; the workers are ``RowWorker``. False gives such a partition up.
    """

    max_attempts: int = 5
    deadline_s: float | None = None
    accelerator_type: str | None = None
    worker_memory_bytes: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    search_rows: bool = False


class EngineTask(Protocol):
    """What the workers of an engine do; picklable."""

    @property
    def placement(self) -> Placement:
        """How they are placed."""
        ...

    @property
    def shared_files(self) -> Mapping[str, Path]:
        """Files of the driver's node that others may lack, by their SHA-256."""
        ...

    def named(self, worker: str) -> Self:
        """Return the task of one worker, by its name for logs and reports."""
        ...

    def start(self, pull: Pull | None = None) -> PartitionWorker:
        """Make a worker, in the process that it is to work in.

        Args:
            pull: How to get the shared files when this node does not have them.
        """
        ...


class Engine(Protocol):
    """Runs every partition at least once and yields results as they come.

    Decides where, never what: any two engines give equal shards.
    """

    @property
    def num_workers(self) -> int:
        """Workers at work now."""
        ...

    def run(self, partitions: Sequence[Partition]) -> Iterator[PartitionResult | None]:
        """Process partitions, in any order.

        Yields None every second or so in which nothing is done, so that the caller is never kept
        from looking after the run.

        Raises:
            TokenmillError: what ended the run; ``exit_code`` says which kind.
        """
        ...

    def progress(self) -> Mapping[str, StageCounts]:
        """Return what the workers have done so far in partitions not yet yielded."""
        ...

    def attempts(self) -> AttemptCounts:
        """Return what had to be done again so far."""
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...


class Listener(Protocol):
    """Hears of a run's progress; all calls come from the thread that called ``run``."""

    def waiting(self, message: str) -> None:
        """Another run may be at work on the output; this one waits to see."""
        ...

    def decided(self, warning: str) -> None:
        """The run, or the one before it, took another setting than the job says; why."""
        ...

    def begin(self, partitions: Sequence[Partition], done: Set[int], engine: Engine) -> None:
        """The plan is made and the ledger is read; ``done`` are partitions of earlier runs.

        Comes again when the run decides to begin anew: nothing that was told before counts then.
        """
        ...

    def committed(self, result: PartitionResult) -> None:
        """A partition is done; its commit may follow a moment later."""
        ...
