"""Shards open with the tools people have: pyarrow, pandas, Hugging Face datasets, DuckDB."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.loader_data import FIELDS, rows, write_data_set

NUM = 12


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Return the only shard: dense ids, ragged ids, [T, streams] ids and text."""
    write_data_set(tmp_path / "data", rows(NUM), partitions=1)
    [path] = (tmp_path / "data" / "shards").iterdir()
    return path


def lists(name: str) -> list[Any]:
    column = rows(NUM)[name]
    return [column[i].tolist() for i in range(NUM)]


def test_pyarrow(shard: Path) -> None:
    table = pa.ipc.open_file(pa.memory_map(str(shard))).read_all()
    assert table.schema.names == ["key", *FIELDS]
    for name in ("image", "text", "codes"):
        assert table[name].to_pylist() == lists(name)
    assert table["caption"].to_pylist() == rows(NUM)["caption"].to_pylist()


def test_pandas(shard: Path) -> None:
    import pandas as pd

    frame = pd.read_feather(shard)
    assert frame["key"].tolist() == [f"{i:05d}" for i in range(NUM)]
    assert frame["image"][3].dtype == np.uint16
    assert [row.tolist() for row in frame["text"]] == lists("text")
    assert [np.stack(row).tolist() for row in frame["codes"]] == lists("codes")


def test_hugging_face_datasets(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    data = datasets.load_dataset(
        "arrow", data_files=str(shard), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert data.num_rows == NUM
    assert str(data.features["image"].feature.dtype) == "uint16"
    for name in ("image", "text", "codes"):
        assert data[:][name] == lists(name)


def test_duckdb(shard: Path) -> None:
    import duckdb

    tokens = pa.ipc.open_file(pa.memory_map(str(shard))).read_all()
    connection = duckdb.connect()
    connection.register("tokens", tokens)
    found = connection.sql(
        "select key, image[1], len(text), codes[4][2] from tokens where image[1] >= 9 order by key"
    ).fetchall()
    texts, codes = lists("text"), lists("codes")
    assert found == [(f"{i:05d}", i, len(texts[i]), codes[i][3][1]) for i in range(9, NUM)]
