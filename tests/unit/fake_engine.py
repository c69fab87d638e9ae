"""An engine that works on nothing, and partitions with their results, for those who listen."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.protocols import (
    AttemptCounts,
    Partition,
    PartitionResult,
    SourceFile,
    SourceRange,
    StageCounts,
)


class FakeEngine:
    """Has two workers, at work on whatever ``running`` says."""

    def __init__(self, running: Mapping[str, StageCounts]) -> None:
        self.running = running
        self.tried = AttemptCounts()

    @property
    def num_workers(self) -> int:
        return 2

    def run(self, partitions: Sequence[Partition]) -> Iterator[PartitionResult]:
        yield from ()

    def progress(self) -> Mapping[str, StageCounts]:
        return self.running

    def attempts(self) -> AttemptCounts:
        return self.tried

    def close(self) -> None:
        pass


def partition(index: int) -> Partition:
    file = SourceFile(f"a-{index}", f"a-{index}", 1000)
    return Partition(index, (SourceRange(file, 1000),))


def counts(samples: int, num_bytes: int) -> dict[str, StageCounts]:
    return {
        "read": StageCounts(samples, num_bytes, busy_s=1.0),
        "cpu": StageCounts(samples, num_bytes, busy_s=4.0, steps={"resize": 3.0, "crop": 1.0}),
        "write": StageCounts(samples, num_bytes, tokens=256 * samples, busy_s=0.1, starved_s=1.0),
    }


def result(
    index: int, quarantined: int = 0, stages: Mapping[str, StageCounts] | None = None
) -> PartitionResult:
    return PartitionResult(
        partition=index,
        num_input=10,
        num_written=10 - quarantined,
        filtered={},
        quarantined={"decode_image: SampleError": quarantined} if quarantined else {},
        shards=(),
        quarantine=None,
        golden=None,
        stages=counts(10, 1000) if stages is None else stages,
        wall_s=1.0,
        worker="w",
    )
