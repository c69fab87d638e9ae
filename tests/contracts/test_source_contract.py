"""What the engine relies on, for every source: nothing lost, nothing twice, always the same."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import TypeAdapter

from operators.base import Column, FieldSpec, Ragged
from operators.columns import check_column, concat
from pipeline.errors import IntegrityError
from pipeline.protocols import Partition, SampleBlock, Source
from pipeline.sources import SourceConfig, blocks, build_source, jsonl, parquet
from pipeline.storage import NotFoundError, Storage


def tar_bytes(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def tar_samples(count: int) -> list[tuple[str, bytes]]:
    return [
        (f"d/{i:04d}.{extension}", data)
        for i in range(count)
        for extension, data in (("jpg", b"image %d" % i * i), ("txt", f"ä {i}".encode()))
    ]


def write_webdataset(folder: Path) -> dict[str, object]:
    good = tar_samples(23)
    bad = [
        *good,
        ("lacks.jpg", b"x"),
        ("twice.jpg", b"1"),
        ("twice.jpg", b"2"),
        ("twice.txt", b""),
        ("latin.jpg", b"x"),
        ("latin.txt", b"\xe4"),
        *good[:2],
        ("last.jpg", b"x"),
        ("last.txt", b"x"),
    ]
    (folder / "a.tar").write_bytes(tar_bytes(good))
    (folder / "b.tar").write_bytes(tar_bytes(bad))
    (folder / "c.tar.gz").write_bytes(gzip.compress(tar_bytes(good)))
    (folder / "d.tar").write_bytes(tar_bytes(good)[:20_000])
    (folder / "e.tar.gz").write_bytes(gzip.compress(tar_bytes(good))[:400])
    (folder / "f.tar").write_bytes(tar_bytes(good))
    return {
        "type": "webdataset",
        "urls": f"{folder}/*",
        "fields": {"image": "jpg;png", "text": "txt"},
    }


def write_parquet(folder: Path) -> dict[str, object]:
    def table(count: int) -> pa.Table:
        text = [None if i % 11 == 3 else f"ü {i}" for i in range(count)]
        ids = [None if i % 13 == 5 else list(range(i % 5)) for i in range(count)]
        names = [f"n{i - i % 17 // 16}" for i in range(count)]
        struct = [{"bytes": b"%d" % i, "path": "p"} for i in range(count)]
        return pa.table(
            {
                "text": text,
                "ids": pa.array(ids, pa.list_(pa.int32())),
                "name": names,
                "image": struct,
                "score": pa.array(np.arange(count), pa.int32()),
                "vector": pa.array([[i, i] for i in range(count)], pa.list_(pa.float32(), 2)),
            }
        )

    pq.write_table(table(100), folder / "a.parquet", row_group_size=9)
    pq.write_table(table(20), folder / "b.parquet")
    pq.write_table(table(1).slice(0, 0), folder / "c.parquet")
    pq.write_table(table(30), folder / "d.parquet")
    return {
        "type": "parquet",
        "urls": f"{folder}/*.parquet",
        "fields": {
            "text": "text",
            "ids": "ids",
            "image": "image.bytes",
            "score": {"column": "score", "dtype": "int64"},
            "vector": "vector",
        },
        "key": "name",
        "partition_bytes": 1500,
    }


def write_jsonl(folder: Path) -> dict[str, object]:
    def lines(count: int) -> bytes:
        rows: list[bytes] = []
        for i in range(count):
            row = {"text": f"é {i}\n", "id": f"k{i}", "n": i, "meta": {"ids": [i] * (i % 3)}}
            rows.append(json.dumps(row, ensure_ascii=i % 2 == 0).encode())
        bad = {
            3: b"{",
            5: b"",
            8: b'{"text":"\xff","id":"b","n":1,"meta":{"ids":[]}}',
            9: b'{"text":3,"id":"c","n":1,"meta":{"ids":[]}}',
            12: b'{"id":"d","n":1,"meta":{"ids":[]}}',
            14: rows[13],
            15: rows[15] + rows[16],
            17: b'{"text":"x","n":1,"meta":{"ids":[]}}',
            19: b'{"text":"x","id":"e","n":1,"meta":{"ids":[null]}}',
            20: b" \t\r",
        }
        for i, line in bad.items():
            rows[i] = line
        return b"\n".join(rows)

    (folder / "a.jsonl").write_bytes(lines(40))
    (folder / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(30).replace(b"\n", b"\r\n") + b"\n")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines(30)) + gzip.compress(b"\n" + lines(30)))
    (folder / "d.jsonl.zst").write_bytes(zstandard.compress(lines(30)))
    (folder / "e.jsonl.gz").write_bytes(gzip.compress(lines(50))[:300])
    (folder / "f.jsonl.zst").write_bytes(zstandard.compress(lines(25))[:-9])
    (folder / "g.jsonl").write_bytes(b"")
    return {
        "type": "jsonl",
        "urls": f"{folder}/*",
        "fields": {
            "text": "text",
            "n": {"path": "n", "dtype": "int64"},
            "ids": {"path": "meta.ids", "dtype": "int64[*]"},
        },
        "key": "id",
    }


def write_image_folder(folder: Path) -> dict[str, object]:
    for i in range(40):
        path = folder / f"class{i % 3}" / f"{i}.{'JPG' if i % 2 else 'png'}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"%d" % i * i)
    (folder / "top.jpg").write_bytes(b"x")
    (folder / "class1" / "notes.txt").write_bytes(b"no image")
    return {"type": "image_folder", "urls": str(folder), "partition_bytes": 500}


WRITERS: list[Callable[[Path], dict[str, object]]] = [
    write_webdataset,
    write_parquet,
    write_jsonl,
    write_image_folder,
]


@pytest.fixture(params=WRITERS, ids=lambda writer: writer.__name__.removeprefix("write_"))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    settings = request.param(tmp_path)
    config = TypeAdapter(SourceConfig).validate_python(settings)
    return build_source(config, Storage(), [settings["urls"]])


def read(source: Source, block_rows: int = 1000) -> list[list[SampleBlock]]:
    return [list(source.read(p, block_rows)) for p in source.list_partitions()]


def equal(a: Column, b: Column) -> bool:
    if isinstance(a, Ragged):
        return np.array_equal(a.values, b.values) and np.array_equal(a.offsets, b.offsets)
    return bool(a.equals(b)) if isinstance(a, pa.Array) else np.array_equal(a, b)


def test_every_sample_is_kept_or_rejected(source: Source) -> None:
    for part in read(source, 7):
        row = 0
        for block in part:
            assert block.first_row == row
            assert 0 < block.num_samples <= 7
            bad = [r.row for r in block.rejected]
            assert bad == sorted(bad)
            assert sorted([*block.rows.tolist(), *bad]) == list(range(row, row + block.num_samples))
            row += block.num_samples


def test_columns_are_what_the_fields_say(source: Source) -> None:
    for block in chain.from_iterable(read(source, 7)):
        assert list(block.columns) == ["key", *source.fields]
        assert block.rows.dtype == np.int64
        for name, spec in ({"key": FieldSpec("string")} | dict(source.fields)).items():
            check_column(name, block.columns[name], spec, len(block.rows), "source")
            if isinstance(block.columns[name], pa.Array):
                assert block.columns[name].null_count == 0
                block.columns[name].validate(full=True)


@pytest.mark.parametrize("block_rows", [1, 7, 1000])
def test_rows_do_not_depend_on_the_block_size(source: Source, block_rows: int) -> None:
    for want, got in zip(read(source, 64), read(source, block_rows), strict=True):
        assert [r for b in want for r in b.rejected] == [r for b in got for r in b.rejected]
        assert np.array_equal(concat([b.rows for b in want]), concat([b.rows for b in got]))
        for name in ("key", *source.fields):
            columns = [concat([b.columns[name] for b in part]) for part in (want, got)]
            assert equal(*columns), name


def test_large_samples_make_short_blocks_of_the_same_rows(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = read(source)
    for module in (blocks, parquet):
        monkeypatch.setattr(module, "BLOCK_BYTES", 300)
    monkeypatch.setattr(jsonl, "READ_BYTES", 100)
    short = read(source)
    assert sum(map(len, short)) > sum(map(len, usual))
    for want, got in zip(usual, short, strict=True):
        assert [r for b in want for r in b.rejected] == [r for b in got for r in b.rejected]
        for name in ("key", *source.fields):
            columns = [concat([b.columns[name] for b in part]) for part in (want, got)]
            assert equal(*columns), name


def test_reading_twice_gives_the_same(source: Source) -> None:
    assert list(source.list_partitions()) == list(source.list_partitions())
    for one, two in zip(read(source, 7), read(source, 7), strict=True):
        for a, b in zip(one, two, strict=True):
            assert all(equal(a.columns[name], b.columns[name]) for name in a.columns)
            assert (a.rejected, a.file_name, a.num_bytes) == (b.rejected, b.file_name, b.num_bytes)


def test_keys_are_unique_in_a_file(source: Source) -> None:
    keys: dict[str, list[str]] = {}
    for block in chain.from_iterable(read(source, 7)):
        keys.setdefault(block.file_name, []).extend(block.columns["key"].to_pylist())
    assert all(len(names) == len(set(names)) for names in keys.values())


def test_partitions_cover_every_file_once_in_order(source: Source) -> None:
    partitions = list(source.list_partitions())
    assert [p.index for p in partitions] == list(range(len(partitions)))
    ranges = [(r.file.name, r.first) for p in partitions for r in p.ranges]
    assert ranges == sorted(set(ranges))


def test_count_is_what_read_covers(source: Source) -> None:
    for partition in source.list_partitions():
        total = sum(block.num_samples for block in source.read(partition, 7))
        assert source.count_samples(partition, 10**9) == total
        for at_most in (1, 5, total):
            assert source.count_samples(partition, at_most) == min(at_most, total)


@pytest.mark.parametrize("max_samples", [1, 7, 10, 26])
def test_max_samples_is_a_prefix(source: Source, max_samples: int) -> None:
    for partition in source.list_partitions():
        everything = list(source.read(partition, 7))
        some = list(source.read(replace(partition, max_samples=max_samples), 7))
        total = sum(block.num_samples for block in everything)
        assert sum(block.num_samples for block in some) == min(total, max_samples)
        rows = concat([block.rows for block in everything])
        assert np.array_equal(concat([b.rows for b in some]), rows[rows < max_samples])
        limited = replace(partition, max_samples=max_samples)
        assert source.count_samples(limited, 10**9) == min(total, max_samples)


def largest(source: Source) -> tuple[Partition, Path]:
    partition = max(source.list_partitions(), key=lambda p: p.num_bytes)
    return partition, Path(partition.ranges[0].file.uri)


def test_a_changed_object_is_refused(source: Source) -> None:
    partition, path = largest(source)
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    with pytest.raises(IntegrityError, match="is not the one that was planned"):
        list(source.read(partition, 7))


def test_an_object_rewritten_with_equal_size_is_refused(source: Source) -> None:
    partition, _ = largest(source)
    first = partition.ranges[0]
    other = replace(first, file=replace(first.file, version="1"))
    with pytest.raises(IntegrityError, match="of version 1"):
        list(source.read(replace(partition, ranges=(other,)), 7))


def test_a_removed_object_is_named(source: Source) -> None:
    partition, path = largest(source)
    path.unlink()
    with pytest.raises(NotFoundError, match=path.name):
        list(source.read(partition, 7))


def test_importing_sources_is_cheap() -> None:
    code = "import sys, pipeline.sources; print({'torch', 'ray', 'webdataset'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_names_do_not_depend_on_where_the_data_lies(tmp_path: Path) -> None:
    for writer in WRITERS:
        listings = []
        for place in ("here", "some/where/else"):
            folder = tmp_path / writer.__name__ / place
            folder.mkdir(parents=True)
            settings = writer(folder)
            config = TypeAdapter(SourceConfig).validate_python(settings)
            source = build_source(config, Storage(), [str(settings["urls"])])
            listings.append(
                [
                    [(r.file.name, r.num_bytes, r.first, r.stop) for r in p.ranges]
                    for p in source.list_partitions()
                ]
            )
        assert listings[0] == listings[1]
