"""DivPrune: the authors' choices, and the greedy rule spelled out."""

import numpy as np
import pytest
import torch

from tests.reducer_cases import golden, reducer, tokens_of


@pytest.mark.parametrize(("file", "keep"), [("n144_r0.098", 0.098), ("n100_r0.25", 0.25)])
def test_golden(file: str, keep: float) -> None:
    given, wanted = golden("divprune", file)
    features = given["x"][None]
    for order, name in (("selection", "selected_order"), ("raster", "selected_sorted")):
        op = reducer("divprune", features.shape[1], keep=keep, order=order)
        found = op.reduce(tokens_of(features)).index
        assert found is not None
        assert torch.equal(found[0], wanted[name])


@pytest.mark.parametrize("seed", range(20))
def test_the_greedy_rule(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(10, 3)).astype(np.float32)
    x[7] = x[2]  # twins: one of them is chosen last
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    chosen = [int(np.argmax(distance.min(axis=1)))]
    while len(chosen) < 6:
        others = [i for i in range(10) if i not in chosen]
        chosen.append(max(others, key=lambda i: min(distance[i, j] for j in chosen)))
    op = reducer("divprune", 10, keep=6, order="selection")
    found = op.reduce(tokens_of(torch.from_numpy(x)[None])).index
    assert found is not None
    assert found[0].tolist() == chosen


def test_equal_tokens_are_chosen_once() -> None:
    op = reducer("divprune", 5, keep=5, order="selection")
    found = op.reduce(tokens_of(torch.ones(1, 5, 4))).index
    assert found is not None
    assert found.tolist() == [[0, 1, 2, 3, 4]]
