"""Peak memory of one worker while many times that much passes through it.

Large photographs (12 megapixels, some 9 MB each) are read, decoded, resized, cropped and tokenized
by one Ray worker that may hold ``--limit`` bytes; the limit stands in the job, and a worker that
holds more is ended.

    python benchmarks/memory.py                      # 8 GB through a worker of 2 GB
    python benchmarks/memory.py --bytes 1000000000
"""

import argparse
import io
import platform
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from pipeline import runner
from pipeline.report.summary import RunSummary
from pipeline.sample_data import write_sample_data
from pipeline.spec import parse_job

PER_TAR = 8
SIDE = (4000, 3000)

JOB = """
name: memory
source: {{type: webdataset, urls: "{tars}/*.tar", fields: {{image_bytes: jpg}}, partition_bytes: 1}}
operators:
  - name: decode_image
  - {{name: resize, size: 256}}
  - {{name: center_crop, size: 256}}
  - name: dct_fsq
shards: {{fields: [tokens]}}
output: {output}
run: {{workers: 1, worker_memory_bytes: {limit}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--bytes", type=int, default=8_000_000_000)
    parser.add_argument("--limit", type=int, default=2_000_000_000)
    args = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        total = write_tars(folder, args.bytes)
        job = parse_job(
            JOB.format(tars=folder / "tars", output=folder / "out", limit=args.limit), "memory"
        )
        began = time.perf_counter()
        summary, peak = watched(lambda: runner.run(runner.prepare(job), engine="ray"))
        print(
            f"{total:,} bytes in {summary.samples:,} photographs through one worker in "
            f"{time.perf_counter() - began:.0f} s: peak {peak:,} bytes, allowed {args.limit:,}"
        )


def watched(work: Callable[[], RunSummary]) -> tuple[RunSummary, int]:
    """Do something and return its result with the peak memory of its worker processes."""
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "WorkerActor" in " ".join(process.cmdline()):
                        found = process.memory_info()
                        peak = max(peak, found.rss - found.shared)
                except psutil.NoSuchProcess:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        return work(), peak
    finally:
        done.set()
        thread.join()


def write_tars(folder: Path, num_bytes: int) -> int:
    """Write one tar of photographs, and links to it until they hold ``num_bytes``; return that."""
    sample = write_sample_data(folder / "sample")
    with tarfile.open(sample.photo_tars[0]) as tar:
        members = [member for member in tar if member.name.endswith(".jpg")][:PER_TAR]
        photos = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for i, data in enumerate(photos):
            large = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize(SIDE))
            grain = rng.integers(-6, 7, large.shape, np.int16)
            file = io.BytesIO()
            noisy = Image.fromarray((large + grain).clip(0, 255).astype(np.uint8))
            noisy.save(file, "jpeg", quality=97, subsampling=0)
            info = tarfile.TarInfo(f"{i:04d}.jpg")
            info.size = file.tell()
            tar.addfile(info, io.BytesIO(file.getvalue()))
    size = (folder / "photos.tar").stat().st_size
    (folder / "tars").mkdir()
    count = -(-num_bytes // size)
    for i in range(count):
        (folder / "tars" / f"{i:05d}.tar").symlink_to(folder / "photos.tar")
    return count * size


if __name__ == "__main__":
    main()
