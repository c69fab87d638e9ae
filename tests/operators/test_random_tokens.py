"""Random tokens: frozen choices, fair ones, and the numbers spelled out."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from operators.base import Ragged
from operators.reducers.random_tokens import numbers_of
from tests.reducer_cases import reducer, tokens_of


def test_the_numbers() -> None:
    mask = (1 << 64) - 1
    for name in ("a", "b\0001"):
        digest = hashlib.sha256(f"3/random_tokens/{name}".encode()).digest()
        state = int.from_bytes(digest[:8], "little") >> 11
        wanted = []
        for _ in range(5):
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            wanted.append(z ^ (z >> 31))
        assert numbers_of(3, pa.array([name], pa.large_string()), 5).tolist() == [wanted]


def test_the_choice_is_the_same_as_ever() -> None:
    found = reducer("random_tokens", 12, keep=4).reduce(tokens_of(torch.zeros(3, 12, 1))).index
    assert found is not None
    assert found.tolist() == [[0, 5, 8, 10], [0, 4, 7, 9], [3, 6, 7, 11]]


def test_every_pair_is_equally_likely() -> None:
    tokens = tokens_of(torch.zeros(6000, 4, 1))
    found = reducer("random_tokens", 4, keep=2).reduce(tokens).index
    assert found is not None
    counts = Counter(map(tuple, found.tolist()))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 150 for count in counts.values())  # five deviations


def test_padding_does_not_change_who_is_drawn_before_whom() -> None:
    tokens = tokens_of(torch.zeros(50, 12, 1))
    valid = torch.ones(50, 12, dtype=torch.bool)
    valid[:, ::3] = False
    found = reducer("random_tokens", 12, keep=4).reduce(replace(tokens, valid=valid))
    order = numbers_of(0, tokens.more["key"], 12).argsort(axis=1)
    for row in range(50):
        wanted = sorted([i for i in order[row].tolist() if i % 3][:4])
        assert found.index is not None
        assert found.index[row].tolist() == wanted


def test_every_crop_has_a_choice_of_its_own() -> None:
    values = np.arange(6 * 9, dtype=np.float32).reshape(6, 9, 1)
    keys = pa.array(["sample-0", "sample-1", "sample-2"], pa.large_string())
    op = reducer("random_tokens", 9, keep=3, channels=1, crops=(None,))
    out = op({"features": Ragged(values, np.array([0, 2, 2, 6])), "key": keys})
    fixed = reducer("random_tokens", 9, keep=3, channels=1, crops=(2,))
    crops = torch.from_numpy(values[[0, 1, 2, 3]].reshape(2, 2, 9, 1))
    again = fixed({"features": crops, "key": keys.take([0, 2])})
    assert out["features"].lengths.tolist() == [2, 0, 4]
    assert np.array_equal(out["token_map"][0], again["token_map"][0])
    assert np.array_equal(out["token_map"][2][:2], again["token_map"][1])
    assert len({tuple(row) for row in (out["token_map"][2] >= 0).tolist()}) > 1
