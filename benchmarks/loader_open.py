"""How fast a data set of very many shards opens, and what memory an epoch takes.

The shards are hard links to a few real ones, so that the index lists ``--shards`` of them and the
disk holds ``--files``. Each figure comes from a process of its own; memory is what belongs to the
process alone (RssAnon), without the page cache that maps show.

    python benchmarks/loader_open.py                     # 100,000 shards, 500 batches
    python benchmarks/loader_open.py --shards 64 --samples 50000 --batches 0   # 3 GB, an epoch
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from operators.base import FieldSpec, Ragged
from pipeline.loader import BlockShuffle, TokenDataset
from pipeline.manifest import FORMAT_VERSION, INDEX, MANIFEST, Manifest, index_bytes
from pipeline.protocols import PartitionResult, Shard
from pipeline.sinks import ArrowSink
from pipeline.storage import Storage, join

FIELD = FieldSpec("uint16", (None,), 50_000)
FINGERPRINT = "0" * 64
ORDERS: dict[str, bool | BlockShuffle] = {
    "stored": False,
    "whole": True,
    "blocks": BlockShuffle(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=8, help="real shards among them")
    parser.add_argument("--samples", type=int, default=4, help="of a shard")
    parser.add_argument("--tokens", type=int, default=512, help="of a sample")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=500, help="read; 0 is a whole epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--open", help=argparse.SUPPRESS)  # the data set, in a measured process
    parser.add_argument("--order", choices=ORDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        print(json.dumps(measured(args.open, ORDERS[args.order], args.batch_size, args.batches)))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, Arrow {pa.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = write(folder, args.shards, args.files, args.samples, args.tokens)
        print(f"{args.shards:,} shards, {num_bytes:,} bytes in all")
        for order in ORDERS:
            for _ in range(args.rounds):
                print(order, run(folder, order, args.batch_size, args.batches))


def write(folder: str, num_shards: int, num_files: int, num_samples: int, num_tokens: int) -> int:
    """Write a data set and return the bytes of all its shards."""
    storage, fields = Storage(), {"tokens": FIELD}
    random = np.random.default_rng(0)
    shards: list[Shard] = []
    for file in range(num_files):
        about = {"format_version": FORMAT_VERSION, "fingerprint": FINGERPRINT, "partition": file}
        sink = ArrowSink(storage, folder, file, ["input"], fields, about, compression="none")
        ids = random.integers(0, 50_000, num_samples * num_tokens, dtype=np.uint16)
        keys = pa.array([f"{file}/{i}" for i in range(num_samples)], pa.large_string())
        columns = {"key": keys, "tokens": Ragged(ids, np.arange(num_samples + 1) * num_tokens)}
        sink.write(columns, np.zeros(num_samples, np.int32), np.arange(num_samples))
        shards += sink.close()
    results = []
    for number in range(num_shards):
        real = shards[number % num_files]
        path = f"shards/link-{number:07d}.arrow"
        os.link(join(folder, real.path), join(folder, path))
        results.append(result(number, replace(real, path=path), num_samples))
    index = index_bytes(results, ["tokens"])
    manifest = Manifest(
        name="loader_open",
        fingerprint=FINGERPRINT,
        recipe={},
        operators=[],
        fields=fields,
        totals={"samples": num_shards * num_samples},
        filtered={},
        quarantined={},
        warnings=[],
        random_weights=False,
        golden=[],
        libraries={},
        plan_sha256=FINGERPRINT,
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    storage.write(join(folder, INDEX), bytes(index))
    storage.write(join(folder, MANIFEST), manifest.to_json())
    return sum(shards[number % num_files].num_bytes for number in range(num_shards))


def result(partition: int, shard: Shard, num_samples: int) -> PartitionResult:
    return PartitionResult(
        partition, num_samples, num_samples, {}, {}, (shard,), None, None, {}, 0.0, "benchmark"
    )


def run(folder: str, order: str, batch_size: int, num_batches: int) -> str:
    command = [sys.executable, __file__, "--open", folder, "--order", order]
    command += ["--batch-size", str(batch_size), "--batches", str(num_batches)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return (
        f"open {found['open_s']:.2f} s, first batch {found['first_batch_s']:.3f} s, memory "
        f"{found['before_mb']:.0f} MB before, {found['opened_mb']:.0f} opened, "
        + ", ".join(f"{mb:.0f}" for mb in found["read_mb"])
        + f" over {found['batches']:,} batches in {found['read_s']:.1f} s"
    )


def measured(
    folder: str, shuffle: bool | BlockShuffle, batch_size: int, num_batches: int
) -> dict[str, object]:
    """Open, read the first batch, read on; memory after each tenth."""
    before = anonymous_mb()
    began = time.perf_counter()
    data = TokenDataset(folder, batch_size=batch_size, shuffle=shuffle)
    opened = time.perf_counter()
    opened_mb = anonymous_mb()
    next(iter(data))
    first = time.perf_counter()
    num_batches = num_batches or len(data)
    read_mb, tenth = [], -(-num_batches // 10)
    for number, _ in enumerate(islice(data, num_batches), 1):
        if number % tenth == 0:
            read_mb.append(anonymous_mb())
    return {
        "open_s": opened - began,
        "first_batch_s": first - opened,
        "read_s": time.perf_counter() - first,
        "before_mb": before,
        "opened_mb": opened_mb,
        "read_mb": read_mb,
        "batches": num_batches,
    }


def anonymous_mb() -> float:
    """Return the memory that belongs to this process alone, in MB."""
    status = Path("/proc/self/status").read_text()
    [kilobytes] = re.findall(r"RssAnon:\s+(\d+) kB", status)
    return int(kilobytes) * 1024 / 1e6


if __name__ == "__main__":
    main()
