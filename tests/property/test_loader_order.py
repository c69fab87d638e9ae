"""The loader's order: frozen, equal to a naive reference, and the same however it is shared."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.loader import BlockShuffle, EpochOrder, TokenDataset
from pipeline.loader.order import BlockOrder
from tests.loader_data import rows, write_data_set
from tests.loader_numbers import Numbers, batches_of_workers

Shuffle = bool | BlockShuffle

GOLDEN_10 = [4, 3, 2, 5, 9, 8, 0, 7, 6, 1]
GOLDEN_10_SEED_1 = [8, 9, 3, 7, 2, 6, 0, 4, 5, 1]
GOLDEN_10_EPOCH_1 = [1, 4, 3, 7, 8, 5, 6, 0, 2, 9]
GOLDEN_BIG = [772678502037, 705954800132, 517963395562]
GOLDEN_BLOCKS = [3, 8, 0, 6, 2, 7, 1, 9, 5, 10, 4, 11]

SIZES = st.lists(st.integers(0, 12), max_size=7) | st.lists(st.just(1), max_size=20)
SHUFFLES = st.booleans() | st.builds(BlockShuffle, st.integers(1, 6), st.integers(1, 9))
SHARES = st.tuples(  # world size, batch size, workers
    st.integers(1, 5), st.integers(1, 7), st.integers(0, 3)
)
UNEVEN = st.sampled_from(["short", "pad", "drop"])


# The reference: Python integers and lists


def mix(x: int) -> int:
    x &= 2**64 - 1
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def permuted(values: Sequence[int], keys: Sequence[int]) -> list[int]:
    """Return the values at the places that a Feistel network with these keys gives."""
    bits = max(6, (len(values) - 1).bit_length())
    low_bits, high_bits = bits // 2, bits - bits // 2
    found = []
    for place in range(len(values)):
        target = place
        while True:
            high, low = target >> low_bits, target % 2**low_bits
            for i, key in enumerate(keys):
                if i % 2 == 0:
                    high ^= mix(low + key) >> (64 - high_bits)
                else:
                    low ^= mix(high + key) >> (64 - low_bits)
            target = high << low_bits | low
            if target < len(values):
                break
        found.append(values[target])
    return found


def reference(sizes: Sequence[int], seed: int, epoch: int, shuffle: Shuffle) -> list[int]:
    """Return the items of an epoch in their order, all at once."""
    items = list(range(sum(sizes)))
    golden = 0x9E3779B97F4A7C15
    key = mix(mix(seed) ^ epoch)
    epoch_keys = [mix(key + (i + 1) * golden) for i in range(8)]
    if not isinstance(shuffle, BlockShuffle):
        return permuted(items, epoch_keys) if shuffle else items
    unit_ends = list(itertools.accumulate(sizes))
    units = [items[end - size : end] for end, size in zip(unit_ends, sizes, strict=True)]
    sequence = iter([item for unit in permuted(units, epoch_keys) for item in unit])  # type: ignore[arg-type, attr-defined]
    streams = []
    for s in range(shuffle.streams):
        stream: list[int] = []
        rest = list(itertools.islice(sequence, -(-(len(items) - s) // shuffle.streams)))
        for b in range(0, len(rest), shuffle.block_items):
            block_key = mix(mix(key ^ s) ^ b // shuffle.block_items)
            keys = [block_key + (i + 1) * golden for i in range(8)]
            stream += permuted(rest[b : b + shuffle.block_items], keys)
        streams.append(stream)
    dealt = itertools.zip_longest(*streams)
    return [item for row in dealt for item in row if item is not None]


# Permutations


@settings(max_examples=100, deadline=None)
@given(num=st.integers(1, 3_000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**64))
def test_an_epoch_is_a_permutation(num: int, seed: int, epoch: int) -> None:
    found = EpochOrder(num, seed, epoch).rows(np.arange(num))
    assert np.array_equal(np.sort(found), np.arange(num))


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=9),
    streams=st.integers(1, 20),
    block_items=st.integers(1, 1_000),
    seed=st.integers(-(2**70), 2**70),
    epoch=st.integers(0, 2**64),
)
def test_an_epoch_of_blocks_is_a_permutation_that_can_be_entered_anywhere(
    sizes: list[int], streams: int, block_items: int, seed: int, epoch: int
) -> None:
    order = BlockOrder(np.cumsum(sizes), seed, epoch, BlockShuffle(streams, block_items))
    found = order.rows(np.arange(sum(sizes)))
    assert np.array_equal(np.sort(found), np.arange(sum(sizes)))
    some = np.random.default_rng(0).permutation(sum(sizes))[:20]
    assert np.array_equal(order.rows(some), found[some])


def test_the_order_is_frozen() -> None:
    """Runs that resume, and runs that are compared, rely on these rows: they never change."""
    assert EpochOrder(10, 0, 0).rows(np.arange(10)).tolist() == GOLDEN_10
    assert EpochOrder(10, 1, 0).rows(np.arange(10)).tolist() == GOLDEN_10_SEED_1
    assert EpochOrder(10, 0, 1).rows(np.arange(10)).tolist() == GOLDEN_10_EPOCH_1
    assert EpochOrder(10**12, 2**63, 7).rows(np.array([0, 1, 10**12 - 1])).tolist() == GOLDEN_BIG
    blocks = BlockOrder(np.array([4, 5, 12]), 1, 2, BlockShuffle(streams=2, block_items=4))
    assert blocks.rows(np.arange(12)).tolist() == GOLDEN_BLOCKS
    assert BlockShuffle() == BlockShuffle(streams=8, block_items=8192)


@pytest.mark.parametrize("num", [3, 10, 33])
def test_every_row_is_equally_likely_everywhere(num: int) -> None:
    num_orders = 1_000
    counts = np.zeros((num, num))
    for seed in range(num_orders):
        counts[np.arange(num), EpochOrder(num, seed, 0).rows(np.arange(num))] += 1
    expected = num_orders / num
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_every_item_of_a_block_is_equally_likely_everywhere_in_it() -> None:
    num, num_blocks = 10, 1_000
    order = BlockOrder(np.array([num * num_blocks]), 0, 0, BlockShuffle(1, num))
    places = np.arange(num * num_blocks)
    counts = np.zeros((num, num))
    np.add.at(counts, (places % num, order.rows(places) % num), 1)
    expected = num_blocks / num
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


# Shards that are touched


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    streams=st.integers(1, 12),
    block_items=st.integers(1, 20),
    world_size=st.integers(1, 12),
    batch_size=st.integers(1, 8),
)
def test_a_rank_touches_few_shards_at_a_time(
    sizes: list[int], streams: int, block_items: int, world_size: int, batch_size: int
) -> None:
    """What ``BlockShuffle`` states of the first batch, of any stretch, and of a cache."""
    order = BlockOrder(np.cumsum(sizes), 3, 0, BlockShuffle(streams, block_items))
    own_streams = streams // math.gcd(streams, world_size)
    smallest = min(sizes)

    def of_blocks(num: int) -> int:
        items = num * block_items
        return 1 if items == 1 else (items - 2) // smallest + 2

    for rank in range(min(world_size, sum(sizes))):
        own = np.arange(rank, sum(sizes), world_size)
        items = order.rows(own)
        touched = np.searchsorted(np.cumsum(sizes), items, side="right")
        if world_size * batch_size <= streams * block_items:
            first = len(set(touched[:batch_size]))
            assert first <= min(batch_size, own_streams) * of_blocks(1)
        blocks = own // streams // block_items
        for block in range(blocks[-1] + 1):
            assert len(set(touched[blocks == block])) <= own_streams * of_blocks(1)
            two = (blocks == block) | (blocks == block + 1)
            assert len(set(touched[two])) <= own_streams * of_blocks(2)
        if block_items <= smallest:
            copies = copies_of(touched, 4 * own_streams)
            assert copies <= len(set(touched)) + streams - 1


def copies_of(touched: np.ndarray, capacity: int) -> int:
    """Return how often shards enter a cache that keeps those that were used last."""
    kept: OrderedDict[int, None] = OrderedDict()
    copies = 0
    for shard in touched.tolist():
        copies += shard not in kept
        kept[shard] = None
        kept.move_to_end(shard)
        if len(kept) > capacity:
            kept.popitem(last=False)
    return copies


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_share_no_shard_but_those_between_streams(world_size: int) -> None:
    stops = np.arange(100, 10_001, 100)
    order = BlockOrder(stops, 0, 0, BlockShuffle(streams=8, block_items=64))
    touched = [
        set(np.searchsorted(stops, order.rows(np.arange(r, 10_000, world_size)), side="right"))
        for r in range(world_size)
    ]
    assert sum(map(len, touched)) <= 100 + 7


# Ranks, workers, batches, resumes


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data_set(tmp_path_factory.mktemp("data"), rows(3))


def ranks(url: str, sizes: Sequence[int], share: Any, **options: Any) -> list[TokenDataset]:
    world_size, batch_size, _ = share
    view = Numbers(tuple(sizes))
    return [
        TokenDataset(
            url, batch_size=batch_size, view=view, rank=rank, world_size=world_size, **options
        )
        for rank in range(world_size)
    ]


def run(data: Sequence[TokenDataset], num_workers: int) -> list[list[Any]]:
    """Return the batches of every rank."""
    return [list(batches_of_workers(one, num_workers)) for one in data]


def joined(found: Sequence[Sequence[Any]], field: str = "number") -> list[Any]:
    """Put the ranks' samples together again in the order of the epoch."""
    order: list[Any] = []
    for batches in itertools.zip_longest(*found):
        columns = [[] if batch is None else batch[field].tolist() for batch in batches]
        for row in itertools.zip_longest(*columns):
            order += [value for value in row if value is not None]
    return order


