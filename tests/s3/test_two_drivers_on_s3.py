"""Two drivers start at once on one output in an object store: as on disk."""

from pathlib import Path

import pytest

from pipeline.storage import Storage
from tests.corpus import commit_records, data_files, run_inline, text_job, write_texts
from tests.faults.test_two_drivers import start

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

PARTITIONS = 8


@pytest.mark.parametrize("both_hold", [True, False])
@pytest.mark.parametrize("number", range(4))
def test_at_once(
    number: int, both_hold: bool, s3: Storage, s3_endpoint: str, bucket: str, tmp_path: Path
) -> None:
    job = text_job(write_texts(tmp_path / "in", files=PARTITIONS), tmp_path / "undisturbed")
    run_inline(job)
    options = {"key": "AKIAEXAMPLE", "secret": "any", "endpoint_url": s3_endpoint}
    job = {**job, "output": f"{bucket}/out", "storage": {"s3": options}}
    drivers = [start(job, tmp_path / name, both_hold=both_hold) for name in ("a", "b")]
    told = [driver.communicate(timeout=200) for driver in drivers]
    codes = sorted(driver.returncode for driver in drivers)
    assert codes == [0, 0] or (codes == [0, 8] and not both_hold), told

    copy = tmp_path / "copy"
    for entry in s3.walk(f"{bucket}/out"):
        path = copy / entry.uri.removeprefix(f"{bucket}/out/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.read(entry.uri))
    assert list(commit_records(copy)) == list(range(PARTITIONS))
    assert data_files(copy) == data_files(tmp_path / "undisturbed")
    assert not (copy / "_lease").exists()
