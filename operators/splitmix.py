"""The function by which SplitMix64 makes a random number of a state, for arrays.

Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014). The n-th number
after a state is ``mixed(state + n * STEP)``. Compiled functions have theirs in
``text/algorithms/splitmix.py``: they may call only what is compiled in their own folder.
"""

import numpy as np

STEP = 0x9E3779B97F4A7C15
"""Between two states."""

MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mixed(states: np.ndarray) -> np.ndarray:
    """Return uint64 numbers for an array of uint64 states, which wrap around."""
    x: np.ndarray = states ^ (states >> np.uint64(30))
    x *= np.uint64(MIX_1)
    x ^= x >> np.uint64(27)
    x *= np.uint64(MIX_2)
    x ^= x >> np.uint64(31)
    return x
