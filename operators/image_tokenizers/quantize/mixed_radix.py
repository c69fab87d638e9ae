"""Join the digits of a product codebook into one id, and split ids again."""

from collections.abc import Sequence
from math import prod
from typing import TypeVar

import numpy as np

# A numpy array or a torch tensor: only arithmetic and indexing are used.
ArrayT = TypeVar("ArrayT")


def codebook_size(levels: Sequence[int]) -> int:
    """Return how many ids the levels span."""
    return prod(levels)


def join_digits(digits: ArrayT, levels: Sequence[int]) -> ArrayT:
    """Return ids [...] of digits [..., len(levels)]; the first digit is the least significant.

    Args:
        digits: Integers (wide enough for the ids), ``0 <= digits[..., i] < levels[i]``.
        levels: Values per digit.
    """
    basis = [prod(levels[:i]) for i in range(len(levels))]
    ids = digits[..., 0] * basis[0]  # type: ignore[index]
    for i in range(1, len(levels)):
        ids = ids + digits[..., i] * basis[i]  # type: ignore[index]
    return ids  # type: ignore[no-any-return]


def split_ids(ids: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """Return int64 digits [..., len(levels)] of ids [...]; the inverse of ``join_digits``."""
    wide = ids.astype(np.int64)
    basis = [prod(levels[:i]) for i in range(len(levels))]
    return np.stack(
        [wide // base % level for base, level in zip(basis, levels, strict=True)], axis=-1
    )
