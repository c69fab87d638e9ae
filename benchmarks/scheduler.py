"""What the driver's decisions cost: a million partitions on ten thousand simulated workers.

The schedule of the Ray engine decides, with simulated time and without Ray: workers take as long as
a partition is large, give or take; some die, some are slow, storage fails now and then.

    python benchmarks/scheduler.py
    python benchmarks/scheduler.py --partitions 100000 --workers 1000
    python benchmarks/scheduler.py --ray     # what Ray takes to wait for that many calls
"""

import argparse
import heapq
import platform
import random
import resource
import statistics
import sys
import time
from itertools import count

from pipeline.engines.schedule import Schedule, Work
from pipeline.errors import TransientError
from pipeline.protocols import Partition, PartitionResult, Shard, SourceFile, SourceRange

LOOK_EVERY_S = 5.0
Event = tuple[float, int, str, Work | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--partitions", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", action="store_true", help="time Ray's side of the driver's loop")
    args = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    if args.ray:
        wait_for_many(2 * args.workers)
        return
    rng = random.Random(args.seed)
    partitions = [_partition(i, rng) for i in range(args.partitions)]
    print(f"plan of {len(partitions):,} partitions: {peak_mb():,.0f} MB")
    began = time.perf_counter()
    decisions, simulated_s, schedule = simulate(partitions, args.workers, rng)
    took_s = time.perf_counter() - began
    counts = schedule.counts
    print(
        f"{decisions:,} decisions in {took_s:.1f} s: {decisions / took_s:,.0f} a second "
        f"(events of the simulation included)\n"
        f"simulated {simulated_s / 3600:.1f} h on {args.workers:,} workers, "
        f"{counts.failed:,} failed attempts, {counts.second:,} second attempts\n"
        f"peak memory of the process: {peak_mb():,.0f} MB"
    )


def simulate(
    partitions: list[Partition], num_workers: int, rng: random.Random
) -> tuple[int, float, Schedule]:
    """Play workers until nothing is left; return decisions, simulated seconds and the schedule."""
    schedule = Schedule(partitions, max_attempts=20)
    numbers = count()
    events: list[Event] = []
    speed: dict[str, float] = {}

    def start_worker(now: float) -> None:
        name = f"w{next(numbers)}"
        speed[name] = 10.0 if rng.random() < 0.001 else rng.uniform(0.9, 1.1)
        schedule.add_worker(name, now)

    for _ in range(num_workers):
        start_worker(0.0)
    now, decisions, looked_at = 0.0, 0, 0.0
    while schedule.left:
        for name, work in schedule.assign(now):
            decisions += 1
            took_s = work.partition.num_bytes / 1e7 * speed[name] * rng.uniform(0.95, 1.05)
            heapq.heappush(events, (now + took_s, next(numbers), name, work))
        if not events:
            now += 1.0  # all that is left waits for its next attempt
            continue
        now, _, name, done = heapq.heappop(events)
        if name not in speed or done is None:
            continue  # its worker died before
        chance = rng.random()
        if chance < 0.0002:
            schedule.remove_worker(name, "lost", blame=False)
            del speed[name]
            start_worker(now)
        elif chance < 0.001:
            schedule.failed(name, done, TransientError("no answer"), now)
        else:
            answer = _result(done.partition, name, now) if done.kind == "whole" else 1
            schedule.succeeded(name, done, answer, now)
        if now - looked_at > LOOK_EVERY_S:
            looked_at = now
            for each in speed:
                schedule.progressed(each, now)
            schedule.hanging(now)
    return decisions, now, schedule


def wait_for_many(num_calls: int) -> None:
    """Time one look of the driver at its outstanding calls, and the calls themselves."""
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)

    @ray.remote(num_cpus=0, max_concurrency=1)
    class Busy:
        def work(self, seconds: float) -> None:
            time.sleep(seconds)

    busy, quick = Busy.remote(), Busy.remote()  # type: ignore[attr-defined]
    ray.get(quick.work.remote(0.0))
    began = time.perf_counter()
    refs = [busy.work.remote(1e6) for _ in range(num_calls)]
    print(
        f"{num_calls:,} calls sent: {(time.perf_counter() - began) / num_calls * 1e6:,.0f} us each"
    )
    times = []
    for _ in range(10):
        one = quick.work.remote(0.0)
        time.sleep(0.1)
        began = time.perf_counter()
        ray.wait([*refs, one], num_returns=1, timeout=1.0)
        ray.wait([*refs, one], num_returns=len(refs) + 1, timeout=0)
        times.append(time.perf_counter() - began)
    print(f"one look at them: {statistics.median(times) * 1e3:,.1f} ms")
    ray.shutdown()


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _partition(index: int, rng: random.Random) -> Partition:
    name = f"part-{index:07d}.tar"
    size = int(rng.lognormvariate(20, 0.5))
    file = SourceFile(f"s3://bucket/corpus/{name}", name, size, f"{index:032x}")
    return Partition(index, (SourceRange(file, size),))


def _result(partition: Partition, worker: str, now: float) -> PartitionResult:
    shard = Shard(f"shards/{partition.index:07d}-000.arrow", 1, "ab" * 32, 1, {}, ())
    return PartitionResult(partition.index, 1, 1, {}, {}, (shard,), None, None, {}, now, worker)


if __name__ == "__main__":
    main()
