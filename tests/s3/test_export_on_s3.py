"""Exports from S3 to S3: the bytes of the same export on a disk, and resumed likewise."""

import pickle
from pathlib import Path

import pytest

from pipeline.export import FORMATS, ExportSettings
from pipeline.export.parts import ExportParts, ExportTask
from pipeline.exporting import export
from pipeline.manifest import open_data_set
from pipeline.storage import Storage
from tests.loader_data import rows, write_data_set
from tests.unit.test_export import TOKEN_FORMATS, StopsAfter, files_of


@pytest.fixture
def remote(tmp_path: Path, s3: Storage, bucket: str) -> str:
    """The data set of ``tmp_path / "data"``, copied to S3."""
    data = Path(write_data_set(tmp_path / "data", rows(50)))
    for path in data.rglob("*"):
        if path.is_file():
            s3.write(f"{bucket}/data/{path.relative_to(data)}", path.read_bytes())
    return f"{bucket}/data"


@pytest.mark.parametrize("name", FORMATS)
def test_same_bytes_as_on_disk(
    name: str, remote: str, s3: Storage, bucket: str, tmp_path: Path
) -> None:
    given = ExportSettings(name, ["text"] if name in TOKEN_FORMATS else None, 1)
    export(str(tmp_path / "data"), str(tmp_path / "out"), given)
    out = f"{bucket}/out"

    with pytest.raises(KeyboardInterrupt):
        export(remote, out, given, storage=s3, listener=StopsAfter(1))
    assert export(remote, out, given, storage=s3).skipped in (1, 2)
    found = {entry.uri.removeprefix(f"{out}/") for entry in s3.walk(out)}
    assert found == set(files_of(tmp_path / "out"))
    for path in found:
        assert s3.read(f"{out}/{path}") == (tmp_path / "out" / path).read_bytes(), path


def test_a_worker_in_another_process_reaches_s3(
    remote: str, s3: Storage, bucket: str, tmp_path: Path
) -> None:
    given = ExportSettings("megatron", ["text"], 1)
    parts = ExportParts(open_data_set(remote, s3), f"{bucket}/out", given)
    task = ExportTask(remote, f"{bucket}/out", s3, given, parts.plan())
    worker = pickle.loads(pickle.dumps(task)).named("worker-1").start()
    results = [worker.submit(partition).result() for partition in parts.partitions()]
    worker.close()
    assert {result.worker for result in results} == {"worker-1"}
    export(str(tmp_path / "data"), str(tmp_path / "out"), given)
    for shard in (shard for result in results for shard in result.shards):
        assert s3.read(f"{bucket}/out/{shard.path}") == (tmp_path / "out" / shard.path).read_bytes()
