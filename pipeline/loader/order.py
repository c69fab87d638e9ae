"""The order of an epoch: a keyed permutation of the rows, computed where it is asked for.

N rows are numbered through the shards in the order of the index. Position p of an epoch holds row
``permute(p)``, a bijection of [0, N) made of integer arithmetic only: the same in every version of
every library, in O(1) memory, and as cheap to enter in the middle as at the beginning.

The bijection is a Feistel network (Luby and Rackoff, 1988) of ``ROUNDS`` rounds over the smallest
power of two that holds N, with the finalizer of SplitMix64 (Steele, Lea and Flood, 2014) as round
function. A value that lands at N or above is sent through again until it lands below (cycle
walking: Black and Rogaway, 2002), on average less than twice.
"""

import numpy as np

ROUNDS = 8
"""Part of the order, like the constants below: another number is another order."""

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_MIN_BITS = 6  # below it a network has too few different permutations


class EpochOrder:
    """Which row stands where in one epoch.

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
        bits = max((num_samples - 1).bit_length(), _MIN_BITS)
        self._low_bits = bits // 2
        self._high_bits = bits - self._low_bits
        key = _mix_int(_mix_int(seed & _MASK) ^ (epoch & _MASK))
        self._keys = [_mix_int(key + (i + 1) * _GOLDEN) for i in range(ROUNDS)]

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Return the rows at the given positions.

        Args:
            positions: int64 [K], each in [0, num_samples).

        Returns:
            int64 [K], each in [0, num_samples).
        """
        if not self._shuffle:
            return positions
        values = self._encrypt(positions.astype(np.uint64))
        outside = np.flatnonzero(values >= self._num_samples)
        while outside.size:
            values[outside] = self._encrypt(values[outside])
            outside = outside[values[outside] >= self._num_samples]
        return values.astype(np.int64)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        low_bits = np.uint64(self._low_bits)
        high, low = values >> low_bits, values & np.uint64((1 << self._low_bits) - 1)
        for i, key in enumerate(self._keys):
            if i % 2 == 0:
                high = high ^ (_mix(low + np.uint64(key)) >> np.uint64(64 - self._high_bits))
            else:
                low = low ^ (_mix(high + np.uint64(key)) >> np.uint64(64 - self._low_bits))
        return (high << low_bits) | low


def _mix(x: np.ndarray) -> np.ndarray:
    """Return the SplitMix64 finalizer of every value; arrays of uint64 wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def _mix_int(x: int) -> int:
    """Return the SplitMix64 finalizer of one value."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)
