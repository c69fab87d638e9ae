"""A small job from S3 to S3, and what it must leave there."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import runner
from pipeline.spec import JobSpec, parse_job
from pipeline.storage import Storage

DATA = ("manifest.json", "index.arrow", "shards/", "quarantine/")
NUM_SAMPLES = 240


def files() -> dict[str, bytes]:
    """Return three Parquet files of text, one of them with rows that cannot be used."""
    found = {}
    for part in range(3):
        texts: list[str | None] = [f"text {part} {n}" * (n % 5) for n in range(80)]
        if part == 1:
            texts[7] = None
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": texts}), buffer, row_group_size=20)
        found[f"part-{part}.parquet"] = buffer.getvalue()
    return found


def upload(storage: Storage, folder: str) -> None:
    """Write the files to a folder."""
    for name, data in files().items():
        storage.write(f"{folder}/{name}", data)


def settings(output: str, s3: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return the job as a mapping; its source is ``$CORPUS``."""
    job = {
        "name": "on_s3",
        "source": {
            "type": "parquet",
            "urls": "${CORPUS}/*.parquet",
            "fields": {"text": "text"},
            "partition_bytes": 1000,
        },
        "operators": [{"name": "byte_text"}, {"name": "length_filter", "min_length": 9}],
        "shards": {"fields": ["tokens"]},
        "output": output,
        "storage": {"s3": dict(s3)} if s3 else {},
        "run": {"max_bad_samples": 1},
    }
    return {**job, **changes}


def job(output: str, s3: Mapping[str, Any] | None = None, **changes: Any) -> JobSpec:
    """Return the job, validated."""
    return parse_job(json.dumps(settings(output, s3, **changes)), "job.yaml")


def run(job: JobSpec) -> None:
    """Run it in this process."""
    runner.run(runner.prepare(job), engine="inline")


def data_of(uri: str, storage: Storage) -> dict[str, bytes]:
    """Return path -> bytes of what must not differ between runs."""
    found = {entry.uri.removeprefix(f"{uri}/"): entry.uri for entry in storage.walk(uri)}
    return {path: storage.read(full) for path, full in found.items() if path.startswith(DATA)}


def undisturbed(folder: Path) -> dict[str, bytes]:
    """Return what the job writes on a disk; ``$CORPUS`` must be the folder's ``in``."""
    for name, data in files().items():
        (folder / "in").mkdir(exist_ok=True)
        (folder / "in" / name).write_bytes(data)
    run(job(str(folder / "out")))
    return data_of(str(folder / "out"), Storage())
