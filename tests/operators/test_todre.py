"""ToDRE: both greedy rules spelled out."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.reducer_cases import reducer, tokens_of


@pytest.mark.parametrize("rule", ["max_sum", "k_center"])
@pytest.mark.parametrize("seed", range(12))
def test_the_greedy_rule(seed: int, rule: str) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(12, 3)).astype(np.float32)
    x[7] = x[2]  # twins
    attention = torch.from_numpy(random.random(size=(1, 2, 3, 12))).float()
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    alike = unit @ unit.T
    chosen = [int(attention[0, -1].mean(dim=0).argmax())]
    while len(chosen) < 6:
        left = [i for i in range(12) if i not in chosen]
        if rule == "max_sum":
            chosen.append(min(left, key=lambda i: sum(alike[i, j] for j in chosen)))
        else:
            chosen.append(min(left, key=lambda i: max(alike[i, j] for j in chosen)))
    tokens = tokens_of(torch.from_numpy(x)[None], cls_attention=attention)
    for order, wanted in (("selection", chosen), ("raster", sorted(chosen))):
        op = reducer("todre", 12, keep=6, rule=rule, order=order, num_layers=2)
        found = op.reduce(tokens).index
        assert found is not None
        assert found[0].tolist() == wanted


def test_without_a_class_token_the_pivot_is_of_seed_and_key() -> None:
    options: dict[str, Any] = {"keep": 3, "pivot": "random", "order": "selection"}
    op = reducer("todre", 8, **options)
    assert set(op.inputs) == {"features", "key"}
    tokens = tokens_of(torch.randn(100, 8, 4, generator=torch.Generator().manual_seed(0)))
    found, again = op.reduce(tokens).index, op.reduce(tokens).index
    other = reducer("todre", 8, **options, seed=1).reduce(tokens).index
    assert found is not None
    assert again is not None
    assert other is not None
    assert torch.equal(found, again)
    assert set(found[:, 0].tolist()) == set(range(8))
    assert not torch.equal(found[:, 0], other[:, 0])


def test_equal_tokens_are_chosen_once() -> None:
    op = reducer("todre", 5, keep=5, order="selection")
    attention = torch.tensor([[[[0.1, 0.1, 0.4, 0.3, 0.1]]]])
    found = op.reduce(tokens_of(torch.ones(1, 5, 4), cls_attention=attention)).index
    assert found is not None
    assert found.tolist() == [[2, 0, 1, 3, 4]]
