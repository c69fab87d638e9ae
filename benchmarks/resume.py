"""How long a resume of a million partitions takes, and what the driver's memory is meanwhile.

Writes a plan and a ledger of realistic records with the program's own code, then reads them as a
resume does, in a process of its own, and builds index and manifest's figures as the end of a run
does. Every request to the store waits for ``--latency-ms`` first, as an object store would make it.

    python benchmarks/resume.py --partitions 1000000
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.ledger import Ledger
from pipeline.manifest import GoldenSamples, index_bytes
from pipeline.plan import plan_digest, read_plan, write_plan
from pipeline.protocols import (
    GoldenSample,
    Partition,
    PartitionResult,
    RowRange,
    Shard,
    SourceFile,
    SourceRange,
    StageCounts,
)
from pipeline.report.summary import Sums
from pipeline.storage import Entry, Storage

FINGERPRINT = "f" * 64
DONE = 0.999
"""Share of the partitions that are committed."""


def partition(index: int) -> Partition:
    name = f"train/part-{index // 1000:04d}/{index:07d}.tar"
    etag = f"{random.getrandbits(128):032x}"
    file = SourceFile(f"s3://some-bucket/some-corpus/{name}", name, 10**9 + index, etag)
    return Partition(index, (SourceRange(file, 10**9 + index),))


def result(index: int, clock: random.Random) -> PartitionResult:
    """Return the record of a partition of 10,000 images with captions."""

    def counts(**steps: float) -> StageCounts:
        waits = (clock.uniform(0, 9), clock.uniform(0, 9), clock.uniform(0, 9))
        return StageCounts(9_998, 10**9 + index, 2_570_000, *waits, threads=4, steps=steps)

    digest = f"{clock.getrandbits(256):064x}"
    golden = {
        name: {"num": 256, "sha256": digest, "head": [clock.randrange(64_000) for _ in range(8)]}
        for name in ("image_tokens", "caption_tokens")
    }
    return PartitionResult(
        partition=index,
        num_input=10_000,
        num_written=9_998,
        filtered={"length_filter: too_short": 1},
        quarantined={"decode_image: SampleError": 1},
        shards=(
            Shard(
                f"shards/{index:07d}-000.arrow",
                5_140_000 + index,
                digest,
                9_998,
                {"image_tokens": 2_559_488, "caption_tokens": 310_000},
                (RowRange(f"train/part-{index // 1000:04d}/{index:07d}.tar", 0, 10_000),),
            ),
        ),
        quarantine=None,
        golden=GoldenSample(index, 0, f"sample-{index}-0", golden),
        stages={
            "read": counts(),
            "cpu": counts(decode_image=clock.random(), resize=clock.random(), crop=clock.random()),
            "device": counts(flextok=clock.random()),
            "write": counts(),
        },
        wall_s=clock.uniform(10, 600),
        worker=f"worker-{clock.randrange(10_000)}",
    )


class SlowStorage(Storage):
    """Makes every request wait, as an object store does; a listing waits for every 1,000 names."""

    def __init__(self, latency_s: float) -> None:
        super().__init__()
        self._latency_s = latency_s

    def read(self, uri: str) -> bytes:
        time.sleep(self._latency_s)
        return super().read(uri)

    def walk(self, uri: str) -> Iterator[Entry]:
        for number, entry in enumerate(super().walk(uri)):
            if number % 1000 == 0:
                time.sleep(self._latency_s)
            yield entry


def write(folder: str, num_partitions: int, num_segments: int) -> None:
    storage, clock = Storage(), random.Random(0)
    write_plan(storage, folder, [partition(index) for index in range(num_partitions)])
    ledger = Ledger(storage, folder, FINGERPRINT)
    order = list(range(num_partitions))
    clock.shuffle(order)
    order = order[: int(DONE * num_partitions)]
    size = -(-len(order) // num_segments)
    for first in range(0, len(order), size):
        ledger.commit([result(index, clock) for index in order[first : first + size]])


def peak_mb() -> int:
    """Return the most memory that this process held; ``ru_maxrss`` would count its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) // 1000


def measure(folder: str, latency_s: float) -> dict[str, float]:
    """Read plan and ledger as ``runner.run`` does, then what its end reads."""
    storage = SlowStorage(latency_s)
    found: dict[str, float] = {}

    def timed(name: str, action: Callable[[], object]) -> None:
        begin = time.perf_counter()
        action()
        found[f"{name}_s"] = round(time.perf_counter() - begin, 2)
        found[f"{name}_peak_mb"] = peak_mb()

    ledger = Ledger(storage, folder, FINGERPRINT)
    partitions: list[Partition] = []
    pending: list[Partition] = []
    num_input = 0

    def count(record: PartitionResult) -> None:
        nonlocal num_input
        num_input += record.num_input

    timed("nothing", lambda: None)
    timed("plan", lambda: partitions.extend(read_plan(storage, folder)))
    timed("plan_digest", lambda: plan_digest(partitions))
    timed("ledger", lambda: ledger.load(count))
    timed(
        "pending", lambda: pending.extend(p for p in partitions if p.index not in ledger.committed)
    )
    assert len(partitions) == len(ledger.committed) + len(pending)
    found["num_partitions"] = len(partitions)
    found["num_pending"] = len(pending)
    found["num_segments"] = ledger.num_segments
    sums, golden = Sums(), GoldenSamples(len(partitions))

    def tapped() -> Iterator[PartitionResult]:
        for record in ledger.records():
            sums.add(record)
            golden.add(record)
            yield record

    timed("finish", lambda: index_bytes(tapped(), ["image_tokens", "caption_tokens"]))
    assert sums.num_input == num_input
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--partitions", type=int, default=1_000_000)
    parser.add_argument("--segments", type=int, default=5_000)
    parser.add_argument("--latency-ms", type=float, default=30.0)
    parser.add_argument("--folder", help="Keep plan and ledger here, and use what is there.")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.folder, given.latency_ms / 1000)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or scratch
        if not (Path(folder) / "_plan.jsonl").exists():
            begin = time.perf_counter()
            write(folder, given.partitions, given.segments)
            print(f"wrote plan and ledger in {time.perf_counter() - begin:.0f} s")
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"plan and ledger: {size / 1e6:,.0f} MB")
        command = [sys.executable, __file__, "--measure", "--folder", folder]
        done = subprocess.run(
            [*command, "--latency-ms", str(given.latency_ms)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = json.loads(done.stdout)
        for name, value in found.items():
            print(f"{name:>22}  {value:,}")
        parts = ("plan", "plan_digest", "ledger", "pending")
        print(f"{'resume_s':>22}  {sum(found[f'{part}_s'] for part in parts):,.2f}")


if __name__ == "__main__":
    main()
