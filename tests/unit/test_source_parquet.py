"""Parquet: types, row-group ranges, keys, and every fault."""

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import FieldSpec, Ragged
from operators.columns import concat
from pipeline.errors import SetupError, TransientError
from pipeline.protocols import Partition, Rejected, SampleBlock, SourceFile, SourceRange
from pipeline.sources.arrow_types import parse_dtype, to_column
from pipeline.sources.parquet import ParquetConfig, ParquetSource
from pipeline.storage import Entry, Storage


def source_of(folder: Path, **settings: Any) -> ParquetSource:
    config = ParquetConfig(urls=f"{folder}/*.parquet", **settings)
    return ParquetSource(config, Storage(), [str(config.urls)])


def blocks_of(source: ParquetSource, block_rows: int = 3) -> list[SampleBlock]:
    found = [list(source.read(p, block_rows)) for p in source.list_partitions()]
    return [block for blocks in found for block in blocks]


def column(blocks: list[SampleBlock], name: str) -> Any:
    return concat([block.columns[name] for block in blocks])


def rejected(blocks: list[SampleBlock]) -> list[Rejected]:
    return [found for block in blocks for found in block.rejected]


@pytest.mark.parametrize(
    ("values", "found", "want"),
    [
        (["a", "é"], pa.string(), FieldSpec("string")),
        (["a", "b"], pa.large_string(), FieldSpec("string")),
        (["a", "b"], pa.string_view(), FieldSpec("string")),
        (["a", "a"], pa.dictionary(pa.int32(), pa.string()), FieldSpec("string")),
        ([b"a", b"\xff"], pa.binary(), FieldSpec("binary")),
        ([b"ab", b"cd"], pa.binary(2), FieldSpec("binary")),
        ([1, 2], pa.int16(), FieldSpec("int16")),
        ([1, 2], pa.uint32(), FieldSpec("uint32")),
        ([1.5, 2.0], pa.float16(), FieldSpec("float16")),
        ([1.5, 2.0], pa.float64(), FieldSpec("float64")),
        ([True, False], pa.bool_(), FieldSpec("bool")),
        ([[1], [2, 3]], pa.list_(pa.int64()), FieldSpec("int64", (None,))),
        ([[1.0], []], pa.large_list(pa.float32()), FieldSpec("float32", (None,))),
        ([[1, 2], [3, 4]], pa.list_(pa.uint8(), 2), FieldSpec("uint8", (2,))),
    ],
    ids=str,
)
def test_a_column_becomes_the_field_its_type_says(
    tmp_path: Path, values: list[Any], found: pa.DataType, want: FieldSpec
) -> None:
    pq.write_table(pa.table({"x": pa.array(values, found)}), tmp_path / "a.parquet")
    source = source_of(tmp_path, fields=["x"])
    assert source.fields == {"x": want}
    got = column(blocks_of(source, 1), "x")
    if isinstance(got, Ragged):
        assert [got[i].tolist() for i in range(len(got))] == values
        assert got.values.flags.writeable
    else:
        assert got.tolist() == values


def test_ragged_rows_keep_their_places_around_rejected_ones(tmp_path: Path) -> None:
    ids = pa.array([[1, 2], None, [3], [4, None], [], [5, 6]], pa.list_(pa.int32()))
    pq.write_table(pa.table({"ids": ids}), tmp_path / "a.parquet")
    (block,) = blocks_of(source_of(tmp_path, fields={"tokens": "ids"}), 10)
    assert block.rows.tolist() == [0, 2, 4, 5]
    tokens = block.columns["tokens"]
    assert [tokens[i].tolist() for i in range(4)] == [[1, 2], [3], [], [5, 6]]
    assert [(r.key, r.error, r.reason) for r in block.rejected] == [
        ("a.parquet:1", "MissingField", "field 'tokens' is missing or null"),
        ("a.parquet:3", "MissingField", "field 'tokens' holds a null"),
    ]


def test_ragged_rows_are_whole_where_blocks_and_row_groups_end_apart(tmp_path: Path) -> None:
    ids = [[i] * i for i in range(9)]
    pq.write_table(pa.table({"ids": ids}), tmp_path / "a.parquet", row_group_size=5)
    blocks = blocks_of(source_of(tmp_path, fields=["ids"]), 4)
    assert [block.num_samples for block in blocks] == [4, 4, 1]
    for block in blocks:
        found = block.columns["ids"]
        assert found.offsets[0] == 0
        assert [found[i].tolist() for i in range(len(found))] == [ids[row] for row in block.rows]


def test_a_slice_of_lists_is_ragged_from_zero() -> None:
    lists = pa.array([[1], [2, 3], [4]], pa.large_list(pa.int64())).slice(1)
    found = to_column(lists, FieldSpec("int64", (None,)))
    assert (found.values.tolist(), found.offsets.tolist()) == ([2, 3, 4], [0, 2, 3])


