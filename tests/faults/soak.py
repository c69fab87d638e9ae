"""Runs under faults on a Ray cluster of several nodes: what went wrong, and what came out of it.

    python -m tests.faults.soak                    every fault as often as the project promises
    python -m tests.faults.soak --times 1 hang     one fault, once

Every run is compared with an undisturbed one of the same recipe, byte by byte. All faults share one
cluster of logical nodes on this machine, in this process.
"""

import argparse
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import pyarrow as pa

from pipeline.errors import TokenmillError
from pipeline.ledger import Ledger
from pipeline.protocols import Engine, PartitionResult
from pipeline.runner import prepare, run
from pipeline.storage import Storage
from tests.corpus import (
    command,
    commit_records,
    data_files,
    environment,
    manifest,
    parse,
    picture_job,
    quarantined,
    run_inline,
    write_corpus,
)
from tests.faulty_operators import announce

TARS, PER_TAR = 10, 6
POISON = "t3-002"
"""The sample that poison faults strike at; it is in partition 3."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        times: How often the project promises to survive it.
        orders: What the operator ``sabotage`` is told.
        disturb: Called in a thread of its own while the run is on.
        run: Settings of the job's ``run``.
        poison: A sample is lost: it has to be in the quarantine, and all others in their places.
        shows: What must have happened on the way, or the fault was none.
        driver: The engine of a driver that is killed; None runs in this process.
    """

    times: int
    orders: Mapping[str, Any] = field(default_factory=dict)
    disturb: "Callable[[Bench, random.Random], None] | None" = None
    run: Mapping[str, Any] = field(default_factory=dict)
    poison: bool = False
    shows: Literal["failed", "second", "joined"] | None = "failed"
    driver: Literal["inline", "ray"] | None = None


def _exits(where: str) -> Fault:
    key = {"operator": {"key": "t5-001"}}.get(where, {"partition": 5})
    return Fault(5, {"where": where, "how": "exit", "times": 1, **key})


SLOWLY = {"where": "", "sleep_s": 0.2}
"""Orders to take long enough for something to be done to the run."""

FAULTS: dict[str, Fault] = {
    "exit in read": _exits("read"),
    "exit in decode": _exits("decode"),
    "exit in operator": _exits("operator"),
    "exit in write": _exits("write"),
    "worker killed": Fault(20, SLOWLY, lambda bench, rng: bench.kill_a_worker(rng)),
    "node lost": Fault(10, SLOWLY, lambda bench, rng: bench.lose_a_node(rng)),
    "node joins": Fault(
        5,
        {"where": "", "sleep_s": 0.3},
        lambda bench, rng: bench.add_a_node(),
        shows="joined",
    ),
    "driver killed, inline": Fault(10, SLOWLY, driver="inline"),
    "driver killed, ray": Fault(10, SLOWLY, driver="ray"),
    "hang": Fault(
        3,
        {"where": "operator", "how": "hang", "times": 1, "key": "t4-003"},
        run={"deadline_s": 2.5},
    ),
    "straggler": Fault(
        3,
        {"where": "operator", "how": "be_slow", "times": 1, "key": "t6-000"},
        shows="second",
    ),
    "poison: segfault": Fault(
        3, {"where": "operator", "how": "segfault", "times": 10_000, "key": POISON}, poison=True
    ),
    "poison: exit": Fault(
        3, {"where": "operator", "how": "exit", "times": 10_000, "key": POISON}, poison=True
    ),
    "poison: memory": Fault(
        3,
        {"where": "operator", "how": "allocate", "times": 10_000, "key": POISON},
        run={"worker_memory_bytes": 1 << 30},
        poison=True,
    ),
}


@dataclass(slots=True)
class Outcome:
    """How a disturbed run ended.

    Attributes:
        wrong: What differs from the undisturbed run, or the error; None when all is right.
        wall_s: Seconds it took.
        failed, second: Attempts that failed, and second attempts at stragglers.
        workers: Workers that committed something.
    """

    wrong: str | None
    wall_s: float
    failed: int = 0
    second: int = 0
    workers: int = 0


