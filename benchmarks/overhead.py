"""What the engine costs: images/s of a run over a plain Python loop that does the same work.

Each round measures, one after another on the same tars: a plain loop, the inline engine, Ray with
one worker, two plain loops in two processes, Ray with two workers. The work is read, decode,
resize, crop, ``dct_fsq``, write Arrow. Start-up (imports, ``ray.init``, worker start) is left out
of images/s on all sides and shown by itself. CPU seconds are those of all processes of a case,
Ray's own among them, while it works.

    python benchmarks/overhead.py --images 12000 --rounds 3
    python benchmarks/overhead.py --one-core          # the single cases on one and the same core
    python benchmarks/overhead.py --memory            # peak memory as the input grows 4x
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

CHUNK = 32
Figures = dict[str, Any]

JOB = """
name: overhead
source:
  type: webdataset
  urls: {tars}/*.tar
  fields: {{image_bytes: jpg}}
  partition_bytes: 1000000
operators:
  - name: decode_image
  - name: resize
    size: 256
  - name: center_crop
    size: 256
  - name: dct_fsq
shards:
  fields: [tokens]
output: {output}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one-core", action="store_true", help="hold single cases to one core")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "TARS", "WORKERS"))
    args = parser.parse_args()
    if args.child:
        what, tars, workers = args.child
        if args.one_core and workers == "1":
            os.sched_setaffinity(0, {0})  # Ray's own processes inherit it
        print(json.dumps(measure(what, Path(tars), int(workers))))
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            show_memory(Path(folder), args.images)
        else:
            show_speed(Path(folder), args.images, args.rounds, one_core=args.one_core)


def show_speed(folder: Path, images: int, rounds: int, *, one_core: bool) -> None:
    tars = make_tars(folder / "tars", images)
    cases = [("loop", 1), ("inline", 1), ("ray", 1), ("loop", 2), ("ray", 2)]
    found: dict[tuple[str, int], list[Figures]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            figures = child(case[0], tars, case[1], one_core=one_core)
            found[case].append(figures)
            print(
                f"round {number + 1}: {case[0]:>6} x {case[1]}: "
                f"{figures['images'] / figures['work_s']:7.1f} images/s, "
                f"{figures['images'] / figures['cpu_s']:7.1f} per CPU-second, "
                f"work {figures['work_s']:.1f} s, start {figures['start_s']:.1f} s",
                flush=True,
            )
    print("\nmedian over the rounds of the ratio to the plain loop with as many processes:")
    for what, workers in cases:
        if what == "loop":
            continue
        pairs = list(zip(found[what, workers], found["loop", workers], strict=True))
        wall = statistics.median(b["work_s"] / a["work_s"] for a, b in pairs)
        cpu = statistics.median(b["cpu_s"] / a["cpu_s"] for a, b in pairs)
        print(f"  {what:>6} x {workers}: {wall:.3f} by time, {cpu:.3f} by CPU time")
    digests = {figures["digest"] for runs in found.values() for figures in runs}
    print("tokens are identical everywhere" if len(digests) == 1 else f"TOKENS DIFFER: {digests}")


def show_memory(folder: Path, images: int) -> None:
    for factor in (1, 4):
        tars = make_tars(folder / f"tars{factor}", images * factor // 4)
        for what in ("inline", "ray"):
            figures = child(what, tars, 1)
            print(
                f"{what:>6}, {figures['images']:,.0f} images: peak {figures['peak_mb']:.0f} MB "
                "in the largest process",
                flush=True,
            )


def child(what: str, tars: Path, workers: int, *, one_core: bool = False) -> Figures:
    """Measure in a fresh process, so that nothing is warm that should not be."""
    command = [sys.executable, __file__, "--child", what, str(tars), str(workers)]
    command += ["--one-core"] if one_core else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(what: str, tars: Path, workers: int) -> Figures:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as output:
        if what == "loop":
            figures = run_loops(tars, Path(output), workers)
        else:
            figures = run_engine(what, tars, Path(output), workers)
        figures["digest"] = digest_of(Path(output))
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    figures.setdefault("peak_mb", max(part.ru_maxrss for part in usage) / 1024)
    figures["start_s"] = time.perf_counter() - began - figures["work_s"]
    return figures


def run_engine(engine: str, tars: Path, output: Path, workers: int) -> Figures:
    from pipeline import runner
    from pipeline.protocols import Engine
    from pipeline.spec import parse_job

    class Clock:
        """Starts when all workers are ready, stops at the last commit."""

        def waiting(self, message: str) -> None:
            print(message)

        def decided(self, warning: str) -> None:
            print(warning)

        def begin(self, partitions: object, done: object, engine: Engine) -> None:
            self.ready, self.ready_cpu_s = time.perf_counter(), cpu_seconds()
            self.peak_mb = 0.0
            threading.Thread(target=self.wait, args=(engine,), daemon=True).start()

        def wait(self, engine: Engine) -> None:
            while engine.num_workers < workers:
                time.sleep(0.01)
            self.ready, self.ready_cpu_s = time.perf_counter(), cpu_seconds()

        def committed(self, result: object) -> None:
            self.last, self.last_cpu_s = time.perf_counter(), cpu_seconds()
            self.peak_mb = max(self.peak_mb, largest_mb())

    job = parse_job(JOB.format(tars=tars, output=output / "out"), "overhead")
    clock = Clock()
    summary = runner.run(runner.prepare(job), engine=engine, workers=workers, listener=clock)
    return {
        "images": summary.samples,
        "work_s": clock.last - clock.ready,
        "cpu_s": clock.last_cpu_s - clock.ready_cpu_s,
        "peak_mb": clock.peak_mb,
    }


def cpu_seconds() -> float:
    """Return CPU seconds of this process and all below it that are alive."""
    times = [process.cpu_times() for process in family()]
    return sum(part.user + part.system for part in times)


def largest_mb() -> float:
    """Return the memory of the largest process, without what it shares with others."""
    sizes = [process.memory_info() for process in family()]
    return max((part.rss - part.shared) / 1e6 for part in sizes)


def family() -> list[psutil.Process]:
    me = psutil.Process()
    return [p for p in [me, *me.children(recursive=True)] if p.is_running()]


def run_loops(tars: Path, output: Path, processes: int) -> Figures:
    paths = sorted(tars.glob("*.tar"))
    parts = [paths[i::processes] for i in range(processes)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        pool.map(warm_up, range(processes), chunksize=1)
        began, began_cpu_s = time.perf_counter(), cpu_seconds()
        counts = pool.starmap(plain_loop, [(part, output) for part in parts], chunksize=1)
        work_s, cpu_s = time.perf_counter() - began, cpu_seconds() - began_cpu_s
        pool.close()
        pool.join()
    return {"images": sum(counts), "work_s": work_s, "cpu_s": cpu_s}


def warm_up(_: int) -> None:
    import pyarrow  # noqa: F401

    from operators.image_tokenizers import dct_fsq  # noqa: F401


def plain_loop(tars: Sequence[Path], output: Path) -> int:
    """What a careful user would write by hand for one process."""
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    from operators.image_tokenizers.dct_fsq import DctFsq, DctFsqConfig

    tokenizer = DctFsq(DctFsqConfig())
    tokenizer.setup("cpu")
    count = 0
    for path in tars:
        keys, tokens = [], []
        for chunk in chunks(path):
            images = []
            for _, data in chunk:
                image = Image.open(io.BytesIO(data)).convert("RGB")
                width, height = image.size
                short = min(width, height)
                size = (256 * width // short, 256 * height // short)
                image = image.resize(size, Image.Resampling.BILINEAR)
                left, top = round((size[0] - 256) / 2), round((size[1] - 256) / 2)
                images.append(np.asarray(image.crop((left, top, left + 256, top + 256))))
            tokens.append(tokenizer({"image": np.stack(images)})["tokens"])
            keys += [key for key, _ in chunk]
        flat = pa.array(np.concatenate(tokens).reshape(-1))
        table = pa.table({"key": keys, "tokens": pa.FixedSizeListArray.from_arrays(flat, 256)})
        with pa.ipc.new_file(str(output / f"{path.stem}.arrow"), table.schema) as writer:
            writer.write_table(table)
        count += len(keys)
    return count


def chunks(path: Path) -> Iterator[list[tuple[str, bytes]]]:
    chunk = []
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                file = tar.extractfile(member)
                assert file is not None
                chunk.append((member.name[:-4], file.read()))
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def digest_of(folder: Path) -> str:
    """Hash the tokens of all shards, in key order."""
    import numpy as np
    import pyarrow as pa

    keys, rows = [], []
    for path in folder.rglob("*.arrow"):
        if path.name == "index.arrow":
            continue
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        keys += table["key"].to_pylist()
        flat = np.concatenate([c.flatten().to_numpy() for c in table["tokens"].chunks])
        rows.append(flat.reshape(-1, 256))
    order = np.argsort(np.array(keys), kind="stable")
    return hashlib.sha256(np.concatenate(rows)[order].tobytes()).hexdigest()


def make_tars(folder: Path, images: int) -> Path:
    """Write tars of 512 images: the sample photographs over and over, under new keys."""
    from pipeline.sample_data import write_sample_data

    folder.mkdir(parents=True)
    sample = write_sample_data(folder.parent / "sample")
    photos = [data for path in sample.photo_tars for part in chunks(path) for _, data in part]
    for start in range(0, images, len(photos)):
        with tarfile.open(folder / f"{start // len(photos):04d}.tar", "w") as tar:
            for i, data in enumerate(photos[: images - start]):
                info = tarfile.TarInfo(f"{start + i:08d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


if __name__ == "__main__":
    main()
