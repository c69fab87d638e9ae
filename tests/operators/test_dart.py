"""DART: the tokens of a public copy of the code, and the choice spelled out."""

import numpy as np
import pytest
import torch

from operators.errors import ContractError
from operators.reducers.dart import least_alike
from tests.reducer_cases import golden, reducer, tokens_of


@pytest.mark.parametrize(
    ("file", "first", "num"), [("n100_r0.5_4img_4txt", 12, 100), ("n144_r0.75_8img_0txt", 5, 144)]
)
def test_golden(file: str, first: int, num: int) -> None:
    given, wanted = golden("dart", file)
    hidden, image = given["hidden"], given["hidden"][:, first : first + num]
    visited = wanted["pivot_visit_order"]
    own = [int(n) - first for n in visited if first <= n < first + num]
    barred = torch.zeros(1, num, dtype=torch.bool)
    barred[0, own] = True
    quota = int(wanted["tokens_per_pivot"])
    chosen = least_alike(tokens_of(image), hidden[:, visited], barred, quota)
    kept = torch.nonzero((chosen | barred)[0]).flatten() + first
    assert torch.equal(kept, wanted["keep_idx"])


def test_golden_pivots_and_budget() -> None:
    given, wanted = golden("dart", "n144_r0.75_8img_0txt")
    op = reducer("dart", 144, channels=32, keep=0.25, pivots=8)
    features, keys = given["hidden"][:, 5:149], given["keys"].transpose(1, 2)[:, 5:149]
    found = op.reduce(tokens_of(features, keys=keys))
    assert found.index is not None
    kept = found.index[0].tolist()
    assert len(kept) == len(wanted["keep_idx"]) == op.num_kept(144)
    assert {int(n) - 5 for n in wanted["pivot_visit_order"]} <= set(kept)


@pytest.mark.parametrize("seed", range(8))
def test_the_choice(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(12, 4)).astype(np.float32)
    keys = random.normal(size=(12, 2, 3)).astype(np.float32)
    norms = np.abs(keys).sum(axis=(1, 2))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pivots = sorted(sorted(range(12), key=lambda n: (-norms[n], n))[:2])
    kept = list(pivots)
    for pivot in pivots:
        rest = [n for n in range(12) if n not in kept]
        kept += sorted(rest, key=lambda n: (unit[pivot] @ unit[n], n))[:3]
    op = reducer("dart", 12, keep=7, pivots=2)
    found = op.reduce(tokens_of(torch.from_numpy(x)[None], keys=torch.from_numpy(keys)[None]))
    assert found.index is not None
    assert found.index[0].tolist() == sorted(kept)


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ContractError, match="4 pivots and keep=36 are 40 of 36 tokens"):
        reducer("dart", 36, keep=36)
