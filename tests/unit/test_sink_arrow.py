"""The Arrow sink: bytes follow from the rows alone, and say where the rows came from."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.base import FieldSpec, Ragged
from operators.columns import take_batch
from pipeline.errors import ContractError
from pipeline.protocols import RowRange, Shard
from pipeline.sinks import ArrowSink, arrow
from pipeline.storage import Storage
from tests.loader_data import FIELDS, rows

NAMES = ["a.tar", "b.tar"]
NUM = 40


def make(folder: Path, **options: Any) -> ArrowSink:
    return ArrowSink(
        Storage(), str(folder), 7, NAMES, FIELDS, {"fingerprint": "x", "partition": 7}, **options
    )


def write(folder: Path, cuts: list[int], num: int = NUM, **options: Any) -> list[Shard]:
    """Write rows in pieces; the first half comes from one file, the rest from another."""
    sink, columns = make(folder, **options), rows(num)
    files = (np.arange(num) >= num // 2).astype(np.int32)
    numbers = np.where(files == 0, np.arange(num) * 2, np.arange(num))  # half are filtered in a
    for start, stop in zip([0, *cuts], [*cuts, num], strict=True):
        part = np.arange(start, stop)
        sink.write(take_batch(columns, part), files[part], numbers[part])
    return list(sink.close())


def batches(path: Path) -> list[pa.RecordBatch]:
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]


def batch_sources(path: Path) -> list[list[list[Any]]]:
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        found = [
            reader.get_batch_with_custom_metadata(i).custom_metadata
            for i in range(reader.num_record_batches)
        ]
    return [json.loads(item[b"tokenmill"])["sources"] for item in found]


def row_bytes(columns: dict[str, Any], row: int) -> int:
    text = sum(len(columns[name][row].as_py().encode()) for name in ("key", "caption"))
    return int(text + columns["image"][row].nbytes + columns["text"][row].nbytes + 8)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cuts=st.lists(st.integers(0, NUM), max_size=6).map(sorted),
    compression=st.sampled_from(["none", "zstd"]),
    shard_bytes=st.sampled_from([1, 4_000, 1 << 30]),
)
def test_bytes_do_not_depend_on_how_rows_arrive(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    cuts: list[int],
    compression: str,
    shard_bytes: int,
) -> None:
    monkeypatch.setattr(arrow, "BATCH_BYTES", 300)
    one, many = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("many")
    whole = write(one, [], compression=compression, shard_bytes=shard_bytes)
    pieces = write(many, cuts, compression=compression, shard_bytes=shard_bytes)
    assert pieces == whole
    for shard in whole:
        data = (many / shard.path).read_bytes()
        assert data == (one / shard.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.num_bytes, shard.sha256)


def test_schema_is_the_one_of_the_format(tmp_path: Path) -> None:
    """Other readers rely on names, order and types."""
    [shard] = write(tmp_path, [])
    table = pa.ipc.open_file(str(tmp_path / shard.path)).read_all()
    assert table.schema.names == ["key", *FIELDS]
    assert not any(field.nullable for field in table.schema)
    assert str(table.schema.field("image").type) == "fixed_size_list<item: uint16 not null>[6]"
    assert str(table.schema.field("text").type) == "list<item: uint32 not null>"
    assert (
        str(table.schema.field("codes").type)
        == "fixed_size_list<item: fixed_size_list<item: uint8 not null>[2] not null>[4]"
    )
    assert table.schema.field("caption").type == pa.string()
    assert json.loads(table.schema.metadata[b"tokenmill"]) == {"fingerprint": "x", "partition": 7}


def test_values_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "BATCH_BYTES", 300)
    want = rows(NUM)
    [shard] = write(tmp_path, [3, 17])
    table = pa.Table.from_batches(batches(tmp_path / shard.path))
    assert table["key"].to_pylist() == want["key"].to_pylist()
    assert table["caption"].to_pylist() == want["caption"].to_pylist()
    assert table["image"].to_pylist() == want["image"].tolist()
    assert table["codes"].to_pylist() == want["codes"].tolist()
    assert table["text"].to_pylist() == [want["text"][i].tolist() for i in range(NUM)]
    assert shard.num_samples == NUM
    assert shard.tokens == {"image": NUM * 6, "text": want["text"].offsets[-1], "codes": NUM * 8}


def test_a_record_batch_ends_with_the_row_that_fills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "BATCH_BYTES", 300)
    columns = rows(NUM)
    want, size, count = [], 0, 0
    for row in range(NUM):
        size, count = size + row_bytes(columns, row), count + 1
        if size >= 300:
            want.append(count)
            size, count = 0, 0
    want += [count] if count else []
    [shard] = write(tmp_path, [11])
    assert len(want) > 3
    assert [batch.num_rows for batch in batches(tmp_path / shard.path)] == want


def test_a_shard_ends_with_the_record_batch_that_fills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "BATCH_BYTES", 300)
    shards = write(tmp_path, [], shard_bytes=1)  # the schema alone fills it
    assert [shard.path for shard in shards] == [
        f"shards/0000007-{n:03d}.arrow" for n in range(len(shards))
    ]
    assert all(len(batches(tmp_path / shard.path)) == 1 for shard in shards)
    assert sum(shard.num_samples for shard in shards) == NUM
    larger = write(tmp_path / "larger", [], shard_bytes=4_000)
    assert 1 < len(larger) < len(shards)
    assert all(shard.num_bytes >= 4_000 for shard in larger[:-1])


def test_sources_say_which_rows_a_shard_and_a_batch_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [whole] = write(tmp_path / "whole", [5])
    assert whole.sources == (RowRange("a.tar", 0, 39), RowRange("b.tar", 20, 40))
    assert batch_sources(tmp_path / "whole" / whole.path) == [[["a.tar", 0, 39], ["b.tar", 20, 40]]]
    monkeypatch.setattr(arrow, "BATCH_BYTES", 300)
    [cut] = write(tmp_path / "cut", [5])
    assert cut.sources == whole.sources
    path = tmp_path / "cut" / cut.path
    row = 0
    for batch, found in zip(batches(path), batch_sources(path), strict=True):
        stop = row + batch.num_rows
        in_a, in_b = range(row, min(stop, 20)), range(max(row, 20), stop)
        want = [["a.tar", in_a[0] * 2, in_a[-1] * 2 + 1]] if in_a else []
        want += [["b.tar", in_b[0], in_b[-1] + 1]] if in_b else []
        assert found == want
        row = stop


def test_zstd_is_smaller_and_holds_the_same(tmp_path: Path) -> None:
    [plain] = write(tmp_path / "none", [], num=2_000)
    [small] = write(tmp_path / "zstd", [], num=2_000, compression="zstd")
    assert small.num_bytes < plain.num_bytes
    want = pa.Table.from_batches(batches(tmp_path / "none" / plain.path))
    assert pa.Table.from_batches(batches(tmp_path / "zstd" / small.path)).equals(want)


def test_no_rows_no_shard(tmp_path: Path) -> None:
    assert write(tmp_path, [], num=0) == []
    assert list(tmp_path.iterdir()) == []


def test_abort_leaves_nothing_of_the_open_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow, "BATCH_BYTES", 300)
    sink = make(tmp_path)
    sink.write(rows(NUM), np.zeros(NUM, np.int32), np.arange(NUM))
    assert [path.suffix for path in (tmp_path / "shards").iterdir()] == [".tmp"]
    sink.abort()
    assert list((tmp_path / "shards").iterdir()) == []


def test_abort_keeps_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another attempt may have committed them: same name, same bytes."""
    monkeypatch.setattr(arrow, "BATCH_BYTES", 300)
    whole = write(tmp_path / "whole", [], shard_bytes=4_000)
    sink = make(tmp_path / "aborted", shard_bytes=4_000)
    sink.write(rows(NUM), np.zeros(NUM, np.int32), np.arange(NUM))
    sink.abort()
    assert sorted(path.name for path in (tmp_path / "aborted" / "shards").iterdir()) == [
        Path(shard.path).name for shard in whole[:-1]
    ]


