"""Row operations give what plain Python lists would give, for every kind of column."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from operators.base import FieldSpec, Ragged
from operators.columns import as_ragged, check_column, concat, num_bytes, num_rows, num_values, take
from operators.errors import ContractError

rows_of_ids = st.lists(st.lists(st.integers(0, 60_000), max_size=6), min_size=1, max_size=12)


def ragged(rows: list[list[int]]) -> Ragged:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    return Ragged(np.array([i for row in rows for i in row], np.uint16), offsets)


def lists(column: Any) -> list[Any]:
    if isinstance(column, pa.Array):
        return column.to_pylist()  # type: ignore[no-any-return]
    return [np.asarray(column[i]).tolist() for i in range(num_rows(column))]


@given(rows=rows_of_ids, data=st.data())
def test_take_ragged_as_lists_would(rows: list[list[int]], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=40))
    found = take(ragged(rows), np.array(index, np.int64))
    assert lists(found) == [rows[i] for i in index]
    assert found.values.dtype == np.uint16


@given(num=st.integers(9, 60), drop=st.integers(0, 59))
def test_take_all_rows_but_one(num: int, drop: int) -> None:
    rows = [[i] * (i % 4) for i in range(num)]
    index = np.array([i for i in range(num) if i != drop])
    assert lists(take(ragged(rows), index)) == [rows[i] for i in index]


@given(parts=st.lists(rows_of_ids, min_size=1, max_size=4))
def test_concat_ragged_as_lists_would(parts: list[list[list[int]]]) -> None:
    assert lists(concat([ragged(part) for part in parts])) == [
        row for part in parts for row in part
    ]


def test_take_and_concat_other_kinds() -> None:
    index = np.array([2, 0])
    text = pa.array(["a", "b", "c"], pa.large_string())
    dense = np.arange(6).reshape(3, 2)
    images = [Image.new("RGB", (i + 1, 1)) for i in range(3)]
    assert take(text, index).to_pylist() == ["c", "a"]
    assert take(dense, index).tolist() == [[4, 5], [0, 1]]
    assert [image.width for image in take(images, index)] == [3, 1]
    assert concat([text, text]).to_pylist() == ["a", "b", "c"] * 2
    assert concat([dense, dense]).shape == (6, 2)
    assert len(concat([images, images])) == 6


def test_counts() -> None:
    rows = ragged([[1, 2], [], [3]])
    assert (num_rows(rows), num_values(rows)) == (3, 3)
    assert num_values(np.zeros((4, 8), np.uint8)) == 32
    assert num_bytes(np.zeros((4, 8), np.uint16)) == 64
    assert num_bytes([Image.new("RGB", (4, 5))]) == 60


def test_dense_rows_as_ragged() -> None:
    found = as_ragged(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert lists(found) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("column", "spec", "said"),
    [
        (
            np.zeros((2, 3), np.uint8),
            FieldSpec("uint16", (3,)),
            r"uint8\[3\], expected uint16\[3\]",
        ),
        (np.zeros((2, 3), np.uint8), FieldSpec("uint8", (4,)), r"uint8\[3\], expected uint8\[4\]"),
        (np.zeros((3, 3), np.uint8), FieldSpec("uint8", (3,)), "3 rows for a batch of 2"),
        (np.zeros((2, 3), np.uint8), FieldSpec("uint8", (None,)), r"expected uint8\[\*\]"),
        (pa.array(["a", "b"]), FieldSpec("string"), "is string, expected string"),
        (["a", "b"], FieldSpec("string"), "is list, expected string"),
        (np.zeros(2), FieldSpec("pillow", (None, None, 3)), "ndarray, expected pillow"),
    ],
)
def test_check_column_says_what_differs(column: Any, spec: FieldSpec, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        check_column("field", column, spec, 2, "op")
