"""Storage and sources on an S3 server: the same meaning as on disk."""

import gzip
import io
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from operators.columns import concat
from pipeline.errors import AlreadyCommittedError, IntegrityError, SetupError, TransientError
from pipeline.protocols import Source
from pipeline.sources import SourceConfig, build_source
from pipeline.sources.listing import list_files
from pipeline.storage import NotFoundError, Storage

SECRET = "wJalrXUtnFEMI-secret"


def test_what_is_written_is_read(s3: Storage, bucket: str) -> None:
    data = np.random.default_rng(0).bytes(20 << 20)  # more than one block of either direction
    s3.write(f"{bucket}/a/b", data)
    assert s3.read(f"{bucket}/a/b") == data
    with s3.open_read(f"{bucket}/a/b") as file:
        assert b"".join(iter(lambda: file.read(3 << 20), b"")) == data
        file.seek(9 << 20)
        assert file.read(5) == data[9 << 20 :][:5]
    s3.write(f"{bucket}/a/b", b"new")
    assert s3.read(f"{bucket}/a/b") == b"new"


def test_an_error_while_writing_leaves_no_object(s3: Storage, bucket: str) -> None:
    def interrupted(num_bytes: int) -> None:
        with s3.open_write(f"{bucket}/a") as file:
            file.write(bytes(num_bytes))
            raise RuntimeError("stop")

    for num_bytes in (10, 40 << 20):
        with pytest.raises(RuntimeError, match="stop"):
            interrupted(num_bytes)
        assert s3.stat(f"{bucket}/a") is None


def test_walk_glob_and_stat_agree(s3: Storage, bucket: str) -> None:
    for name in ("x/b.tar", "x/a.tar", "x/y/c.tar", "z.tar"):
        s3.write(f"{bucket}/{name}", name.encode())
    walked = list(s3.walk(f"{bucket}/x"))
    assert [entry.uri for entry in walked] == [
        f"{bucket}/x/{name}" for name in ("a.tar", "b.tar", "y/c.tar")
    ]
    assert s3.glob(f"{bucket}/x/*.tar") == walked[:2]
    assert [s3.stat(entry.uri) for entry in walked] == walked
    assert all(entry.version for entry in walked)
    assert s3.stat(f"{bucket}/x") is None
    assert list(s3.walk(f"{bucket}/absent")) == []
    s3.remove(f"{bucket}/x/a.tar")
    s3.remove(f"{bucket}/x/a.tar")
    assert [entry.uri for entry in s3.glob(f"{bucket}/x/*")] == [f"{bucket}/x/b.tar"]


@pytest.mark.parametrize(
    "pattern",
    [
        *("*", "*.tar", "b/*", "b/c*/*.tar", "*/*", "*/c?/x.tar", "b/*/y*", "**/*.tar", "b/**"),
        *("b/**/x.tar", "*/c2/*", "[ab]*/*/*.[ts]*", "z*", "absent/*", "b/absent/*.tar"),
    ],
)
def test_patterns_mean_what_they_mean_on_a_disk(
    pattern: str, s3: Storage, bucket: str, tmp_path: Path
) -> None:
    names = ("a.tar", "a.sh", "b/c1/x.tar", "b/c1/y.tar", "b/c2/x.tar", "b/d.tar", "bc/c3/x.sh")
    for name in names:
        s3.write(f"{bucket}/{name}", b"x")
        Storage().write(f"{tmp_path}/{name}", b"x")
    found = [entry.uri.removeprefix(bucket) for entry in s3.glob(f"{bucket}/{pattern}")]
    on_disk = [entry.uri for entry in Storage().glob(f"{tmp_path}/{pattern}")]
    assert found == [uri.removeprefix(str(tmp_path)) for uri in on_disk]


def test_what_others_wrote_since_a_listing_is_read(
    s3: Storage, s3_endpoint: str, bucket: str
) -> None:
    """A commit that finds another's segment reads it, though it listed the folder before."""
    options = {"key": "AKIAEXAMPLE", "secret": "other", "endpoint_url": s3_endpoint}
    other = Storage({"s3": options})  # with connections and caches of its own
    s3.write(f"{bucket}/a/1", b"one")
    assert len(list(s3.walk(f"{bucket}/a"))) == 1
    other.create_exclusive(f"{bucket}/a/2", b"two")
    with pytest.raises(AlreadyCommittedError):
        s3.create_exclusive(f"{bucket}/a/2", b"mine")
    assert s3.read(f"{bucket}/a/2") == b"two"
    with s3.open_read(f"{bucket}/a/2") as file:
        assert file.read() == b"two"
    other.write(f"{bucket}/a/1", b"larger than it was")
    assert s3.read(f"{bucket}/a/1") == b"larger than it was"
    with s3.open_read(f"{bucket}/a/1") as file:
        assert file.read() == b"larger than it was"