@settings(max_examples=100, deadline=None)
@given(
    sizes=SIZES,
    before=SHARES,
    after=SHARES,
    num_batches=st.integers(0, 8),
    seed=st.integers(-3, 2**65),
    epoch=st.integers(0, 9),
    shuffle=SHUFFLES,
)
def test_any_ranks_workers_and_resumes_give_the_reference_order(
    data_set: str,
    sizes: list[int],
    before: Any,
    after: Any,
    num_batches: int,
    seed: int,
    epoch: int,
    shuffle: Shuffle,
) -> None:
    want = reference(sizes, seed, epoch, shuffle)
    data = ranks(data_set, sizes, before, seed=seed, epoch=epoch, shuffle=shuffle)
    whole = run(data, before[2])
    assert joined(whole) == want
    assert [len(one) for one in whole] == [len(one) for one in data]
    assert all(len(batch["number"]) == before[1] for one in whole for batch in one[:-1])

    seen = joined([batches[:num_batches] for batches in whole])
    states = [one.state_dict(num_batches) for one in data]
    assert all(state == states[0] for state in states)
    again = ranks(data_set, sizes, after, seed=seed, shuffle=shuffle)
    for one in again:
        one.load_state_dict(states[-1])
    assert seen + joined(run(again, after[2])) == want


