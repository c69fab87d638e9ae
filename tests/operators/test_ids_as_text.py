"""ids_as_text: a character for an id, and back."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.base import Ragged
from operators.errors import RowErrors
from operators.sequence.ids_as_text import MOST_IDS, IdsAsText, IdsAsTextConfig

OPERATOR = IdsAsText(IdsAsTextConfig())


def ragged(rows: list[list[int]], dtype: str = "uint32") -> Ragged:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    return Ragged(np.array([n for row in rows for n in row], dtype), offsets)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, MOST_IDS - 1), max_size=9), max_size=6))
def test_there_and_back(rows: list[list[int]]) -> None:
    found = OPERATOR({"tokens": ragged(rows)})["text"]
    wanted = ["".join(chr(n if n < 0xD800 else n + 0x800) for n in row) for row in rows]
    assert found.to_pylist() == wanted
    again = OPERATOR.decode({"text": found})["tokens"]
    assert [again[row].tolist() for row in range(len(rows))] == rows


def test_rows_of_one_length_and_slices() -> None:
    ids = np.array([[0, 127, 128], [2047, 2048, 0xD7FF], [0xD800, 65535, MOST_IDS - 1]], np.int64)
    text = OPERATOR({"tokens": ids})["text"]
    assert text.type == pa.large_string()
    again = OPERATOR.decode({"text": text[1:]})["tokens"]
    assert np.array_equal(again.values.reshape(2, 3), ids[1:])


def test_ids_without_a_character() -> None:
    rows = ragged([[1], [-1, 5], [], [MOST_IDS]], "int64")
    with pytest.raises(RowErrors) as caught:
        OPERATOR({"tokens": rows})
    assert sorted(caught.value.errors) == [1, 3]
    assert "id -1 has no character" in str(caught.value.errors[1])
    assert caught.value.good["text"].to_pylist() == ["\x01", ""]
