"""The order of an epoch: keyed permutations of the items, computed where they are asked for.

N items are numbered through the shards in the order of the index. Position p of an epoch holds an
item that is a bijection of [0, N), made of integer arithmetic only: the same in every version of
every library, in memory that does not grow with N, and as cheap to enter in the middle as at the
beginning. Nothing here knows of ranks, workers or batches.

The bijection is a Feistel network (Luby and Rackoff, 1988) of ``ROUNDS`` rounds over the smallest
power of two that holds N, with the finalizer of SplitMix64 (Steele, Lea and Flood, 2014) as round
function. A value that lands at N or above is sent through again until it lands below (cycle
walking: Black and Rogaway, 2002), on average less than twice.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from operators.splitmix import MIX_1, MIX_2, STEP, mixed
from pipeline.errors import ContractError
from pipeline.loader.view import OpenView

ROUNDS = 8
"""Part of the order, like the constants of SplitMix64: another number is another order."""

_MASK = (1 << 64) - 1
_MIN_BITS = 6  # below it a network has too few different permutations


@dataclass(frozen=True, slots=True)
class BlockShuffle:
    """A shuffle that reads a few shards at a time, for data that is copied as it is read.

    The units of the view (shards) are permuted and laid end to end; the sequence of items that
    results is cut into C ``streams`` of equal length, as many as there are or one less. Position p
    of the epoch belongs to stream p mod C and is index p div C there. Inside a stream every block
    of B ``block_items`` neighbours is permuted. So C * B items are mixed with one another at any
    time, all others by the order of the shards.

    What is read when. Let no shard have fewer than m items. Neighbouring blocks, k of them, lie in
    at most (k * B - 2) div m + 2 shards (in 1 when k * B is 1), so a block that is no larger than
    a shard touches 2. A rank of W takes every W-th position, so it reads C / gcd(C, W) streams: all
    C alone, its own C / W when W divides C, and one, shared with W / C - 1 others, when C divides
    W. Hence, with B <= m:

    - the first batch of b samples touches at most 2 * min(b, C / gcd(C, W)) shards, as long as a
      global batch of W * b is no more than C * B;
    - a rank has at most 2 * C / gcd(C, W) shards in use at a time, so a cache of twice as many,
      those in use and those to come, copies each shard once. Only a shard in which one stream
      ends and another begins is copied for both, at most C - 1 of them in an epoch.

    When W shares no divisor with C every rank reads all C streams: the order is the same and so is
    each sample's rank, but every node then downloads every shard. Choose C as the largest number of
    ranks that the data will be read with; smaller numbers that divide it are served as well.

    Attributes:
        streams: C.
        block_items: B.
    """

    streams: int = 8
    block_items: int = 8192

    def __post_init__(self) -> None:
        for name, value in (("streams", self.streams), ("block_items", self.block_items)):
            if value < 1:
                raise ContractError(f"BlockShuffle: {name}={value}, expected 1 or more")


@dataclass(frozen=True, slots=True)
class Ordering:
    """What the orders of all epochs, of one data set or several, have in common.

    Attributes:
        seed: Any integer; taken modulo 2**64.
        shuffle: True permutes the whole, a ``BlockShuffle`` blocks of it; False keeps items as they
            are stored.

    Raises:
        ContractError: ``shuffle`` is neither.
    """

    seed: int
    shuffle: bool | BlockShuffle

    def __post_init__(self) -> None:
        if not isinstance(self.shuffle, bool | BlockShuffle):
            raise ContractError(
                f"shuffle={self.shuffle!r}, expected True, False or a BlockShuffle",
                hint="shuffle=BlockShuffle(streams=8, block_items=8192), for example",
            )

    def of(self, view: OpenView, epoch: int) -> "EpochOrder | BlockOrder":
        """Return the order of a view's items in an epoch."""
        if isinstance(self.shuffle, BlockShuffle):
            return BlockOrder(view.stops, self.seed, epoch, self.shuffle)
        return EpochOrder(view.num_items, self.seed, epoch, shuffle=self.shuffle)

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when a state is loaded, as JSON values."""
        shuffle = self.shuffle
        return {
            "seed": self.seed,
            "shuffle": asdict(shuffle) if isinstance(shuffle, BlockShuffle) else shuffle,
        }


class EpochOrder:
    """Which row stands where in one epoch, every row being equally likely everywhere.

    Args:
        num_samples: Rows of the data set.
        seed: Any integer; taken modulo 2**64.
        epoch: From 0.
        shuffle: False keeps the rows in the order of the shards.

    Example:
        >>> EpochOrder(5, seed=0, epoch=0).rows(np.arange(5)).tolist()
        [4, 3, 2, 0, 1]
    """

    def __init__(self, num_samples: int, seed: int, epoch: int, *, shuffle: bool = True) -> None:
        self.epoch = epoch
        self._num_samples = num_samples
        self._shuffle = shuffle
        key = _epoch_key(seed, epoch)
        keys = [_mix_int(key + (i + 1) * STEP) for i in range(ROUNDS)]
        self._keys_R1 = np.array(keys, np.uint64)[:, None]

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Return the rows at the given positions.

        Args:
            positions: int64 [K], each in [0, num_samples).

        Returns:
            int64 [K], each in [0, num_samples).
        """
        if not self._shuffle:
            return positions
        return _permute(positions, self._num_samples, self._keys_R1)


