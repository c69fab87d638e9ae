"""Mixtures: proportions against exact fractions, and any ranks, workers and resumes the same."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import count, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loader import EpochOrder, MixedDataset, Samples, Source
from pipeline.loader.proportions import MAX_TOTAL_WEIGHT, Proportions, whole_weights
from tests.loader_data import rows, write_data_set

SIZES = (7, 11, 4)
COLUMNS = [rows(size, seed=i) for i, size in enumerate(SIZES)]
ALL = ["key", "image", "text", "codes", "caption"]
SHARES = st.tuples(st.integers(1, 3), st.integers(1, 5))  # world size, batch size
WEIGHT = st.one_of(st.integers(1, 9), st.integers(1, 3_000))
WEIGHTS = st.lists(WEIGHT, min_size=1, max_size=9)
SMALL = st.lists(st.integers(0, 6), min_size=3, max_size=3).filter(any)
GOLDEN_532 = [1, 0, 2, 0, 1, 0, 2, 0, 1, 0]


def naive_mixture(weights: Sequence[int]) -> Iterator[int]:
    """Yield the source of each position, one after the other, in exact fractions."""
    nodes: list[tuple[int, int, object]] = [(w, i, i) for i, w in enumerate(weights) if w]
    for number in count(len(weights)):
        nodes.sort(key=lambda node: node[:2])
        if len(nodes) == 1:
            break
        light, heavy = nodes[:2]
        nodes = [*nodes[2:], (light[0] + heavy[0], number, [heavy, light, 0, 0])]
    while True:
        _, _, found = nodes[0]
        weight = nodes[0][0]
        while isinstance(found, list):
            left, right, num_left, num = found
            ideal = Fraction((num + 1) * left[0], weight)
            goes_left = int(ideal + Fraction(1, 2)) > num_left
            found[2:] = num_left + goes_left, num + 1
            weight, _, found = left if goes_left else right
        assert isinstance(found, int)
        yield found


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS)
def test_the_sequence_is_the_one_of_exact_fractions(weights: list[int]) -> None:
    found, indices = Proportions(weights).sources(np.arange(300))
    assert found.tolist() == list(islice(naive_mixture(weights), 300))
    for source in range(len(weights)):
        own = indices[found == source]
        assert np.array_equal(own, np.arange(len(own)))


def test_the_sequence_is_frozen() -> None:
    """Runs that resume rely on it."""
    assert Proportions([5, 3, 2]).sources(np.arange(10))[0].tolist() == GOLDEN_532


@settings(max_examples=150, deadline=None)
@given(weights=WEIGHTS)
def test_every_window_has_its_share(weights: list[int]) -> None:
    """Count through a whole period, or its beginning: prefixes first, then all their windows."""
    proportions = Proportions(weights)
    total = sum(weights)
    num = min(total, 4_000)
    found, _ = proportions.sources(np.arange(num))
    for source, weight in enumerate(weights):
        counts = np.append(0, np.cumsum(found == source))
        off = counts * total - np.arange(num + 1) * weight  # times the total: whole numbers
        prefix = Fraction(int(np.abs(off).max()), total)
        window = Fraction(int(off.max() - off.min()), total)
        assert prefix <= proportions.bound(source) / 2
        assert window <= proportions.bound(source) < Fraction(336, 100)
        if len(weights) <= 3:
            assert prefix < 1
            assert window < 2


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.integers(1, MAX_TOTAL_WEIGHT // 6), min_size=1, max_size=6),
    start=st.integers(0, 1 << 61),
)
def test_huge_weights_and_positions_are_exact(weights: list[int], start: int) -> None:
    proportions = Proportions(weights)
    found, indices = proportions.sources(np.arange(start, start + 20))
    counts = proportions.counts(start)
    assert sum(counts) == start
    for place, (source, index) in enumerate(zip(found.tolist(), indices.tolist(), strict=True)):
        assert index == counts[source]
        assert proportions.position(source, index) == start + place
        counts[source] += 1
        assert proportions.counts(start + place + 1) == counts


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.floats(0, 1e9).filter(lambda w: w == 0 or w > 1e-9), min_size=2))
def test_weights_become_whole_and_stay_in_proportion(weights: list[float]) -> None:
    exact = [Fraction(str(weight)) for weight in weights]
    whole = whole_weights(exact)
    assert [weight == 0 for weight in whole] == [weight == 0 for weight in weights]
    total, whole_total = sum(exact), sum(whole)
    assert whole_total <= MAX_TOTAL_WEIGHT
    for weight, found in zip(exact, whole, strict=True):
        if total:
            off = abs(weight / total - Fraction(found, whole_total))
            assert off <= Fraction(2 * len(weights), 1 << 40)


# Data sets


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    return [
        write_data_set(folder / str(i), columns, partitions=2) for i, columns in enumerate(COLUMNS)
    ]


Item = tuple[int, int]  # source, row


def mixtures(
    urls: Sequence[str], weights: Sequence[int], share: tuple[int, int], num_items: int, seed: int
) -> list[MixedDataset]:
    world_size, batch_size = share
    return [
        MixedDataset(
            [
                Source(url, weight=weight, view=Samples(ALL))
                for url, weight in zip(urls, weights, strict=True)
            ],
            batch_size=batch_size,
            num_items=num_items,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]


def reference(
    weights: Sequence[int], num: int, seed: int, starts: Sequence[int] = (0, 0, 0)
) -> list[Item]:
    """Return the items of a mixture in which sources have given some already."""
    consumed = list(starts)
    items = []
    for source in islice(naive_mixture(weights), num):
        epoch, place = divmod(consumed[source], SIZES[source])
        [row] = EpochOrder(SIZES[source], seed, epoch).rows(np.array([place])).tolist()
        items.append((source, row))
        consumed[source] += 1
    return items


def read(data: MixedDataset, num_batches: int | None = None) -> list[list[Item]]:
    """Return source and row of every item, checked against the item's other fields."""
    found = []
    for batch in islice(data, num_batches):
        sources, keys = batch["source"].tolist(), [int(key) for key in batch["key"]]
        for place, (source, row) in enumerate(zip(sources, keys, strict=True)):
            want = COLUMNS[source]
            assert np.array_equal(batch["image"][place].numpy(), want["image"][row])
            assert np.array_equal(batch["text"][place].numpy(), want["text"][row])
            assert batch["caption"][place] == want["caption"][row].as_py()
        found.append(list(zip(sources, keys, strict=True)))
    return found


