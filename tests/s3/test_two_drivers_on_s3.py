"""Two drivers start at once on one output in an object store: as on disk."""

import subprocess
from pathlib import Path

import pytest

from pipeline.storage import Storage
from tests.corpus import (
    command,
    commit_records,
    data_files,
    environment,
    run_inline,
    text_job,
    write_texts,
)

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

PARTITIONS = 5


@pytest.mark.parametrize("race", range(4))
def test_at_once(race: int, s3: Storage, s3_endpoint: str, bucket: str, tmp_path: Path) -> None:
    job = text_job(write_texts(tmp_path / "in", files=PARTITIONS), tmp_path / "undisturbed")
    run_inline(job)
    options = {"key": "AKIAEXAMPLE", "secret": "any", "endpoint_url": s3_endpoint}
    job = {**job, "output": f"{bucket}/out", "storage": {"s3": options}}
    drivers = [
        subprocess.Popen(
            command(job, tmp_path / name, "--engine", "inline"),
            env=environment(),
            cwd=tmp_path / name,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    told = [driver.communicate(timeout=200) for driver in drivers]
    codes = sorted(driver.returncode for driver in drivers)
    assert codes in ([0, 0], [0, 8]), told

    copy = tmp_path / "copy"
    for entry in s3.walk(f"{bucket}/out"):
        path = copy / entry.uri.removeprefix(f"{bucket}/out/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.read(entry.uri))
    assert list(commit_records(copy)) == list(range(PARTITIONS))
    assert data_files(copy) == data_files(tmp_path / "undisturbed")
    assert not (copy / "_lease").exists()
