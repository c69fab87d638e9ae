"""The manifest: it comes back as written, and refuses what it does not understand."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.base import FieldSpec
from pipeline.errors import IntegrityError
from pipeline.manifest import (
    GOLDEN_SAMPLES,
    INDEX,
    MANIFEST,
    GoldenSamples,
    Manifest,
    index_bytes,
    open_data_set,
)
from pipeline.protocols import GoldenSample, PartitionResult, RowRange, Shard
from pipeline.storage import NotFoundError
from tests.loader_data import FIELDS, rows, write_data_set

GOLDEN = GoldenSample(3, 5, "kä", {"image": {"num": 6, "sha256": "ab", "head": [1, 2]}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data_set(tmp_path, rows(10))
    return tmp_path


def changed(folder: Path, **values: Any) -> bytes:
    raw = json.loads((folder / MANIFEST).read_bytes())
    return json.dumps({**raw, **values}).encode()


def result(partition: int, shards: tuple[Shard, ...] = ()) -> PartitionResult:
    golden = replace(GOLDEN, partition=partition)
    return PartitionResult(partition, 0, 0, {}, {}, shards, None, golden, {}, 0.0, "w")


def test_manifest_comes_back(folder: Path) -> None:
    manifest = replace(
        open_data_set(str(folder)).manifest,
        golden=[GOLDEN],
        filtered={"length_filter: too_long": 2},
        recipe={"name": "ü", "batch_size": None},
    )
    data = manifest.to_json()
    again = Manifest.from_json(data, "m")
    assert again == manifest
    assert again.to_json() == data
    assert "ü".encode() in data
    assert data.endswith(b"}\n")
    assert again.fields["text"] == FieldSpec("uint32", (None,), 70_000)


def test_keys_of_a_later_version_are_passed_over(folder: Path) -> None:
    golden = [{**asdict(GOLDEN), "later": 1}]
    manifest = Manifest.from_json(changed(folder, later={"a": 1}, golden=golden), "m")
    assert manifest == replace(open_data_set(str(folder)).manifest, golden=[GOLDEN])


def test_another_format_version_is_refused(folder: Path) -> None:
    with pytest.raises(IntegrityError, match="m: format version 2, this program reads 1"):
        Manifest.from_json(changed(folder, format_version=2), "m")


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b'{"version": 1}', b"\xff"])
def test_anything_else_is_not_a_manifest(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="m: not a manifest"):
        Manifest.from_json(data, "m")


def test_missing_key_is_named(folder: Path) -> None:
    raw = json.loads((folder / MANIFEST).read_bytes())
    del raw["index_sha256"]
    with pytest.raises(IntegrityError, match="m: the manifest has no 'index_sha256'"):
        Manifest.from_json(json.dumps(raw).encode(), "m")


def test_data_set_opens_by_folder_and_by_manifest(folder: Path) -> None:
    for uri in (f"{folder}", f"{folder}/", f"{folder}/{MANIFEST}"):
        data_set = open_data_set(uri)
        assert data_set.uri == str(folder)
        assert set(data_set.manifest.fields) == set(FIELDS)
        assert sum(data_set.shards["num_samples"].to_pylist()) == 10
        path = data_set.shards["path"][1].as_py()
        assert data_set.shard_uri(path) == f"{folder}/shards/0000001-000.arrow"


def test_folder_without_manifest_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"manifest.json: no such object; .*not finished"):
        open_data_set(str(tmp_path))


def test_index_of_another_run_is_refused(folder: Path) -> None:
    path = folder / INDEX
    path.write_bytes(path.read_bytes() + b"?")
    with pytest.raises(IntegrityError, match=r"index.arrow: sha256 [0-9a-f]{12}, the manifest"):
        open_data_set(str(folder))


def test_index_lists_every_shard(folder: Path) -> None:
    table = open_data_set(str(folder)).shards
    assert table.schema.names == [
        *("path", "partition", "num_bytes", "sha256", "num_samples", "sources"),
        *("tokens.image", "tokens.text", "tokens.codes"),
    ]
    assert table["partition"].to_pylist() == [0, 1, 2]
    assert table["tokens.image"].to_pylist() == [24, 18, 18]
    assert table["sources"][1].as_py() == [{"name": "input-1.tar", "first": 0, "stop": 3}]


def test_index_depends_on_its_records_alone() -> None:
    shard = Shard("shards/a.arrow", 1, "00", 2, {"image": 3}, (RowRange("a", 0, 2),))
    records = [result(0, (shard,)), result(1), result(2, (shard, shard))]
    data = index_bytes(records, ["image"])
    assert index_bytes(iter(records), ["image"]) == data
    assert index_bytes(records[::-1], ["image"]) == data
    assert index_bytes([], ["image"]) != index_bytes([], ["text"])


def test_golden_samples_are_spread_over_the_partitions() -> None:
    assert golden_of([result(i) for i in range(3)], 3) == [0, 1, 2]
    many = [result(i) for i in range(80)]
    assert golden_of(many, 80) == list(range(0, 80, 80 // GOLDEN_SAMPLES))
    assert golden_of([replace(result(0), golden=None)], 1) == []
    none_before = [replace(found, golden=None) for found in many[:5]] + many[5:]
    assert golden_of(none_before, 80) == [5, *range(10, 80, 10)]


@given(
    num=st.integers(0, 40),
    empty=st.sets(st.integers(0, 39)),
    order=st.randoms(use_true_random=False),
)
def test_golden_samples_do_not_depend_on_the_order_of_commits(
    num: int, empty: set[int], order: random.Random
) -> None:
    records = [
        replace(r, golden=None) if r.partition in empty else r for r in map(result, range(num))
    ]
    picked = golden_of(records, num)
    with_rows = [r.partition for r in records if r.golden is not None]
    assert picked == sorted(set(picked))
    assert set(picked) <= set(with_rows)
    assert len(picked) >= min(len(with_rows), 1)
    if num <= GOLDEN_SAMPLES:
        assert picked == with_rows
    order.shuffle(records)
    assert golden_of(records, num) == picked


def golden_of(records: Sequence[PartitionResult], num_partitions: int) -> list[int]:
    golden = GoldenSamples(num_partitions)
    for found in records:
        golden.add(found)
    return [sample.partition for sample in golden.picked()]
