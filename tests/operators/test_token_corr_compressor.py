"""TokenCorrCompressor: density and selection spelled out, padding."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.reducer_cases import reducer, tokens_of


@pytest.mark.parametrize("repeats", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("seed", range(8))
def test_the_rule(seed: int, repeats: float) -> None:
    random = np.random.default_rng(seed)
    keys = random.normal(size=(11, 2, 2))
    keys[4:8] = keys[3] + 0.05 * random.normal(size=(4, 2, 2))
    attention = random.integers(0, 4, size=(2, 2, 11)) / 8  # with ties
    redundant = 0
    for i in range(11):
        alike = 0
        for j in range(11):
            dot = float((keys[i] * keys[j]).sum())
            length = math.sqrt(float((keys[i] ** 2).sum() * (keys[j] ** 2).sum()))
            alike += j != i and dot / length >= 0.8
        redundant += alike / 10 > repeats
    scores = attention.sum(axis=(0, 1))
    best = sorted(range(11), key=lambda i: (-scores[i], i))[: max(11 - redundant, 3)]
    op = reducer(
        "token_corr_compressor", 11, num_layers=2, similarity=0.8, repeats=repeats, least=3
    )
    found = op.reduce(
        tokens_of(
            torch.randn(1, 11, 3),
            cls_attention=torch.from_numpy(attention)[None].float(),
            keys=torch.from_numpy(keys)[None].float(),
        )
    )
    assert found.lengths is not None
    assert found.index is not None
    assert found.index[0, : found.lengths[0]].tolist() == sorted(best)


def test_crops_decide_for_themselves() -> None:
    keys = torch.eye(6)[None].repeat(3, 1, 1)
    keys[1] = 1.0
    keys[2, :3] = 1.0
    tokens = tokens_of(
        torch.randn(3, 6, 2), cls_attention=torch.rand(3, 1, 1, 6), keys=keys[:, :, None]
    )
    found = reducer("token_corr_compressor", 6, similarity=0.95).reduce(tokens)
    assert found.lengths is not None
    assert found.lengths.tolist() == [6, 1, 3]


def test_padding_repeats_nothing() -> None:
    keys = torch.eye(6)[None, :, None].clone()
    keys[0, 1] = keys[0, 4] = keys[0, 0]
    given = tokens_of(torch.randn(1, 6, 2), cls_attention=torch.rand(1, 1, 1, 6), keys=keys)
    valid = torch.tensor([[True, False, True, True, False, True]])
    op = reducer("token_corr_compressor", 6)
    found, whole = op.reduce(replace(given, valid=valid)), op.reduce(given)
    assert found.lengths is not None
    assert whole.lengths is not None
    assert [found.lengths.tolist(), whole.lengths.tolist()] == [[4], [3]]
    assert found.token_map.tolist() == [[0, -1, 1, 2, -1, 3]]
