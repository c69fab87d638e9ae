"""HiPrune: the authors' choices, the rule spelled out, edges, mistakes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from operators.errors import ContractError
from operators.reducers.base import Tokens
from tests.reducer_cases import golden, reducer, tokens_of


def asked_by_one(shallow: torch.Tensor, deep: torch.Tensor) -> Tokens:
    """Return tokens that receive this [B, N] in two layers, all of it from the first token."""
    count, num = shallow.shape
    attention = torch.zeros(count, 2, 1, num, num)
    attention[:, 0, 0, 0], attention[:, 1, 0, 0] = shallow, deep
    return tokens_of(torch.randn(count, num, 3), attention=attention)


def kept(tokens: Tokens, **options: Any) -> list[list[int]]:
    op = reducer(
        "hiprune", tokens.features.shape[1], num_layers=2, **{"class_query": False, **options}
    )
    index = op.reduce(tokens).index
    assert index is not None
    found: list[list[int]] = index.tolist()
    return found


def test_golden_with_heads_and_the_class_token() -> None:
    given, wanted = golden("hiprune", "ret64_a0.1")
    layers = torch.stack([given["shallow_attn_rows"], given["deep_attn_rows"]], dim=1)[..., 1:]
    attention = torch.zeros(1, 2, 2, 576, 576)
    attention[..., :7, :] = layers[..., 1:, :]
    tokens = tokens_of(torch.randn(1, 576, 3), attention=attention, cls_attention=layers[..., 0, :])
    assert kept(tokens, keep=64, class_query=True) == wanted["keep_idx"].tolist()


def test_golden_of_two_crops() -> None:
    given, wanted = golden("hiprune", "ret192_a0.5_2crops")
    tokens = asked_by_one(given["shallow_received"], given["deep_received"])
    assert kept(tokens, keep=192 // 2, alpha=0.5) == wanted["keep_idx"].tolist()


def test_golden_of_a_grid_that_is_not_square() -> None:
    given, wanted = golden("hiprune", "qwen_8x12_r0.3")
    tokens = asked_by_one(given["shallow_attn"][None], given["deep_attn"][None])
    found = kept(tokens, keep=0.3, grid_width=12)
    assert found == [torch.nonzero(wanted["keep_mask"]).flatten().tolist()]


@pytest.mark.parametrize("variant", ["authors", "paper"])
@pytest.mark.parametrize("seed", range(15))
def test_the_rule(seed: int, variant: str) -> None:
    random = np.random.default_rng(seed)
    shallow, deep = random.integers(0, 4, size=(2, 12)) / 4  # with ties
    width, keep = 3, 10
    chosen: set[int] = set()
    for anchor in sorted(range(12), key=lambda i: (-shallow[i], i))[: round(0.9 * keep / 5)]:
        row, column = divmod(anchor, width)
        chosen.add(anchor)
        for down, right in ((0, -1), (0, 1), (-1, 0), (1, 0)):
            if variant == "authors":
                chosen.add(min(max(anchor + down * width + right, 0), 11))
            elif 0 <= row + down < 4 and 0 <= column + right < width:
                chosen.add(anchor + down * width + right)
    rest = sorted(set(range(12)) - chosen, key=lambda i: (-deep[i], i))
    wanted = sorted(chosen | set(rest[: keep - len(chosen)]))
    tokens = asked_by_one(torch.from_numpy(shallow)[None], torch.from_numpy(deep)[None])
    assert kept(tokens, keep=keep, alpha=0.9, variant=variant, grid_width=width) == [wanted]


def test_padding_neither_asks_nor_is_kept() -> None:
    valid = torch.ones(1, 9, dtype=torch.bool)
    valid[0, 5] = False
    attention = torch.full((1, 2, 1, 9, 9), 0.01)
    attention[..., 4, 4] = 1.0  # the anchor is in the middle
    attention[..., 5, 0] = 9.0
    tokens = replace(tokens_of(torch.randn(1, 9, 3), attention=attention), valid=valid)
    op = reducer("hiprune", 9, num_layers=2, keep=5, alpha=1.0, class_query=False)
    found = op.reduce(tokens)
    assert torch.nonzero(found.token_map[0] >= 0).flatten().tolist() == [0, 1, 3, 4, 7]


def test_one_layer_is_refused() -> None:
    with pytest.raises(ContractError, match="is of 1 layer"):
        reducer("hiprune", 36, keep=16)


def test_too_many_anchors_are_refused() -> None:
    with pytest.raises(ContractError, match="1 anchors with four neighbours each"):
        reducer("hiprune", 36, num_layers=2, keep=3, alpha=1.0)


def test_a_grid_that_is_not_full_is_refused() -> None:
    with pytest.raises(ContractError, match="35 tokens do not fill a square"):
        reducer("hiprune", 35, num_layers=2, keep=16)
    with pytest.raises(ContractError, match="36 tokens do not fill rows of 7"):
        reducer("hiprune", 36, num_layers=2, keep=16, grid_width=7)