def test_of_several_racers_one_wins(s3: Storage, bucket: str) -> None:
    for attempt in range(5):
        uri = f"{bucket}/ledger/{attempt}"
        winners: list[bytes] = []
        barrier = threading.Barrier(6)

        def race(name: bytes) -> None:
            barrier.wait()  # noqa: B023 - the threads end within the iteration
            try:
                s3.create_exclusive(uri, name)  # noqa: B023
            except AlreadyCommittedError:
                return
            winners.append(name)  # noqa: B023

        threads = [threading.Thread(target=race, args=(b"%d" % i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1
        assert s3.read(uri) == winners[0]


def test_listing_by_glob_and_by_braces(s3: Storage, bucket: str) -> None:
    for name in ("000.tar", "001.tar", "deep/002.tar"):
        s3.write(f"{bucket}/data/{name}", b"x")
    braces = list_files(s3, [f"{bucket}/data/{{000..001}}.tar"])
    assert [file.name for file in braces] == ["000.tar", "001.tar"]
    assert list_files(s3, [f"{bucket}/data/*.tar"]) == braces
    found = list_files(s3, [f"{bucket}/data/**/*.tar"])
    assert [file.name for file in found] == ["000.tar", "001.tar", "deep/002.tar"]
    with pytest.raises(SetupError, match=r"data/002\.tar: no such object"):
        list_files(s3, [f"{bucket}/data/{{000..002}}.tar"])
    with pytest.raises(SetupError, match="matches nothing"):
        list_files(s3, [f"{bucket}/other/*.tar"])


def test_missing_things_are_named(s3: Storage, bucket: str) -> None:
    with pytest.raises(NotFoundError, match=f"{bucket}/absent: no such object"):
        s3.read(f"{bucket}/absent")
    for call in (s3.read, s3.open_read):
        with pytest.raises(SetupError, match="s3://no-such-bucket/a: no such bucket; create it"):
            call("s3://no-such-bucket/a")


@pytest.mark.usefixtures("quick")
def test_a_server_that_is_away_is_worth_another_attempt() -> None:
    options = {"key": "AKIAEXAMPLE", "secret": SECRET, "endpoint_url": "http://127.0.0.1:9"}
    retries = {"config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 2}}
    with pytest.raises(TransientError) as found:
        Storage({"s3": options | retries}).read("s3://bucket/a")
    assert SECRET not in str(found.value)
    assert "AKIAEXAMPLE" not in str(found.value)


def tar_bytes() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for i in range(50):
            for extension in ("txt", "jpg"):
                info = tarfile.TarInfo(f"{i}.{extension}")
                info.size = 700
                tar.addfile(info, io.BytesIO(b"%07d" % i * 100))
    return file.getvalue()


def parquet_bytes() -> bytes:
    file = io.BytesIO()
    table = pa.table({"text": [f"{i}" for i in range(500)], "unused": ["x"] * 500})
    pq.write_table(table, file, row_group_size=100)
    return file.getvalue()


LINES = b"".join(b'{"text": "%d"}\n' % i for i in range(50))
CASES: dict[str, tuple[dict[str, Any], dict[str, bytes], int]] = {
    "webdataset": (
        {"type": "webdataset", "fields": {"image": "jpg"}},
        {"0.tar": tar_bytes(), "1.tar.gz": gzip.compress(tar_bytes())},
        100,
    ),
    "parquet": (
        {"type": "parquet", "fields": ["text"], "partition_bytes": 1500},
        {"0.parquet": parquet_bytes(), "1.parquet": parquet_bytes()},
        1000,
    ),
    "jsonl": (
        {"type": "jsonl", "fields": ["text"]},
        {"0.jsonl": LINES, "1.jsonl.gz": gzip.compress(LINES)},
        100,
    ),
    "image_folder": (
        {"type": "image_folder"},
        {f"{i % 2}/{i}.jpg": b"%d" % i for i in range(40)},
        40,
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, s3: Storage, bucket: str) -> tuple[Source, int, str]:
    settings, objects, num_samples = CASES[request.param]
    for name, data in objects.items():
        s3.write(f"{bucket}/data/{name}", data)
    url = f"{bucket}/data" if request.param == "image_folder" else f"{bucket}/data/*"
    config = TypeAdapter(SourceConfig).validate_python(settings | {"urls": url})
    return build_source(config, s3, [url]), num_samples, bucket


def test_every_source_reads_from_s3(case: tuple[Source, int, str]) -> None:
    source, num_samples, _ = case
    partitions = list(source.list_partitions())
    blocks = [block for p in partitions for block in source.read(p, 30)]
    assert sum(len(block.rows) for block in blocks) == num_samples
    assert sum(source.count_samples(p, 10**6) for p in partitions) == num_samples
    assert not any(block.rejected for block in blocks)
    keys = concat([block.columns["key"] for block in blocks]).to_pylist()
    assert len(keys) == num_samples


def test_a_changed_object_is_refused(case: tuple[Source, int, str], s3: Storage) -> None:
    source, _, _ = case
    partition = next(source.list_partitions())
    file = partition.ranges[0].file
    s3.write(file.uri, s3.read(file.uri) + b"\n")
    with pytest.raises(IntegrityError, match="is not the one that was planned"):
        list(source.read(partition, 30))


def test_an_object_of_another_version_is_refused(s3: Storage, bucket: str) -> None:
    config = TypeAdapter(SourceConfig).validate_python(
        {"type": "jsonl", "fields": ["text"], "urls": "x"}
    )
    s3.write(f"{bucket}/a.jsonl", LINES)
    source = build_source(config, s3, [f"{bucket}/a.jsonl"])
    (partition,) = source.list_partitions()
    s3.write(f"{bucket}/a.jsonl", LINES.replace(b"0", b"1"))
    with pytest.raises(IntegrityError, match="is not the one that was planned"):
        list(source.read(partition, 30))
    found = partition.ranges[0]
    anyone = replace(found, file=replace(found.file, version=""))
    assert list(source.read(replace(partition, ranges=(anyone,)), 30))