class Bench:
    """A corpus, an undisturbed run over it, and a cluster to disturb others on."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self._orders = folder / "orders"
        self._orders.mkdir()
        self._job = picture_job(write_corpus(folder / "in", TARS, PER_TAR), folder / "undisturbed")
        self._job["operators"].append({"name": "sabotage", "folder": str(self._orders)})
        run_inline(self._job)
        self._undisturbed = folder / "undisturbed"
        self._cluster: Any = Cluster(
            initialize_head=True,
            connect=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False},
        )
        self._extra = [self._cluster.add_node(num_cpus=1)]

    def close(self) -> None:
        """Stop the cluster."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()

    def try_fault(self, fault: Fault, seed: int) -> Outcome:
        """Run once under a fault and compare."""
        for old in self._orders.iterdir():
            old.unlink()
        if fault.orders:
            (self._orders / "fault.json").write_text(json.dumps(fault.orders))
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        settings = {"chunk_size": 2, "max_bad_samples": 1, **fault.run}
        job = {**self._job, "output": str(out), "run": settings}
        if fault.driver is not None:
            return self._kill_driver(job, out, fault.driver, random.Random(seed))
        while len(self._extra) > 1:
            self._cluster.remove_node(self._extra.pop(), allow_graceful=True)
        witness = _Witness()
        num_nodes = 1 + len(self._extra)
        began = time.monotonic()
        with ThreadPoolExecutor(1) as pool:  # nodes can be started from the main thread only
            running = pool.submit(
                run,
                prepare(parse(job)),
                engine="ray",
                address=self._cluster.address,
                listener=witness,
            )
            if fault.disturb is not None and witness.in_time.wait(timeout=60):
                fault.disturb(self, random.Random(seed))
            try:
                running.result()
            except TokenmillError as error:
                return Outcome(f"{type(error).__name__}: {error}", time.monotonic() - began)
        counts = witness.engine.attempts()
        workers = len({result.worker for result in records(out)})
        seen = {
            "failed": counts.failed > 0,
            "second": counts.second > 0,
            "joined": workers > num_nodes,
            None: True,
        }
        wrong = self._poison_problem(out) if fault.poison else self._difference(out)
        if wrong is None and not seen[fault.shows]:
            wrong = f"the run shows nothing of it: {counts}, {workers} workers"
        return Outcome(wrong, time.monotonic() - began, counts.failed, counts.second, workers)

    def kill_a_worker(self, rng: random.Random) -> None:
        """SIGKILL some worker process."""
        time.sleep(rng.uniform(0, 2.5))
        workers = [p for p in psutil.Process().children(recursive=True) if _is_worker(p)]
        if workers:
            rng.choice(workers).kill()

    def lose_a_node(self, rng: random.Random) -> None:
        """Stop a node without grace, and start another."""
        time.sleep(rng.uniform(0, 2.0))
        self._cluster.remove_node(self._extra.pop(), allow_graceful=False)
        time.sleep(rng.uniform(0, 0.5))
        self._extra.append(self._cluster.add_node(num_cpus=1))

    def add_a_node(self) -> None:
        """Start one more node; it stays."""
        self._extra.append(self._cluster.add_node(num_cpus=1))

    def _kill_driver(
        self, job: dict[str, Any], out: Path, engine: str, rng: random.Random
    ) -> Outcome:
        """SIGKILL a driver at some moment of its run; then the same command again, to its end."""
        options = ["--engine", engine]
        options += ["--address", self._cluster.address] if engine == "ray" else []
        began = time.monotonic()
        process = subprocess.Popen(
            command(job, self.folder, *options),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not (out / "_job.json").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 8.0))
        process.kill()
        if process.wait() != -signal.SIGKILL:
            return Outcome("it was done before it could be killed", time.monotonic() - began)
        done = len(commit_records(out))
        again = subprocess.run(
            command(job, self.folder, *options),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        wrong = again.stderr if again.returncode else self._difference(out)
        return Outcome(wrong, time.monotonic() - began, TARS - done)

    def _difference(self, out: Path) -> str | None:
        expected, found = data_files(self._undisturbed), data_files(out)
        for name in sorted({*expected, *found}):
            if name.endswith(".tmp"):
                continue  # readers ignore what a killed worker was writing, and `gc` removes it
            if name not in found or name not in expected:
                return f"{name} is {'missing' if name in expected else 'not of the data set'}"
            if found[name] != expected[name]:
                return f"{name} differs"
        return None

    def _poison_problem(self, out: Path) -> str | None:
        """Say what is not as if the poisonous sample had never been there."""
        lost = [(line["key"], line["error"]) for line in quarantined(out)]
        if lost != [(POISON, "PoisonSampleError")]:
            return f"in the quarantine: {lost}"
        totals = manifest(out)["totals"]
        if totals["samples"] != TARS * PER_TAR - 1:
            return f"{totals['samples']} samples"
        own = "shards/0000003-000.arrow"
        expected, found = data_files(self._undisturbed), data_files(out)
        for name in expected:
            if name.startswith("shards/") and name != own and expected[name] != found[name]:
                return f"{name} differs"
        rows = _rows(self._undisturbed / own)
        del rows[POISON]
        return None if _rows(out / own) == rows else f"{own}: other rows differ"


class _Witness:
    """Notes the engine, and tells when the first partition is done."""

    engine: Engine

    def __init__(self) -> None:
        self.in_time = threading.Event()

    def waiting(self, message: str) -> None:
        raise AssertionError(message)

    def decided(self, warning: str) -> None:
        raise AssertionError(warning)

    def begin(self, partitions: object, done: object, engine: Engine) -> None:
        self.engine = engine

    def committed(self, result: PartitionResult) -> None:
        self.in_time.set()


def records(out: Path) -> list[PartitionResult]:
    """Return the commit records of a finished run."""
    return list(Ledger(Storage(), str(out), manifest(out)["fingerprint"]).records())


def _rows(shard: Path) -> dict[str, dict[str, Any]]:
    table = pa.ipc.open_file(str(shard)).read_all()
    return {row["key"]: row for row in table.to_pylist()}


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any("WorkerActor" in part for part in process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("faults", nargs="*", help=f"some of: {', '.join(FAULTS)}")
    parser.add_argument("--times", type=int, help="instead of what is promised")
    parser.add_argument("--json", type=Path, help="write the outcomes there")
    args = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.ERROR)
    outcomes: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as name:
        extension = announce(Path(name) / "extension")
        sys.path.insert(0, str(extension))
        os.environ["PYTHONPATH"] = environment(extension)["PYTHONPATH"]  # workers inherit it
        bench = Bench(Path(name))
        try:
            for fault in args.faults or FAULTS:
                times = args.times or FAULTS[fault].times
                outcomes[fault] = []
                for seed in range(times):
                    outcomes[fault].append(bench.try_fault(FAULTS[fault], seed))
                    print(f"{fault} {seed}: {outcomes[fault][-1]}", file=sys.stderr, flush=True)
        finally:
            bench.close()
    print(f"{'fault':<20} {'tried':>5} {'right':>5} {'failed attempts':>15} {'seconds':>8}")
    for fault, tried in outcomes.items():
        right = sum(outcome.wrong is None for outcome in tried)
        failed = sum(outcome.failed for outcome in tried)
        mean_s = sum(outcome.wall_s for outcome in tried) / len(tried)
        print(f"{fault:<20} {len(tried):>5} {right:>5} {failed:>15} {mean_s:>8.1f}")
    if args.json:
        plain = {
            fault: [
                {name: getattr(outcome, name) for name in Outcome.__slots__} for outcome in tried
            ]
            for fault, tried in outcomes.items()
        }
        args.json.write_text(json.dumps(plain))
    sys.exit(any(outcome.wrong for tried in outcomes.values() for outcome in tried))


if __name__ == "__main__":
    main()
