"""The loader's order: a permutation, frozen, and the same however ranks and workers share it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loader import EpochOrder, TokenDataset
from tests.loader_data import rows, write_data_set

NUM = 37
GOLDEN_10 = [4, 3, 2, 5, 9, 8, 0, 7, 6, 1]
GOLDEN_10_SEED_1 = [8, 9, 3, 7, 2, 6, 0, 4, 5, 1]
GOLDEN_10_EPOCH_1 = [1, 4, 3, 7, 8, 5, 6, 0, 2, 9]
GOLDEN_BIG = [772678502037, 705954800132, 517963395562]
SHARES = st.tuples(st.integers(1, 4), st.integers(1, 7))  # world size, batch size


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data_set(tmp_path_factory.mktemp("data"), rows(NUM))


@settings(max_examples=200, deadline=None)
@given(num=st.integers(1, 3_000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**64))
def test_an_epoch_is_a_permutation(num: int, seed: int, epoch: int) -> None:
    found = EpochOrder(num, seed, epoch).rows(np.arange(num))
    assert np.array_equal(np.sort(found), np.arange(num))


def test_the_order_is_frozen() -> None:
    """Runs that resume, and runs that are compared, rely on these rows: they never change."""
    assert EpochOrder(10, 0, 0).rows(np.arange(10)).tolist() == GOLDEN_10
    assert EpochOrder(10, 1, 0).rows(np.arange(10)).tolist() == GOLDEN_10_SEED_1
    assert EpochOrder(10, 0, 1).rows(np.arange(10)).tolist() == GOLDEN_10_EPOCH_1
    assert EpochOrder(10**12, 2**63, 7).rows(np.array([0, 1, 10**12 - 1])).tolist() == GOLDEN_BIG


@pytest.mark.parametrize("num", [3, 10, 33])
def test_every_row_is_equally_likely_everywhere(num: int) -> None:
    num_orders = 1_000
    counts = np.zeros((num, num))
    for seed in range(num_orders):
        counts[np.arange(num), EpochOrder(num, seed, 0).rows(np.arange(num))] += 1
    expected = num_orders / num
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def keys(data: TokenDataset) -> list[list[int]]:
    return [[int(key) for key in batch["key"]] for batch in data]


def ranks(url: str, world_size: int, batch_size: int, **options: object) -> list[TokenDataset]:
    return [
        TokenDataset(
            url,
            batch_size=batch_size,
            fields=["key"],
            rank=rank,
            world_size=world_size,
            **options,  # type: ignore[arg-type]
        )
        for rank in range(world_size)
    ]


def global_batches(found: list[list[list[int]]]) -> list[set[int]]:
    """Join the ranks' n-th batches."""
    longest = max(len(batches) for batches in found)
    return [
        {key for batches in found if n < len(batches) for key in batches[n]} for n in range(longest)
    ]


@settings(max_examples=60, deadline=None)
@given(share=SHARES, seed=st.integers(0, 9), epoch=st.integers(0, 9), shuffle=st.booleans())
def test_ranks_share_the_global_order(
    data_set: str, share: tuple[int, int], seed: int, epoch: int, shuffle: bool
) -> None:
    world_size, batch_size = share
    data = ranks(data_set, *share, seed=seed, epoch=epoch, shuffle=shuffle)
    found = [keys(one) for one in data]
    order = EpochOrder(NUM, seed, epoch, shuffle=shuffle).rows(np.arange(NUM)).tolist()
    size = world_size * batch_size
    for n, joined in enumerate(global_batches(found)):
        assert joined == set(order[n * size : (n + 1) * size])
    assert sorted(key for one in found for batch in one for key in batch) == list(range(NUM))
    assert [len(one) for one in found] == [len(one) for one in data]
    assert all(len(batch) == batch_size for one in found for batch in one[:-1])


@settings(max_examples=40, deadline=None)
@given(share=SHARES)
def test_drop_gives_all_ranks_equally_many_full_batches(
    data_set: str, share: tuple[int, int]
) -> None:
    world_size, batch_size = share
    data = ranks(data_set, *share, uneven="drop")
    found = [keys(one) for one in data]
    assert {len(one) for one in found} == {len(data[0])} == {NUM // (world_size * batch_size)}
    assert all(len(batch) == batch_size for one in found for batch in one)


@settings(max_examples=60, deadline=None)
@given(before=SHARES, after=SHARES, num_batches=st.integers(0, 6), shuffle=st.booleans())
def test_resume_on_another_world_size_gives_the_rest_exactly_once(
    data_set: str,
    before: tuple[int, int],
    after: tuple[int, int],
    num_batches: int,
    shuffle: bool,
) -> None:
    seen: list[int] = []
    states = []
    for data in ranks(data_set, *before, seed=3, epoch=2, shuffle=shuffle):
        for _, batch in zip(range(num_batches), data, strict=False):
            seen += [int(key) for key in batch["key"]]
        states.append(data.state_dict(num_batches))
    assert all(state == states[0] for state in states)
    for data in ranks(data_set, *after, seed=3, shuffle=shuffle):
        data.load_state_dict(states[-1])
        seen += [key for batch in keys(data) for key in batch]
    assert sorted(seen) == list(range(NUM))
