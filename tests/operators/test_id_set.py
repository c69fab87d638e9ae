"""Ids found among many: runs, scattered ones, and values the set has never seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.text.id_set import IdSet


@given(
    ids=st.sets(st.integers(0, 40), max_size=30),
    values=st.lists(st.integers(0, 60), max_size=50),
    dtype=st.sampled_from(["uint16", "uint32", "int64"]),
)
def test_positions_are_those_of_a_plain_search(
    ids: set[int], values: list[int], dtype: str
) -> None:
    expected = [place for place, value in enumerate(values) if value in ids]
    assert IdSet(ids).find(np.array(values, dtype)).tolist() == expected


@pytest.mark.parametrize("ids", [{7}, set(range(0, 40, 2))], ids=["one run", "scattered"])
def test_long_arrays_are_looked_at_in_pieces(ids: set[int]) -> None:
    values = np.full(200_001, 99, np.uint32)
    values[[0, 65_535, 65_536, 200_000]] = max(ids)
    assert IdSet(ids).find(values).tolist() == [0, 65_535, 65_536, 200_000]
