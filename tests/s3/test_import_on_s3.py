"""Imports of files on S3: Megatron's stay there, and are read, verified and exported from there."""

from pathlib import Path

from pipeline.export import ExportSettings
from pipeline.exporting import export
from pipeline.imports import ImportSettings, import_data_set
from pipeline.loader import TokenDataset
from pipeline.manifest import open_data_set
from pipeline.report.codebook import count_ids
from pipeline.storage import Storage
from pipeline.verify import verify
from tests.loader_data import rows, write_data_set
from tests.s3.server import S3Server

NUM = 50


def test_megatron_stays_on_s3(
    s3: Storage, s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    write_data_set(tmp_path / "data", rows(NUM), partitions=2)
    settings = ExportSettings("megatron", ["text"], 1)
    export(str(tmp_path / "data"), f"{bucket}/meg", settings, storage=s3)
    told = ImportSettings("megatron", 70_000, field="text")
    done = import_data_set(f"{bucket}/meg", f"{bucket}/in", told, storage=s3)
    assert done.num_samples == NUM
    data = open_data_set(f"{bucket}/in", s3)
    assert data.shards["path"].to_pylist() == [f"{bucket}/meg/text_0000{i}.bin" for i in (0, 1)]
    assert [found for found in verify(f"{bucket}/in", s3) if found.problem] == []
    assert count_ids(data).fields["text"].streams[0].all.ids == done.num_tokens

    expected = rows(NUM)["text"]
    options = {"key": "AKIAEXAMPLE", "secret": "any", "endpoint_url": s3_server.endpoint}
    batches = TokenDataset(
        f"{bucket}/in",
        batch_size=8,
        shuffle=False,
        storage_options={"s3": options},
        cache_dir=tmp_path / "cache",
    )
    found = [row.tolist() for batch in batches for row in batch["text"]]
    assert found == [expected[i].tolist() for i in range(NUM)]

    export(f"{bucket}/in", f"{bucket}/again", settings, storage=s3)
    for name in ("text_00000.bin", "text_00001.idx"):
        assert s3.read(f"{bucket}/again/{name}") == s3.read(f"{bucket}/meg/{name}")


def test_mds_is_copied_to_s3(s3: Storage, bucket: str, tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data", rows(NUM))
    export(data, str(tmp_path / "mds"), ExportSettings("mds"))
    told = ImportSettings("mds", 70_000, field="text")
    import_data_set(str(tmp_path / "mds"), f"{bucket}/in", told, storage=s3)
    assert [found for found in verify(f"{bucket}/in", s3) if found.problem] == []