def in_order(found: list[list[list[Item]]]) -> list[Item]:
    """Undo the cut: in a global batch, position p went to rank p modulo the world size."""
    items = []
    for n in range(max(map(len, found))):
        batches = [batches[n] if n < len(batches) else [] for batches in found]
        for place in range(len(batches[0])):
            items += [batch[place] for batch in batches if place < len(batch)]
    return items


@settings(max_examples=40, deadline=None)
@given(weights=SMALL, share=SHARES, num=st.integers(1, 60), seed=st.integers(0, 9))
def test_ranks_share_the_mixture(
    urls: list[str], weights: list[int], share: tuple[int, int], num: int, seed: int
) -> None:
    data = mixtures(urls, weights, share, num, seed)
    found = [read(one) for one in data]
    assert in_order(found) == reference(weights, num, seed)
    assert [len(batches) for batches in found] == [len(one) for one in data]


@settings(max_examples=40, deadline=None)
@given(weights=SMALL, before=SHARES, after=SHARES, num_batches=st.integers(0, 5))
def test_resume_is_no_resume(
    urls: list[str],
    weights: list[int],
    before: tuple[int, int],
    after: tuple[int, int],
    num_batches: int,
) -> None:
    num, seed = 50, 3
    data = mixtures(urls, weights, before, num, seed)
    first = in_order([read(one, num_batches) for one in data])
    states = [one.state_dict(num_batches) for one in data]
    assert all(state == states[0] for state in states)
    again = mixtures(urls, weights, after, num, seed)
    for one in again:
        one.load_state_dict(states[0])
    rest = in_order([read(one) for one in again])
    assert first + rest == reference(weights, num, seed)


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(SMALL, min_size=2, max_size=3),
    share=SHARES,
    num_batches=st.lists(st.integers(0, 5), min_size=3, max_size=3),
)
def test_new_weights_go_on_at_every_sources_next_item(
    urls: list[str], weights: list[list[int]], share: tuple[int, int], num_batches: list[int]
) -> None:
    """Change the weights once or twice; each source's items stay those of its epochs, in order."""
    num, seed = 40, 1
    state = None
    starts = [0, 0, 0]
    left = num
    for some_weights, some_batches in zip(weights, num_batches, strict=False):
        data = mixtures(urls, some_weights, share, num, seed)
        for one in data:
            if state is not None:
                one.load_state_dict(state, new_weights=True)
        found = in_order([read(one, some_batches) for one in data])
        state = data[0].state_dict(some_batches)
        done = min(left, some_batches * share[0] * share[1])
        assert found == reference(some_weights, done, seed, starts)
        left -= done
        for source, _ in found:
            starts[source] += 1
        assert list(state["consumed"].values()) == starts
