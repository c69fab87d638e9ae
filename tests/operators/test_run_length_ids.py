"""run_length_ids: runs and duplicates spelled out, and back."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.base import FieldSpec, Ragged
from operators.sequence.run_length_ids import RunLengthIds, RunLengthIdsConfig
from tests.operators.test_ids_as_text import ragged

ROWS = st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=6)


def operator(merge: str, length: int | None = None) -> RunLengthIds:
    op = RunLengthIds(RunLengthIdsConfig.model_validate({"merge": merge}))
    op.bind({"tokens": FieldSpec("uint16", (length,), 4)})
    return op


def lists(column: Ragged) -> list[list[int]]:
    return [column[row].tolist() for row in range(len(column))]


@settings(deadline=None)
@given(ROWS)
def test_runs(rows: list[list[int]]) -> None:
    op = operator("runs")
    found = op({"tokens": ragged(rows, "uint16")})
    groups = [[(n, len(list(same))) for n, same in groupby(row)] for row in rows]
    assert lists(found["tokens"]) == [[n for n, _ in row] for row in groups]
    assert lists(found["run_lengths"]) == [[count for _, count in row] for row in groups]
    assert lists(op.decode(found)["tokens"]) == rows


@settings(deadline=None)
@given(ROWS)
def test_duplicates(rows: list[list[int]]) -> None:
    op = operator("duplicates")
    found = op({"tokens": ragged(rows, "uint16")})
    different = [list(dict.fromkeys(row)) for row in rows]
    assert lists(found["tokens"]) == different
    places = [[kept.index(n) for n in row] for row, kept in zip(rows, different, strict=True)]
    assert lists(found["token_map"]) == places
    assert lists(op.decode(found)["tokens"]) == rows


@pytest.mark.parametrize("merge", ["runs", "duplicates"])
def test_rows_of_one_length_come_back_as_such(merge: str) -> None:
    op = operator(merge, 5)
    ids = np.array([[1, 1, 1, 2, 1], [3, 3, 3, 3, 3], [0, 1, 2, 3, 0]], np.uint16)
    found = op({"tokens": ids})
    assert found["tokens"].values.dtype == np.uint16
    assert np.array_equal(op.decode(found)["tokens"], ids)
    assert op.outputs["tokens"] == FieldSpec("uint16", (None,), 4)
    if merge == "duplicates":
        assert found["token_map"].shape == (3, 5)