class BlockOrder:
    """Which item stands where in one epoch of a ``BlockShuffle``.

    Holds a table of the units, nothing per item.

    Args:
        stops: int64 [U], one past the last item of each unit, rising; units may be empty.
        seed: Any integer; taken modulo 2**64.
        epoch: From 0.
        shuffle: Streams and blocks.
    """

    def __init__(self, stops: np.ndarray, seed: int, epoch: int, shuffle: BlockShuffle) -> None:
        self.epoch = epoch
        self._num_streams, self._block_items = shuffle.streams, shuffle.block_items
        num_items = int(stops[-1]) if len(stops) else 0
        self._stream_items, self._longer_streams = divmod(num_items, shuffle.streams)
        self._key = np.uint64(_epoch_key(seed, epoch))
        units = EpochOrder(len(stops), seed, epoch).rows(np.arange(len(stops)))
        sizes = np.diff(stops, prepend=0)[units]
        self._stops = np.cumsum(sizes)  # of the units in the order of this epoch
        self._shifts = stops[units] - self._stops  # from a place in this order to an item

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Return the items at the given positions.

        Args:
            positions: int64 [K], each in [0, the number of items).

        Returns:
            int64 [K], each in [0, the number of items).
        """
        index, stream = np.divmod(positions, self._num_streams)
        block, place = np.divmod(index, self._block_items)
        start = stream * self._stream_items + np.minimum(stream, self._longer_streams)
        start += block * self._block_items
        items = self._stream_items + (stream < self._longer_streams)
        size = np.minimum(items - block * self._block_items, self._block_items)
        key = mixed(mixed(self._key ^ stream.astype(np.uint64)) ^ block.astype(np.uint64))
        # Full blocks and the last ones, which have one of two sizes, as streams have.
        for num in {self._block_items, *(self._last_block(more) for more in (0, 1))}:
            chosen = np.flatnonzero(size == num)
            if chosen.size:
                place[chosen] = _permute(place[chosen], num, _round_keys(key[chosen]))
        place += start
        place += self._shifts[np.searchsorted(self._stops, place, side="right")]
        return place

    def _last_block(self, more: int) -> int:
        return (self._stream_items + more) % self._block_items


def random_bits(seed: int, epoch: int, items: np.ndarray) -> np.ndarray:
    """Return uint64 [K], evenly spread: a pure function of seed, epoch and each of int64 [K]."""
    key = np.uint64(_mix_int(_epoch_key(seed, epoch) + STEP))
    return mixed(mixed(items.astype(np.uint64) + key) ^ key)


def _epoch_key(seed: int, epoch: int) -> int:
    return _mix_int(_mix_int(seed & _MASK) ^ (epoch & _MASK))


def _round_keys(keys: np.ndarray) -> np.ndarray:
    """Return uint64 [ROUNDS, K] for keys that are well mixed already."""
    steps = [(i + 1) * STEP & _MASK for i in range(ROUNDS)]
    return keys + np.array(steps, np.uint64)[:, None]


def _permute(values: np.ndarray, size: int, keys_RK: np.ndarray) -> np.ndarray:
    """Return int64 [K]: the value at each place of a permutation of [0, size).

    Args:
        values: int64 [K], each in [0, size).
        size: From 1.
        keys_RK: uint64 [ROUNDS, K], or [ROUNDS, 1] where all have the same.
    """
    bits = max((size - 1).bit_length(), _MIN_BITS)
    found = _encrypt(values.astype(np.uint64), bits, keys_RK)
    outside = np.flatnonzero(found >= size)
    while outside.size:
        keys = keys_RK if keys_RK.shape[1] == 1 else keys_RK[:, outside]
        found[outside] = _encrypt(found[outside], bits, keys)
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def _encrypt(values: np.ndarray, bits: int, keys_RK: np.ndarray) -> np.ndarray:
    num_low, num_high = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    high, low = values >> num_low, values & np.uint64((1 << int(num_low)) - 1)
    for i, keys in enumerate(keys_RK):
        if i % 2 == 0:
            high ^= mixed(low + keys) >> np.uint64(64 - num_high)
        else:
            low ^= mixed(high + keys) >> np.uint64(64 - num_low)
    return (high << num_low) | low


def _mix_int(x: int) -> int:
    """Return the SplitMix64 finalizer of one value."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * MIX_2) & _MASK
    return x ^ (x >> 31)