@settings(max_examples=100, deadline=None)
@given(sizes=SIZES, before=SHARES, after=SHARES, num_batches=st.integers(0, 8), uneven=UNEVEN)
def test_uneven_ends_are_what_they_are_said_to_be(
    data_set: str, sizes: list[int], before: Any, after: Any, num_batches: int, uneven: str
) -> None:
    want = reference(sizes, 0, 0, True)
    num, size = len(want), after[0] * after[1]
    state = ranks(data_set, sizes, before)[0].state_dict(num_batches)
    data = ranks(data_set, sizes, after, uneven=uneven)
    whole = run(data, after[2])
    assert [len(one) for one in whole] == [len(one) for one in data]
    for one in data:
        one.load_state_dict(state)
    for start, found in ((0, whole), (state["position"], run(data, after[2]))):
        full, left = divmod(num - start, size)
        if uneven == "short":
            assert joined(found) == want[start:]
            assert [len(one) for one in found] == [full + (left > r) for r in range(after[0])]
            continue
        assert {len(one) for one in found} == {full + (uneven == "pad" and left > 0)}
        assert all(len(batch["number"]) == after[1] for one in found for batch in one)
        if uneven == "drop":
            assert joined(found) == want[start : start + full * size]
        else:
            num_read = -(-(num - start) // size) * size
            positions = range(start, start + num_read)
            assert joined(found) == [want[p % num] for p in positions]
            assert joined(found, "padding") == [p >= num for p in positions]


def test_positions_of_a_huge_epoch_are_made_as_they_are_needed(data_set: str) -> None:
    """Arrays over its batches or samples would not fit in memory."""
    num = 10**15
    for shuffle in (True, False, BlockShuffle()):
        data = TokenDataset(data_set, batch_size=8, view=Numbers((num,)), shuffle=shuffle)
        state = data.state_dict()
        first = next(iter(data))["number"].tolist()
        data.load_state_dict({**state, "position": num - 12})
        assert [len(batch["number"]) for batch in data] == [8, 4]
        assert len(set(first)) == 8
