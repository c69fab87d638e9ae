"""Halving finds the row that ends a process, and says so when there is none."""

import math
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.isolation import Isolation
from pipeline.protocols import Partition


def search(num_rows: int, dies: Callable[[range], bool]) -> Isolation:
    found = Isolation(Partition(0, ()))
    found.begin(num_rows)
    while found.found is None and not found.failed:
        rows = found.next()
        assert rows
        assert 0 <= rows.start < rows.stop <= num_rows
        found.answer(died=dies(rows))
    return found


@given(num_rows=st.integers(1, 5000), data=st.data())
def test_one_poisonous_row_is_found_in_few_probes(num_rows: int, data: st.DataObject) -> None:
    poison = data.draw(st.integers(0, num_rows - 1))
    found = search(num_rows, lambda rows: poison in rows)
    assert found.found == poison
    assert found.num_probes <= math.ceil(math.log2(max(num_rows, 2))) + 1


@given(num_rows=st.integers(1, 500), data=st.data())
def test_of_several_rows_one_is_found(num_rows: int, data: st.DataObject) -> None:
    poison = data.draw(st.sets(st.integers(0, num_rows - 1), min_size=1))
    found = search(num_rows, lambda rows: bool(poison & set(rows)))
    assert found.found in poison
    assert found.num_probes <= math.ceil(math.log2(max(num_rows, 2))) + 1


@given(num_rows=st.integers(0, 500))
def test_no_row_is_blamed_when_none_dies_alone(num_rows: int) -> None:
    found = search(num_rows, lambda rows: len(rows) > 1)
    assert found.found is None
    assert found.failed
    assert found.num_probes <= math.ceil(math.log2(max(num_rows, 2))) + 1