def test_text_that_is_not_utf8_is_rejected_by_row(tmp_path: Path) -> None:
    raw = pa.array([b"a", b"b\xff", b"c"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    for dtype in (None, "string"):
        fields = {"text": {"column": "text", "dtype": dtype}}
        (block,) = blocks_of(source_of(tmp_path, fields=fields), 10)
        assert block.columns["text"].to_pylist() == ["a", "c"]
        assert [(r.row, r.error) for r in block.rejected] == [(1, "InvalidUtf8")]
        assert block.rejected[0].reason == "field 'text', byte 1 (0xff): invalid start byte"
    (block,) = blocks_of(source_of(tmp_path, fields={"t": {"column": "text", "dtype": "binary"}}))
    assert block.columns["t"].to_pylist() == [b"a", b"b\xff", b"c"]


def test_a_member_of_a_struct_is_a_column(tmp_path: Path) -> None:
    image = [{"bytes": b"1", "path": "a"}, None, {"bytes": None, "path": "b"}]
    pq.write_table(pa.table({"image": image}), tmp_path / "a.parquet")
    fields = {"image": "image.bytes", "path": "image.path"}
    (block,) = blocks_of(source_of(tmp_path, fields=fields))
    assert block.columns["image"].to_pylist() == [b"1"]
    assert block.columns["path"].to_pylist() == ["a"]
    assert [r.row for r in block.rejected] == [1, 2]


def test_keys_come_from_a_column_or_are_numbered(tmp_path: Path) -> None:
    table = pa.table({"id": [7, 8, 7, None], "name": ["a", None, "b", "a"], "x": [0, 1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    numbered = blocks_of(source_of(tmp_path, fields=["x"]), 1)
    assert column(numbered, "key").to_pylist() == [f"a.parquet:{i}" for i in range(4)]
    by_id = blocks_of(source_of(tmp_path, fields=["x"], key="id"), 1)
    assert column(by_id, "key").to_pylist() == ["7", "8"]
    assert [(r.row, r.key, r.error) for r in rejected(by_id)] == [
        (2, "7", "DuplicateKey"),
        (3, "a.parquet:3", "MissingField"),
    ]
    by_name = blocks_of(source_of(tmp_path, fields=["x", "name"], key="name"), 2)
    assert column(by_name, "key").to_pylist() == ["a", "b"]


def test_later_files_may_hold_narrower_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([1], pa.int64())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": pa.array([2], pa.uint8())}), tmp_path / "b.parquet")
    assert column(blocks_of(source_of(tmp_path, fields=["x"])), "x").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("second", "settings", "match"),
    [
        ({"y": [1]}, {}, r"b\.parquet: there is no column 'x' among y"),
        ({"x": ["a"]}, {}, r"b\.parquet: column 'x' is string, field 'x' is int32"),
        ({"x": [1]}, {}, r"column 'x' is int64, field 'x' is int32"),
        ({"x": [{"a": 1}]}, {}, r"column 'x' is struct<a: int64>, expected text, bytes, numbers"),
        ({"x": [[[1]]]}, {}, r"column 'x' is list<"),
        ({"x": pa.array([1], pa.int32())}, {"key": "k"}, r"there is no column 'k' among x"),
        ({"x": pa.array([1], pa.int32())}, {"key": "x.y"}, r"there is no column 'x.y' among x"),
    ],
)
def test_a_file_of_another_schema_is_named_when_listed(
    tmp_path: Path, second: Any, settings: Any, match: str
) -> None:
    first = {"x": pa.array([1], pa.int32()), "k": ["a"]}
    pq.write_table(pa.table(first), tmp_path / "a.parquet")
    pq.write_table(pa.table(second), tmp_path / "b.parquet")
    with pytest.raises(SetupError, match=match):
        list(source_of(tmp_path, fields=["x"], **settings).list_partitions())


def test_a_key_of_real_numbers_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [0.5]}), tmp_path / "a.parquet")
    with pytest.raises(SetupError, match="key column 'x' is float64"):
        list(source_of(tmp_path, fields=["x"], key="x").list_partitions())


@pytest.mark.parametrize("data", [b"", b"PAR1", b"<html>" * 20, b"PAR1" + b"x" * 99 + b"PAR1"])
def test_what_is_no_parquet_is_named_when_listed(tmp_path: Path, data: bytes) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(data)
    with pytest.raises(SetupError, match=r"b\.parquet: .*; it is no Parquet file"):
        list(source_of(tmp_path, fields=["x"]).list_partitions())


@pytest.mark.parametrize("block_rows", [1, 7, 1000])
def test_a_damaged_page_rejects_the_rest_of_its_row_group(tmp_path: Path, block_rows: int) -> None:
    path = tmp_path / "a.parquet"
    text = [f"{i:05d}" * 40 for i in range(300)]
    pq.write_table(
        pa.table({"text": text}),
        path,
        row_group_size=100,
        data_page_size=1,
        write_batch_size=10,
        use_dictionary=False,
        compression="zstd",
        write_page_checksum=False,
    )
    leaf = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    middle = leaf.data_page_offset + leaf.total_compressed_size // 2
    data[middle : middle + 60] = b"\xff" * 60
    path.write_bytes(data)
    blocks = blocks_of(source_of(tmp_path, fields=["text"]), block_rows)
    bad = rejected(blocks)
    rows = [row for block in blocks for row in block.rows.tolist()]
    assert column(blocks, "text").to_pylist() == [text[row] for row in rows]
    assert [r.row for r in bad] == list(range(bad[0].row, 200))
    assert 110 <= bad[0].row <= 190
    assert bad[0].row % 10 == 0  # a page
    assert {r.error for r in bad} == {"CorruptParquet"}
    assert "row group 1 cannot be decoded" in bad[0].reason


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    group=st.integers(1, 20),
    partition_bytes=st.integers(1, 3000),
)
def test_ranges_cover_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], group: int, partition_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    for i, count in enumerate(rows):
        table = pa.table({"x": pa.array(np.arange(count), pa.int64()), "y": ["unused"] * count})
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=group)
    source = source_of(folder, fields=["x"], partition_bytes=partition_bytes)
    partitions = list(source.list_partitions())
    keys = []
    for partition in partitions:
        for block in source.read(partition, 16):
            keys += block.columns["key"].to_pylist()
            numbers = [int(key.rpartition(":")[2]) for key in block.columns["key"].to_pylist()]
            assert block.columns["x"].tolist() == numbers
        cut = [r.stop is not None for r in partition.ranges]
        assert partition.num_bytes <= partition_bytes or len(cut) == 1
        assert len(cut) == 1 or not any(cut)
    assert keys == [f"{i}.parquet:{row}" for i, count in enumerate(rows) for row in range(count)]


