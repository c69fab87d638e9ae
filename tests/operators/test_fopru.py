"""FoPru: both strategies spelled out, budgets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from operators.errors import ContractError
from tests.reducer_cases import reducer, tokens_of


@pytest.mark.parametrize("seed", range(10))
def test_the_rules(seed: int) -> None:
    attention = np.random.default_rng(seed).integers(0, 3, size=(2, 12, 12)) / 4  # with ties
    scores = [sum(attention[h, q, i] for h in (0, 1) for q in range(12)) for i in range(12)]
    tokens = tokens_of(
        torch.randn(1, 12, 3), attention=torch.from_numpy(attention)[None, None].float()
    )
    found = reducer("fopru", 12, keep=5).reduce(tokens).index
    assert found is not None
    assert found[0].tolist() == sorted(sorted(range(12), key=lambda i: (-scores[i], i))[:5])
    sums = [sum(scores[3 * row : 3 * row + 3]) for row in range(4)]
    best = sorted(sorted(range(4), key=lambda row: (-sums[row], row))[:2])
    found = reducer("fopru", 12, keep=0.5, strategy="row", grid_width=3).reduce(tokens).index
    assert found is not None
    assert found[0].tolist() == [3 * row + column for row in best for column in range(3)]


def test_padding_does_not_count_for_its_row() -> None:
    attention = torch.zeros(1, 1, 1, 4, 4)
    attention[..., 0, :] = torch.tensor([0.1, 0.5, 0.2, 0.2])
    valid = torch.tensor([[True, False, True, True]])
    tokens = replace(tokens_of(torch.randn(1, 4, 3), attention=attention), valid=valid)
    found = reducer("fopru", 4, keep=2, strategy="row").reduce(tokens)
    assert found.token_map.tolist() == [[-1, -1, 0, 1]]


def test_budgets_of_rows() -> None:
    assert reducer("fopru", 36, keep=0.25, strategy="row").num_kept(36) == 12  # 1.5 to even
    with pytest.raises(ContractError, match="whole rows of 6 tokens"):
        reducer("fopru", 36, keep=20, strategy="row")
    with pytest.raises(ContractError, match="of 6 tokens"):
        reducer("fopru", 36, keep=0.01, strategy="row")
