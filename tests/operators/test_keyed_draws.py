"""keyed_draws: frozen numbers, even and independent, of any key."""

import hashlib

import numpy as np

from operators.keyed_draws import draws_of_keys
from tests.ragged_rows import texts


def test_numbers_are_frozen() -> None:
    """Which captions are dropped, and where documents are cut, follows from them."""
    keys = ["a.tar:1", "", "\u65e5"]
    found = draws_of_keys(7, "drop/caption", texts(*keys))
    assert found[0].tolist() == [
        0.6478603681251975,
        0.16682789303158296,
        0.9202716622222419,
        0.5864860950301686,
    ]
    digests = [hashlib.sha256(f"7/drop/caption/{key}".encode()).digest() for key in keys]
    words = [
        [int.from_bytes(d[i : i + 8], "little") >> 11 for i in (0, 8, 16, 24)] for d in digests
    ]
    assert found.tolist() == [[word / 2**53 for word in row] for row in words]


def test_numbers_are_even_and_independent() -> None:
    keys = texts(*map(str, range(20_000)))
    drawn = np.concatenate([draws_of_keys(0, "a", keys), draws_of_keys(0, "b", keys)], axis=1)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.abs(drawn.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(drawn.T) - np.eye(8)).max() < 0.03


def test_no_keys_give_no_numbers() -> None:
    assert draws_of_keys(0, "a", texts()).shape == (0, 4)
