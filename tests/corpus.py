"""A small corpus, jobs over it, and the command line in a process of its own."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.protocols import Engine, Partition, PartitionResult
from pipeline.report.summary import RunSummary
from pipeline.runner import prepare, run
from pipeline.spec import JobSpec, parse_job

ROOT = Path(__file__).resolve().parents[1]
NOT_DATA = ("_ledger/", "_lease/", "report.json")
"""What tells times and workers, and so differs from run to run."""


def picture(seed: int, kind: str = "JPEG") -> bytes:
    """Return an image file of smooth colours, some 90 x 80 pixels."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    size = (80 + seed % 17, 70 + seed % 13)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """Write a tar of the given names and contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def samples(tar: int, count: int) -> list[tuple[str, bytes]]:
    """Return the members of one tar: pictures and captions of different length."""
    members = []
    for i in range(count):
        seed = 1000 * tar + i
        png = i % 5 == 4
        caption = f"picture {i} of tar {tar}" + ", näher" * (seed % 4)
        members += [
            (f"t{tar}-{i:03d}.{'png' if png else 'jpg'}", picture(seed, "PNG" if png else "JPEG")),
            (f"t{tar}-{i:03d}.txt", caption.encode()),
        ]
    return members


def write_corpus(folder: Path, tars: int = 5, per_tar: int = 16) -> str:
    """Write tars of pictures with captions; return the pattern that names them."""
    for tar in range(tars):
        write_tar(folder / f"{tar:02d}.tar", samples(tar, per_tar))
    return f"{folder}/*.tar"


def picture_job(urls: str, output: Path, **changes: Any) -> dict[str, Any]:
    """Return the quick start's job over a corpus: one partition a tar, 64 pixels a side."""
    job = {
        "name": "pictures",
        "source": {
            "type": "webdataset",
            "urls": urls,
            "fields": {"image_bytes": "jpg;png", "caption": "txt"},
            "partition_bytes": 1,
        },
        "operators": [
            {"name": "decode_image"},
            {"name": "resize", "size": 64},
            {"name": "center_crop", "size": 64},
            {"name": "dct_fsq", "side": 64, "outputs": {"tokens": "image_tokens"}},
            {
                "name": "byte_text",
                "inputs": {"text": "caption"},
                "outputs": {"tokens": "caption_tokens"},
            },
            {
                "name": "sequence",
                "vocabulary": [
                    {"special": ["<bos>", "<eos>"]},
                    {"text": 256},
                    {"image": 64000},
                ],
                "template": ["<bos>", {"text": "caption_tokens"}, {"image": "image_tokens"}],
            },
        ],
        "shards": {"fields": ["sequence", "image_tokens", "caption_tokens"]},
        "output": str(output),
        "run": {"chunk_size": 4},
    }
    return {**job, **changes}


def text_job(urls: str, output: Path, **changes: Any) -> dict[str, Any]:
    """Return a job of bytes from JSON lines: the cheapest there is."""
    job = {
        "name": "texts",
        "source": {"type": "jsonl", "urls": urls, "fields": ["text"], "partition_bytes": 1},
        "operators": [{"name": "byte_text"}],
        "shards": {"fields": ["tokens"]},
        "output": str(output),
        "run": {"chunk_size": 4},
    }
    return {**job, **changes}


def write_texts(folder: Path, files: int = 3, lines: int = 10) -> str:
    """Write JSON lines; return the pattern that names them. Keys are ``<n>.jsonl:<line>``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        texts = [{"text": f"file {number}, line {line}"} for line in range(lines)]
        text = "".join(json.dumps(item) + "\n" for item in texts)
        (folder / f"{number}.jsonl").write_text(text)
    return f"{folder}/*.jsonl"


def parse(job: Mapping[str, Any]) -> JobSpec:
    """Validate a job."""
    return parse_job(json.dumps(job), "job")


def run_inline(job: Mapping[str, Any], **options: Any) -> RunSummary:
    """Run a job in this process."""
    return run(prepare(parse(job)), engine="inline", **options)


class AtBegin:
    """A listener that does something after the plan was written and before anything is read."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do = do

    def waiting(self, who: str) -> None:
        """Nobody else is at work."""

    def decided(self, warning: str) -> None:
        """It is enough to have begun."""

    def begin(self, partitions: Sequence[Partition], done: Set[int], engine: Engine) -> None:
        self._do()

    def committed(self, result: PartitionResult) -> None:
        """It is enough to have begun."""


def command(job: Mapping[str, Any], folder: Path, *options: str) -> list[str]:
    """Write a job file and return the command that runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))  # JSON is YAML
    return [sys.executable, "-m", "pipeline", "run", str(path), *options]


def environment(*paths: Path) -> dict[str, str]:
    """Return an environment in which this checkout, and ``paths``, are imported."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths)))}


def run_command(
    job: Mapping[str, Any], folder: Path, *options: str, paths: Sequence[Path] = ()
) -> "subprocess.CompletedProcess[str]":
    """Run a job by the command line, in a process of its own."""
    return subprocess.run(
        command(job, folder, *options),
        env=environment(*paths),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def data_files(output: Path) -> dict[str, bytes]:
    """Return path -> bytes of everything in an output folder that must not differ between runs."""
    found = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.is_file() and not name.startswith(NOT_DATA):
            found[name] = path.read_bytes()
    return found


def ledger_files(output: Path) -> dict[str, tuple[int, bytes]]:
    """Return name -> modification time (ns) and bytes of the ledger's segments."""
    segments = sorted((output / "_ledger").glob("[0-9]*.jsonl"))
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in segments}


def commit_records(output: Path) -> dict[int, dict[str, Any]]:
    """Return partition -> its commit record; there must not be two."""
    found: dict[int, dict[str, Any]] = {}
    for _, data in ledger_files(output).values():
        for line in data.decode().split("\n")[1:-1]:
            record = json.loads(line)
            if "withdrawn" in record:
                for partition in record["withdrawn"]:
                    del found[partition]
            else:
                assert record["partition"] not in found, "committed twice"
                found[record["partition"]] = record
    return dict(sorted(found.items()))


def quarantined(output: Path) -> list[dict[str, Any]]:
    """Return the lines of all quarantine files, by partition and row."""
    files = sorted((output / "quarantine").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_bytes().split(b"\n") if line]


def manifest(output: Path) -> dict[str, Any]:
    """Return the manifest."""
    found: dict[str, Any] = json.loads((output / "manifest.json").read_bytes())
    return found
