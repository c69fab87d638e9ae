"""pos_pad: runs of dropped tokens spelled out."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import RowErrors
from operators.sequence.pos_pad import PosPad, PosPadConfig
from tests.operators.test_ids_as_text import ragged
from tests.reducer_cases import batch_for, reducer

OPERATOR = PosPad(PosPadConfig())


def spelled_out(kept: list[bool]) -> tuple[list[int], list[int]]:
    rows: list[int] = []
    positions: list[int] = []
    row = 0
    for is_kept, run in groupby(enumerate(kept), key=lambda item: item[1]):
        places = [place for place, _ in run]
        if is_kept:
            rows += range(row, row + len(places))
            positions += places
            row += len(places)
        else:
            rows.append(-1)
            positions.append(places[-1])
    return rows, positions


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), max_size=12), max_size=6))
def test_runs(kept: list[list[bool]]) -> None:
    maps = [[sum(row[:n]) if row[n] else -1 for n in range(len(row))] for row in kept]
    found = OPERATOR({"token_map": ragged(maps, "int16")})
    for image, row in enumerate(kept):
        rows, positions = spelled_out(row)
        assert found["pad_rows"][image].tolist() == rows
        assert found["pad_positions"][image].tolist() == positions


def test_rows_in_another_order_stand_where_their_tokens_were() -> None:
    op = reducer("topk", 16, keep=5)  # from the highest score on
    out = op(batch_for(op, 3))
    found = OPERATOR({"token_map": out["token_map"].numpy()})
    for image in range(3):
        rows = found["pad_rows"][image]
        places = found["pad_positions"][image][rows >= 0]
        assert np.array_equal(out["token_map"][image][places], rows[rows >= 0])
        assert (np.diff(found["pad_positions"][image]) > 0).all()
        assert found["pad_positions"][image][-1] == 15


def test_merging_is_refused() -> None:
    maps = np.array([[0, 1, -1], [0, 1, 1], [-1, -1, -1]], np.int16)
    with pytest.raises(RowErrors) as caught:
        OPERATOR({"token_map": maps})
    assert list(caught.value.errors) == [1]
    assert "several tokens to one row" in str(caught.value.errors[1])
    good = caught.value.good
    assert [good["pad_rows"][row].tolist() for row in range(2)] == [[0, 1, -1], [-1]]
    assert good["pad_positions"][1].tolist() == [2]
