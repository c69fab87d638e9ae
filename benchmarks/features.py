"""Features of many synthetic images through encoder, reducer and write: bytes saved, rates, resume.

Writes small JPEG files and a tiny vision transformer with random weights, then runs three jobs on
the inline engine: all features; features reduced by DivPrune; and the same again, killed (SIGKILL)
when half of the partitions are committed, and run once more. Says what is stored, images/s of every
stage by its busy time, and whether the third data set has the bytes of the second.

    python benchmarks/features.py                   # a few hundred images
    python benchmarks/features.py --images 100000   # the full run: some minutes on 2 cores
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

SIDE, PATCH, WIDTH = 64, 8, 64
TOKENS = (SIDE // PATCH) ** 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--per-tar", type=int, default=0, help="0 is 20 tars in all")
    parser.add_argument("--keep", type=int, default=8)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        write_encoder(folder / "encoder")
        write_images(folder / "in", args.images, args.per_tar or -(-args.images // 20))
        found: dict[str, Any] = {"images": args.images, "tokens": TOKENS, "keep": args.keep}
        for name in ("whole", "reduced"):
            found[name] = figures(folder, name, args)
        stored = [found[name]["stored_bytes"] for name in ("whole", "reduced")]
        found["saved"] = round(1 - stored[1] / stored[0], 4)
        found["killed_at_partitions"] = run_and_kill(folder, args)
        run(folder, "resumed", args)
        found["resume_is_identical"] = digests(folder / "resumed") == digests(folder / "reduced")
        print(json.dumps(found, indent=1))


def write_encoder(folder: Path) -> None:
    """Save a tiny ViT with random weights."""
    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        image_size=SIDE,
        patch_size=PATCH,
    )
    torch.manual_seed(0)
    transformers.ViTModel(config).save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    processor = {"size": {"height": SIDE, "width": SIDE}, "image_mean": half, "image_std": half}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def write_images(folder: Path, count: int, per_tar: int) -> None:
    """Write tars of JPEG files of smooth noise."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for first in range(0, count, per_tar):
        with tarfile.open(folder / f"{first // per_tar:05d}.tar", "w") as tar:
            for number in range(first, min(first + per_tar, count)):
                coarse = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                data = io.BytesIO()
                image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                image.save(data, "JPEG", quality=90)
                info = tarfile.TarInfo(f"{number:07d}.jpg")
                info.size = len(data.getvalue())
                tar.addfile(info, io.BytesIO(data.getvalue()))


def command(folder: Path, name: str, args: argparse.Namespace) -> list[str]:
    """Write a job and return the command that runs it."""
    reducer = {"name": "divprune", "keep": args.keep, "device": args.device}
    encoder = {
        "name": "vision_encoder",
        "weights": str(folder / "encoder"),
        "store_dtype": "float16",
        "device": args.device,
        "tower_batch": 64,
    }
    is_whole = name == "whole"
    job = {
        "name": "features",
        "source": {
            "type": "webdataset",
            "urls": f"{folder}/in/*.tar",
            "fields": {"image_bytes": "jpg"},
            "partition_bytes": 1,
        },
        "operators": [
            {"name": "decode_image"},
            {"name": "center_crop", "size": SIDE},
            encoder,
            *([] if is_whole else [reducer]),
        ],
        "batch_size": 64,
        "shards": {"fields": ["features"] if is_whole else ["features", "token_map"]},
        "output": str(folder / name),
    }
    (folder / f"{name}.json").write_text(json.dumps(job))
    program = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    return [*program, "run", str(folder / f"{name}.json"), "--engine", "inline"]


def run(folder: Path, name: str, args: argparse.Namespace) -> float:
    """Run a job in a process of its own and return how long it took."""
    began = time.perf_counter()
    done = subprocess.run(command(folder, name, args), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - began


def figures(folder: Path, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run a job and say what it stored and how fast its stages were."""
    took = run(folder, name, args)
    busy: Counter[str] = Counter()
    for record in records(folder / name):
        for stage, counts in record["stages"].items():
            busy[stage] += counts["busy_s"]
            busy.update(counts.get("steps", {}))
    shards = (folder / name / "shards").iterdir()
    return {
        "seconds_with_start": round(took, 1),
        "stored_bytes": sum(path.stat().st_size for path in shards),
        "images_per_busy_s": {
            step: round(args.images / seconds, 1) for step, seconds in busy.items() if seconds
        },
    }


def run_and_kill(folder: Path, args: argparse.Namespace) -> int:
    """Run the reduced job and kill it when half is committed; return how much was."""
    partitions = len(list((folder / "in").iterdir()))
    with subprocess.Popen(
        command(folder, "resumed", args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and committed(folder / "resumed") < partitions // 2:
            time.sleep(0.05)
        process.kill()
    return committed(folder / "resumed")


def committed(output: Path) -> int:
    """Return how many partitions have a record."""
    return len(records(output))


def records(output: Path) -> list[dict[str, Any]]:
    """Return the records of the partitions that are done."""
    found = []
    for segment in sorted((output / "_ledger").glob("[0-9]*.jsonl")):
        found += [json.loads(line) for line in segment.read_bytes().splitlines()[1:]]
    return found


def digests(output: Path) -> dict[str, str]:
    """Return name -> SHA-256 of every shard."""
    shards = sorted((output / "shards").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards}


if __name__ == "__main__":
    main()
