"""Top-K: the authors' indices, ties, budgets."""

import pytest
import torch

from operators.errors import ContractError
from tests.reducer_cases import golden, reducer, tokens_of


@pytest.mark.parametrize(("file", "keep"), [("n64_r0.5", 0.5), ("n196_r0.7", 0.7)])
def test_golden(file: str, keep: float) -> None:
    given, wanted = golden("topk", file)
    attention = given["cls_attn_heads"]
    op = reducer("topk", attention.shape[2], keep=keep)
    found = op.reduce(tokens_of(given["tokens"][:, 1:], cls_attention=attention[:, None]))
    assert found.index is not None
    assert torch.equal(found.index, wanted["idx"])
    assert torch.equal(found.features, wanted["tokens"][:, 1:])


def test_of_equal_tokens_the_first_are_kept() -> None:
    op = reducer("topk", 9, keep=4)
    attention = torch.tensor([[0.1, 0.2, 0.1, 0.1, 0.2, 0.1, 0.1, 0.0, 0.1]])[:, None, None]
    found = op.reduce(tokens_of(torch.randn(1, 9, 3), cls_attention=attention))
    assert found.index is not None
    assert found.index.tolist() == [[1, 4, 0, 2]]


def test_the_last_layer_counts() -> None:
    op = reducer("topk", 4, keep=1, num_layers=2)
    attention = torch.zeros(1, 2, 1, 4)
    attention[0, 0, 0, 1] = attention[0, 1, 0, 3] = 1.0
    found = op.reduce(tokens_of(torch.randn(1, 4, 3), cls_attention=attention))
    assert found.index is not None
    assert found.index.tolist() == [[3]]


@pytest.mark.parametrize("keep", [17, 0.01])
def test_budgets_that_do_not_fit(keep: float) -> None:
    with pytest.raises(ContractError, match="of 16 tokens"):
        reducer("topk", 16, keep=keep)
