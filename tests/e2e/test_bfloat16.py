"""bfloat16 from a sink to a training loop, and to formats that do not have it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from operators.base import FieldSpec, Ragged
from operators.columns import to_numpy, to_torch
from pipeline.export import ExportSettings
from pipeline.exporting import export
from pipeline.loader import RaggedBatch, TokenDataset
from tests.loader_data import write_data_set

FIELDS = {
    "whole": FieldSpec("bfloat16", (3, 2)),
    "ragged": FieldSpec("bfloat16", (None, 4)),
    "one": FieldSpec("bfloat16"),
}


def columns(rows: int) -> dict[str, object]:
    random = np.random.default_rng(0)
    offsets = np.concatenate(([0], np.cumsum(random.integers(0, 5, rows))))
    return {
        "key": pa.array([f"{i}" for i in range(rows)], pa.large_string()),
        "whole": random.normal(size=(rows, 3, 2)).astype("bfloat16"),
        "ragged": Ragged(random.normal(size=(offsets[-1], 4)).astype("bfloat16"), offsets),
        "one": np.arange(rows).astype("bfloat16"),
    }


def test_the_loader_gives_bfloat16(tmp_path: Path) -> None:
    given = columns(11)
    url = write_data_set(tmp_path, given, FIELDS)
    data = TokenDataset(url, batch_size=4, seed=3)
    seen = 0
    for batch in data:
        ragged = batch["ragged"]
        assert isinstance(ragged, RaggedBatch)
        for place, row in enumerate(batch["one"].int().tolist()):
            assert batch["whole"].dtype == ragged.values.dtype == torch.bfloat16
            whole, rows = given["whole"], given["ragged"]
            assert isinstance(whole, np.ndarray)
            assert isinstance(rows, Ragged)
            assert torch.equal(batch["whole"][place], to_torch(whole[row]))
            assert torch.equal(ragged[place], to_torch(rows[row]))
            seen += 1
    assert seen == 11


def test_shards_hold_the_bits_and_say_so(tmp_path: Path) -> None:
    given = columns(5)
    url = write_data_set(tmp_path, given, FIELDS, partitions=1)
    (shard,) = Path(url, "shards").iterdir()
    with pa.memory_map(str(shard)) as file:
        table = pa.ipc.open_file(file).read_all()
    field = table.schema.field("one")
    assert field.metadata == {b"dtype": b"bfloat16"}
    one = given["one"]
    assert isinstance(one, np.ndarray)
    assert table["one"].to_pylist() == one.view(np.uint16).tolist()


def test_an_export_widens_to_float32(tmp_path: Path) -> None:
    given = columns(7)
    url = write_data_set(tmp_path / "data", given, FIELDS)
    export(url, str(tmp_path / "out"), ExportSettings("parquet"))
    table = pa.concat_tables(
        pq.read_table(p) for p in sorted((tmp_path / "out").rglob("*.parquet"))
    )
    whole, ragged = given["whole"], given["ragged"]
    assert isinstance(whole, np.ndarray)
    assert isinstance(ragged, Ragged)
    assert np.array_equal(np.array(table["whole"].to_pylist()), whole.astype(np.float32))
    for row, values in enumerate(table["ragged"].to_pylist()):
        assert np.array_equal(np.array(values).reshape(-1, 4), ragged[row].astype(np.float32))


def test_tensors_go_there_and_back() -> None:
    values = np.array([[1.5, -2.0, 3e38]]).astype("bfloat16")
    tensor = to_torch(values)
    assert tensor.dtype == torch.bfloat16
    assert np.array_equal(to_numpy(tensor).view(np.uint16), values.view(np.uint16))
