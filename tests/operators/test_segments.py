"""segments: rows made of runs of flat buffers, against lists."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.base import Ragged
from operators.sequence.segments import SegmentPool, picks_in_turn, rows_of_matrix, units_of
from tests.ragged_rows import Rows, ragged, rows_of

segments = st.lists(st.lists(st.integers(0, 200), max_size=4), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.tuples(segments, st.integers(0, 60_000)), min_size=1, max_size=3),
    data=st.data(),
)
def test_any_picks_are_joined_as_lists_would_be(
    parts: list[tuple[Rows, int]], data: st.DataObject
) -> None:
    pool, whole = SegmentPool("uint16"), list[list[int]]()
    for some, shift in parts:
        column = ragged(some, "int64")
        assert pool.add(column.values, column.offsets, shift) == len(whole)
        whole += [[i + shift for i in segment] for segment in some]
    picks = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=9))
    values, lengths = pool.take(np.array(picks, np.int64))
    assert values.dtype == np.uint16
    assert values.tolist() == [i for pick in picks for i in whole[pick]]
    assert lengths.tolist() == [len(whole[pick]) for pick in picks]


@settings(max_examples=100, deadline=None)
@given(
    columns=st.lists(
        st.lists(st.lists(st.integers(0, 99), max_size=3), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_columns_take_turns_in_every_row(columns: list[Rows]) -> None:
    picks = picks_in_turn(
        [
            (
                np.array([len(row) for row in column]),
                np.array([i for row in column for i in row], np.int64),
            )
            for column in columns
        ],
        3,
    )
    want = [[(c, i) for c, column in enumerate(columns) for i in column[row]] for row in range(3)]
    assert picks.segments.tolist() == [i for row in want for _, i in row]
    assert picks.columns.tolist() == [c for row in want for c, _ in row]
    assert np.diff(picks.row_bounds).tolist() == [len(row) for row in want]


def test_rows_of_equally_many_segments() -> None:
    pool = SegmentPool("uint8")
    first = pool.add(np.array([1, 2, 3]), np.array([0, 2, 3]))
    nothing = pool.add_literal([])
    columns = [np.array([first, nothing]), np.array([first + 1, first])]
    assert rows_of(rows_of_matrix(pool, columns)) == [[1, 2, 3], [1, 2]]


def test_units_of_every_kind_of_column() -> None:
    dense = np.arange(12).reshape(2, 2, 3)
    views = units_of(dense)
    assert (views.counts.tolist(), views.bounds.tolist()) == ([2, 2], [0, 3, 6, 9, 12])
    assert views.row_bounds.tolist() == [0, 6, 12]
    one = units_of(dense[:, 0])
    assert (one.counts.tolist(), one.bounds.tolist()) == ([1, 1], [0, 3, 6])
    assert one.values.tolist() == [0, 1, 2, 6, 7, 8]
    images = units_of(Ragged(dense.reshape(4, 3), np.array([0, 0, 3, 4])))
    assert (images.counts.tolist(), images.row_bounds.tolist()) == ([0, 3, 1], [0, 0, 9, 12])
    texts = units_of(ragged([[1], [], [2, 3]]))
    assert (texts.counts.tolist(), texts.bounds.tolist()) == ([1, 1, 1], [0, 1, 1, 3])
