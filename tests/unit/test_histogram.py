"""Counts of ids, in a table and without one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report import histogram
from pipeline.report.histogram import Counter, DenseCounter, SparseCounter, make_counter


def counted(counter: Counter, *parts: np.ndarray) -> dict[int, int]:
    for part in parts:
        counter.add(part)
    found = counter.histogram()
    assert (np.diff(found.ids.astype(object)) > 0).all()
    return dict(zip(found.ids.tolist(), found.counts.tolist(), strict=True))


@pytest.mark.parametrize(
    "make", [lambda: DenseCounter(256), SparseCounter], ids=["dense", "sparse"]
)
@given(parts=st.lists(st.lists(st.integers(0, 255), max_size=30), max_size=5))
@settings(max_examples=50, deadline=None)
def test_both_count_alike(make: type[SparseCounter], parts: list[list[int]]) -> None:
    counter = make()
    arrays = [np.array(part, np.uint8) for part in parts]
    every = np.concatenate([*arrays, np.empty(0, np.uint8)])
    ids, counts = np.unique(every, return_counts=True)
    assert counted(counter, *arrays) == dict(zip(ids.tolist(), counts.tolist(), strict=True))
    assert (counter.histogram().total, counter.histogram().share) == (len(every), 1.0)


def test_the_size_of_the_codebook_decides() -> None:
    assert isinstance(make_counter(1 << 26), DenseCounter)
    assert isinstance(make_counter((1 << 26) + 1), SparseCounter)
    assert isinstance(make_counter(101, dense_size=100), SparseCounter)


def test_ids_of_64_bits() -> None:
    ids = np.array([2**64 - 1, 0, 2**63, 2**64 - 1], np.uint64)
    assert counted(make_counter(2**64), ids, ids[:1]) == {0: 1, 2**63: 1, 2**64 - 1: 3}


def test_many_slabs_and_a_view_with_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histogram, "_SLAB", 7)
    monkeypatch.setattr(histogram, "_PENDING", 20)
    ids = np.random.default_rng(0).integers(0, 50, (300, 2), dtype=np.uint16)
    expected = dict(enumerate(np.bincount(ids[:, 1]).tolist()))
    assert counted(DenseCounter(50), ids[:, 1]) == expected
    assert counted(SparseCounter(), ids[:, 1]) == expected


@pytest.mark.parametrize("at_once", [1, 37, 100_000])
def test_too_many_ids_leave_the_same_ones_in_any_order(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histogram, "_PENDING", 500)
    random = np.random.default_rng(1)
    ids = random.integers(0, 2**64, 20_000, dtype=np.uint64)
    ids = np.concatenate([ids, ids[:5_000], ids[:5_000]])  # a quarter of them three times
    kept = SparseCounter(most=1_000)
    for part in np.array_split(random.permutation(ids), max(1, len(ids) // at_once // 10)):
        kept.add(part)
    found = kept.histogram()

    whole = SparseCounter()
    whole.add(ids)
    every = whole.histogram()
    expected = dict(zip(every.ids.tolist(), every.counts.tolist(), strict=True))
    pairs = zip(found.ids.tolist(), found.counts.tolist(), strict=True)
    assert all(expected[each] == count for each, count in pairs)
    assert found.total == 30_000
    assert found.share == 1 / 32
    assert 500 < len(found.ids) <= 1_000
    assert len(found.ids) / found.share == pytest.approx(20_000, rel=0.1)
    assert found.counts.sum() / found.share == pytest.approx(30_000, rel=0.1)


def test_nothing_was_counted() -> None:
    for counter in (DenseCounter(9), SparseCounter()):
        assert counted(counter, np.empty(0, np.uint16)) == {}
        assert counter.histogram().total == 0