def test_a_large_file_is_cut_into_nearly_equal_ranges(tmp_path: Path) -> None:
    table = pa.table({"x": np.random.default_rng(0).integers(0, 2**60, 64_000)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000, compression="none")
    source = source_of(tmp_path, fields=["x"], partition_bytes=200_000)
    sizes = [p.num_bytes for p in source.list_partitions()]
    assert len(sizes) > 2
    assert max(sizes) - min(sizes) < 0.1 * max(sizes)


class LosingStorage(Storage):
    """Holds one remote object and loses the connection after some reads."""

    def __init__(self, data: bytes, num_reads: int) -> None:
        super().__init__()
        self._data, self._num_reads = data, num_reads

    def local_path(self, uri: str) -> Path | None:
        return None

    def stat(self, uri: str) -> Entry:
        return Entry(uri, len(self._data), "")

    def open_read(self, uri: str, *, read_ahead: bool = True) -> BinaryIO:
        assert not read_ahead
        left = iter(range(self._num_reads))

        class File(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if next(left, None) is None:
                    raise TransientError(f"{uri}: lost")
                return super().read(size)

        return File(self._data)

    def opened(self, uri: str, file: BinaryIO) -> Entry:
        return self.stat(uri)


@pytest.mark.parametrize("num_reads", [0, 1, 2, 4])
def test_a_lost_connection_is_no_damage(num_reads: int) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"x": range(9000)}), file, row_group_size=1000)
    data = file.getvalue()
    fields: Any = {"x": {"column": "x", "dtype": "int64"}}
    config = ParquetConfig(urls="r://a", fields=fields)
    partition = Partition(0, (SourceRange(SourceFile("r://a", "a", len(data)), len(data)),))
    with pytest.raises(TransientError, match="r://a: lost"):
        list(ParquetSource(config, LosingStorage(data, num_reads), ["r://a"]).read(partition, 100))
    whole = ParquetSource(config, LosingStorage(data, 1000), ["r://a"])
    assert sum(len(block.rows) for block in whole.read(partition, 100)) == 9000


def test_dtypes_of_the_config_need_no_file() -> None:
    fields: Any = {
        "a": {"column": "a", "dtype": "uint16[*]"},
        "b": {"column": "b", "dtype": "int8"},
    }
    source = ParquetSource(ParquetConfig(urls="absent", fields=fields), Storage(), ["absent"])
    assert source.fields == {"a": FieldSpec("uint16", (None,)), "b": FieldSpec("int8")}


@pytest.mark.parametrize(
    "text", ["", "text", "int7", "string[*]", "int64[0]", "int64[]", "int64[-1]"]
)
def test_an_unknown_dtype_lists_those_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="is not one of string, binary, bool"):
        parse_dtype(text)
    with pytest.raises(ValidationError, match="is not one of"):
        ParquetConfig(urls="x", fields={"x": {"column": "x", "dtype": text}})


def test_a_list_of_names_is_short_for_equal_columns() -> None:
    names: Any = ["a", "b"]
    long: Any = {"a": {"column": "a"}, "b": "b"}
    assert ParquetConfig(urls="x", fields=names) == ParquetConfig(urls="x", fields=long)
