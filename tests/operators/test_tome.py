"""ToMe: the authors' groups over chained rounds, and the matching spelled out."""

import numpy as np
import pytest
import torch

from operators.errors import ContractError
from operators.reducers.base import Tokens, merge, sum_by_map
from operators.reducers.tome import match
from tests.reducer_cases import golden, reducer, tokens_of


def test_golden() -> None:
    given, wanted = golden("tome", "plain_half")
    op = reducer("tome", 64, keep=32)
    tokens = tokens_of(given["x0"], keys=given["metric0"][:, :, None])
    found = op.reduce(tokens)
    assert torch.equal(found.token_map, wanted["group_of_token"])
    torch.testing.assert_close(found.features, wanted["x1"], rtol=1e-5, atol=1e-5)
    unmerged = found.features.gather(1, found.token_map[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(unmerged, wanted["unmerged1"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_the_matching(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(11, 4))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    even, odd = list(range(0, 11, 2)), list(range(1, 11, 2))
    partner = {a: max(odd, key=lambda b: (unit[a] @ unit[b], -b)) for a in even}
    order = sorted(even, key=lambda a: (-(unit[a] @ unit[partner[a]]), a))
    rows = [[a] for a in order[3:]] + [[b] for b in odd]
    for a in order[:3]:
        rows[3 + odd.index(partner[a])].append(a)
    features = torch.from_numpy(x)[None].float()
    found = reducer("tome", 11, keep=8, metric="features").reduce(tokens_of(features))
    for row, members in enumerate(rows):
        assert sorted(torch.nonzero(found.token_map[0] == row).flatten().tolist()) == sorted(
            members
        )
        wanted = x[members].mean(axis=0)
        np.testing.assert_allclose(found.features[0, row].numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_sizes_weigh() -> None:
    features = torch.tensor([[[1.0], [4.0], [9.0]]])
    tokens = Tokens(features, torch.tensor([[3.0, 1.0, 1.0]]))
    found = merge(tokens, torch.tensor([[0, 0, 1]]), 2)
    assert found.features.tolist() == [[[7.0 / 4], [9.0]]]


def test_one_call_halves_at_most() -> None:
    with pytest.raises(ContractError, match="at most halve them to 18"):
        reducer("tome", 36, keep=17)


def test_of_equal_partners_the_first_is_taken() -> None:
    token_map = match(torch.ones(1, 6, 2), 3, tokens_of(torch.ones(1, 6, 2)))
    assert token_map.tolist() == [[0, 0, 0, 1, 0, 2]]


@pytest.mark.parametrize("file", ["classtoken", "distill"])
def test_golden_with_protected_tokens(file: str) -> None:
    given, wanted = golden("tome", file)
    x, sizes = given["x0"], torch.ones(given["x0"].shape[:2])
    groups = torch.arange(x.shape[1]).expand(2, -1)
    for turn in (1, 2):
        tokens = Tokens(x, sizes)
        kept = wanted[f"x{turn}"].shape[1]
        token_map = match(
            given[f"metric{turn - 1}"],
            x.shape[1] - kept,
            tokens,
            has_class=True,
            has_distilled=file == "distill",
        )
        x = merge(tokens, token_map, kept).features
        sizes = sum_by_map(sizes[..., None], token_map, kept)[..., 0]
        groups = token_map.gather(1, groups)
        torch.testing.assert_close(x, wanted[f"x{turn}"], rtol=1e-5, atol=1e-5)
        assert torch.equal(sizes, wanted[f"size{turn}"][..., 0])
    assert torch.equal(groups, wanted["group_of_token"])
