"""Random numbers of SplitMix64: any of them can be had from its state alone, in integers.

Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014). The n-th number
after a state is ``mixed(state + n * STEP)``.
"""

import numpy as np

from operators.text.algorithms.compiled import compiled

STEP = np.uint64(0x9E3779B97F4A7C15)
"""Between two states."""


@compiled
def mixed(state: np.uint64) -> np.uint64:
    """Return the number of a state."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@compiled
def uniform(state: np.uint64) -> float:
    """Return the number of a state as one in [0, 1), of 53 bits."""
    return float(mixed(state) >> np.uint64(11)) * 2.0**-53
