"""EViT: the recorded tokens and the fused one, ties, padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.reducer_cases import golden, reducer, tokens_of


@pytest.mark.parametrize(("file", "keep"), [("n64_r0.5", 0.5), ("n196_r0.7", 0.7)])
def test_golden(file: str, keep: float) -> None:
    given, wanted = golden("evit", file)
    attention = given["cls_attn_heads"]
    op = reducer("evit", attention.shape[2], keep=keep)
    found = op.reduce(tokens_of(given["tokens"][:, 1:], cls_attention=attention[:, None]))
    torch.testing.assert_close(found.features, wanted["tokens"][:, 1:], rtol=1e-5, atol=1e-5)
    kept = wanted["idx"].shape[1] - 1
    for row, index in enumerate(wanted["idx"][:, :-1]):
        assert torch.equal(found.token_map[row, index], torch.arange(kept))
    assert torch.equal(found.token_map == kept, _is_in(wanted["complement"], attention.shape[2]))


def _is_in(index: torch.Tensor, num: int) -> torch.Tensor:
    return torch.zeros(len(index), num, dtype=torch.bool).scatter(1, index, True)


@pytest.mark.parametrize("seed", range(10))
def test_the_rule(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, heads = random.normal(size=(9, 3)), random.integers(1, 4, size=(2, 9)) / 8
    scores = heads.mean(axis=0)  # with ties
    kept = sorted(range(9), key=lambda i: (-scores[i], i))[:4]
    fused = sum(scores[i] * x[i] for i in range(9) if i not in kept)
    given = tokens_of(
        torch.from_numpy(x)[None].float(),
        cls_attention=torch.from_numpy(heads)[None, None].float(),
    )
    found = reducer("evit", 9, keep=4).reduce(given)
    np.testing.assert_allclose(found.features[0].numpy(), [*x[kept], fused], rtol=1e-5, atol=1e-6)
    raster = reducer("evit", 9, keep=4, order="raster").reduce(given)
    assert torch.equal(raster.features[0, :4], given.features[0, sorted(kept)])


def test_nothing_is_fused_where_few_tokens_are_no_padding() -> None:
    valid = torch.tensor([[True, False, True, True, False], [True, True, True, True, False]])
    given = tokens_of(torch.randn(2, 5, 2), cls_attention=torch.full((2, 1, 1, 5), 0.25))
    found = reducer("evit", 5, keep=3).reduce(replace(given, valid=valid))
    assert found.lengths is not None
    assert found.lengths.tolist() == [3, 4]
    assert found.token_map.tolist() == [[0, -1, 1, 2, -1], [0, 1, 2, 3, -1]]
    torch.testing.assert_close(found.features[1, 3], given.features[1, 3] / 4)