def test_null_is_refused(tmp_path: Path) -> None:
    columns = {**rows(2), "caption": pa.array(["a", None], pa.large_string())}
    with pytest.raises(ContractError, match="partition 7: 1 values of field 'caption' are null"):
        make(tmp_path).write(columns, np.zeros(2, np.int32), np.arange(2))


def test_row_above_the_limit_is_refused(tmp_path: Path) -> None:
    """Without the limit its 32-bit offsets would wrap silently."""
    huge = Ragged(np.broadcast_to(np.uint32(0), (1 << 29,)), np.array([0, 1 << 29]))
    with pytest.raises(ContractError, match=r"sample '00000': 2,147,483,6\d\d bytes, .* 1,073,741"):
        make(tmp_path).write({**rows(1), "text": huge}, np.zeros(1, np.int32), np.arange(1))


def test_dimension_of_zero_is_refused(tmp_path: Path) -> None:
    """In pyarrow 26 it is a division by zero, which ends the process."""
    fields = {"x": FieldSpec("uint8", (4, 0))}
    with pytest.raises(ContractError, match=r"uint8\[4, 0\] cannot be stored"):
        ArrowSink(Storage(), str(tmp_path), 0, NAMES, fields, {})


def test_sink_works_in_a_process_that_imported_nothing_else(tmp_path: Path) -> None:
    """``pyarrow.compute`` is there only once someone has imported it."""
    code = (
        "import sys, numpy as np, pyarrow as pa\n"
        "from operators.base import FieldSpec\n"
        "from pipeline.sinks.arrow import ArrowSink\n"
        "from pipeline.storage import Storage\n"
        "sink = ArrowSink(Storage(), sys.argv[1], 0, ['a'], {'x': FieldSpec('uint8')}, {})\n"
        "columns = {'key': pa.array(['k'], pa.large_string()), 'x': np.zeros(1, np.uint8)}\n"
        "sink.write(columns, np.zeros(1, np.int32), np.zeros(1, np.int64))\n"
        "print(sink.close()[0].path)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "shards/0000000-000.arrow\n"
