"""The loader on S3: a download a node, and what it does when the store or the way to it fails."""

import multiprocessing
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import IntegrityError, TransientError
from pipeline.loader import TokenDataset
from pipeline.loader.files import OnBadShard
from pipeline.storage import NotFoundError, Storage
from tests.loader_data import rows, write_data_set
from tests.s3.server import (
    Fault,
    S3Server,
    cut_body,
    refuse,
    reset_before,
    reset_in_body,
    short_body,
)

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("quick")]

NUM, PARTS = 600, 6
SHARD = "shards/0000002-000.arrow"
WANT = [f"{row:05d}" for row in range(NUM)]


@pytest.fixture
def data_set(tmp_path: Path, s3: Storage, bucket: str) -> str:
    own = Path(write_data_set(tmp_path / "own", rows(NUM), partitions=PARTS))
    for path in own.rglob("*"):
        if path.is_file():
            s3.write(f"{bucket}/set/{path.relative_to(own)}", path.read_bytes())
    return f"{bucket}/set"


@pytest.fixture
def options(s3_endpoint: str, tmp_path: Path) -> dict[str, Any]:
    s3 = {"key": "AKIAEXAMPLE", "secret": "any", "endpoint_url": s3_endpoint}
    return {
        "batch_size": 20,
        "fields": ["key"],
        "shuffle": False,
        "storage_options": {"s3": s3},
        "cache_dir": tmp_path / "cache",
    }


def keys(data: TokenDataset) -> list[str]:
    return [key for batch in data for key in batch["key"]]


def read_as_rank(rank: int, url: str, options: Mapping[str, Any], results: Any) -> None:
    results.put(keys(TokenDataset(url, rank=rank, world_size=3, **options)))


def test_each_shard_is_downloaded_once_by_all_ranks_of_a_node(
    data_set: str, options: dict[str, Any], s3_server: S3Server
) -> None:
    s3_server.reads.clear()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(target=read_as_rank, args=(rank, data_set, options, results))
        for rank in range(3)
    ]
    for rank in ranks:
        rank.start()
    found = [key for _ in ranks for key in results.get(timeout=100)]
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    assert sorted(found) == WANT
    reads = Counter(path for path, _ in s3_server.reads if path.endswith(".arrow"))
    shards = {path: count for path, count in reads.items() if "/shards/" in path}
    assert list(shards.values()) == [1] * PARTS


@pytest.mark.parametrize("prefetch_shards", [0, 2])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(refuse(500, "InternalError"), every=2, matching="/shards/"),
        Fault(refuse(503, "SlowDown"), every=3, matching="/shards/"),
        Fault(cut_body, methods=("GET",), every=2, matching="/shards/"),
        Fault(reset_in_body, methods=("GET",), every=2, matching="/shards/"),
        Fault(short_body, methods=("GET",), every=2, matching="/shards/"),
    ],
    ids=["500", "503", "cut", "reset", "short"],
)
def test_what_fails_for_now_changes_nothing(
    fault: Fault,
    prefetch_shards: int,
    data_set: str,
    options: dict[str, Any],
    s3_server: S3Server,
) -> None:
    data = TokenDataset(data_set, prefetch_shards=prefetch_shards, **options)
    before = fault.hits
    with s3_server.disturbed(fault):
        assert keys(data) == WANT
    assert fault.hits > before


@pytest.mark.parametrize("on_bad_shard", ["raise", "skip"])
def test_a_store_that_stays_away_is_told_of(
    on_bad_shard: OnBadShard, data_set: str, options: dict[str, Any], s3_server: S3Server
) -> None:
    data = TokenDataset(data_set, prefetch_shards=0, on_bad_shard=on_bad_shard, **options)
    with (
        s3_server.disturbed(Fault(reset_before, matching="/shards/")),
        pytest.raises(TransientError, match=data_set),
    ):
        keys(data)
    assert not list(Path(options["cache_dir"]).glob("*.*"))
    assert keys(data) == WANT


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_bad_object_is_named_or_skipped(
    is_gone: bool, data_set: str, options: dict[str, Any], s3: Storage
) -> None:
    uri = f"{data_set}/{SHARD}"
    half = s3.read(uri)[:1_000]
    s3.remove(uri)
    if not is_gone:
        s3.write(uri, half)
    error, says = (NotFoundError, "no such object") if is_gone else (IntegrityError, "1,000 bytes,")
    with pytest.raises(error, match=rf"{uri}: {says}.*shard 2 of 6, sha256 [0-9a-f]{{64}}"):
        keys(TokenDataset(data_set, **options))
    data = TokenDataset(data_set, on_bad_shard="skip", **options)
    assert keys(data) == WANT[:200] + WANT[300:]
    [bad] = data.skipped
    assert (bad.uri, bad.samples) == (uri, 100)
    assert bad.reason == ("missing" if is_gone else "damaged")
