"""Draw numbers as Rust's ``rand`` 0.8 does with ``StdRng::seed_from_u64`` and ``gen_range``.

ChaCha with 12 rounds (RFC 7539 describes the block; the counter here has 64 bits).
"""

import numpy as np

from operators.text.algorithms.compiled import compiled

_KEY, _COUNTER, _BLOCK, _USED = 0, 8, 9, 25
_STATE_WORDS = 26
_ROUNDS = 12


@compiled
def seeded(seed: np.uint64) -> np.ndarray:
    """Return uint64 [26], the generator of a seed: key, counter, block and words used of it."""
    state = seed
    rng = np.zeros(_STATE_WORDS, np.uint64)
    for i in range(8):
        state = state * np.uint64(6364136223846793005) + np.uint64(11634580027462260723)
        mixed = (((state >> np.uint64(18)) ^ state) >> np.uint64(27)) & np.uint64(0xFFFFFFFF)
        turn = state >> np.uint64(59)
        both = (mixed << np.uint64(32)) | mixed
        rng[_KEY + i] = (both >> turn) & np.uint64(0xFFFFFFFF)
    rng[_USED] = 16
    return rng


@compiled
def draw_below(rng: np.ndarray, size: int) -> np.int64:
    """Return a number in [0, size), size < 2**32, and move the generator on."""
    wide = np.uint64(size)
    zone = wide
    while zone < np.uint64(1 << 63):
        zone = zone << np.uint64(1)
    zone = zone - np.uint64(1)
    low32 = np.uint64(0xFFFFFFFF)
    while True:
        word = _next_word(rng)
        word = word | (_next_word(rng) << np.uint64(32))
        # The high and low halves of a product of 128 bits.
        low = (word & low32) * wide
        high = (word >> np.uint64(32)) * wide + (low >> np.uint64(32))
        if word * wide <= zone:
            return np.int64(high >> np.uint64(32))


@compiled
def _next_word(rng: np.ndarray) -> np.uint64:
    if rng[_USED] == np.uint64(16):
        _fill_block(rng)
    word: np.uint64 = rng[_BLOCK + np.int64(rng[_USED])]
    rng[_USED] += np.uint64(1)
    return word


@compiled
def _fill_block(rng: np.ndarray) -> None:
    first = np.zeros(16, np.uint32)
    first[0], first[1], first[2], first[3] = 0x61707865, 0x3320646E, 0x79622D32, 0x6B206574
    for i in range(8):
        first[4 + i] = np.uint32(rng[_KEY + i])
    first[12] = np.uint32(rng[_COUNTER] & np.uint64(0xFFFFFFFF))
    first[13] = np.uint32(rng[_COUNTER] >> np.uint64(32))
    block = first.copy()
    for _ in range(_ROUNDS // 2):
        for i in range(4):
            _quarter_round(block, i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            _quarter_round(block, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    for i in range(16):
        rng[_BLOCK + i] = np.uint64(np.uint32(block[i] + first[i]))
    rng[_COUNTER] += np.uint64(1)
    rng[_USED] = 0


@compiled
def _quarter_round(block: np.ndarray, a: int, b: int, c: int, d: int) -> None:
    for to, by, mixed, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        block[to] = np.uint32(block[to] + block[by])
        word = np.uint32(block[mixed] ^ block[to])
        left, right = np.uint32(turn), np.uint32(32 - turn)
        block[mixed] = np.uint32((word << left) | (word >> right))
