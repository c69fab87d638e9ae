"""DPC-KNN: the authors' clusters, and the rule spelled out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from operators.errors import ContractError
from tests.reducer_cases import golden, reducer, tokens_of


@pytest.mark.parametrize(("file", "keep"), [("n64_k16", 16), ("n100_k20_weighted", 20)])
def test_golden(file: str, keep: int) -> None:
    given, wanted = golden("dpc_knn", file)
    tokens = tokens_of(given["x"])
    if "token_weight" in given:  # learned there; sizes do the same
        weights = given["token_weight"][..., 0]
        tokens = replace(tokens, sizes=weights / weights.min())
    op = reducer("dpc_knn", given["x"].shape[1], keep=keep)
    found = op.reduce(tokens)
    assert torch.equal(found.token_map, wanted["idx_cluster"])
    torch.testing.assert_close(found.features, wanted["x"], rtol=1e-5, atol=1e-5)
    for row, centres in enumerate(wanted["index_center"]):
        assert found.token_map[row, centres].tolist() == list(range(keep))


@pytest.mark.parametrize("seed", range(15))
def test_the_rule(seed: int) -> None:
    num, kept, neighbours = 11, 4, 3
    x = np.random.default_rng(seed).normal(size=(num, 3))
    distance = np.linalg.norm(x[:, None] - x[None], axis=2) / np.sqrt(3)
    density = [np.exp(-np.mean(np.sort(row)[:neighbours] ** 2)) for row in distance]
    score = []
    for i in range(num):
        denser = [distance[i, j] for j in range(num) if density[j] > density[i]]
        score.append(density[i] * min(denser, default=distance.max()))
    centres = sorted(range(num), key=lambda i: -score[i])[:kept]
    slots = [min(range(kept), key=lambda k: distance[i, centres[k]]) for i in range(num)]
    op = reducer("dpc_knn", num, keep=kept, neighbours=neighbours)
    found = op.reduce(tokens_of(torch.from_numpy(x).float()[None]))
    assert found.token_map[0].tolist() == slots
    for k in range(kept):
        wanted = x[[i for i in range(num) if slots[i] == k]].mean(axis=0)
        np.testing.assert_allclose(found.features[0, k].numpy(), wanted, rtol=1e-4, atol=1e-5)
    by_place = reducer("dpc_knn", num, keep=kept, neighbours=neighbours, order="raster")
    places = by_place.reduce(tokens_of(torch.from_numpy(x).float()[None])).token_map[0]
    assert places[sorted(centres)].tolist() == list(range(kept))


def test_of_equal_tokens_the_first_is_the_peak() -> None:
    x = torch.tensor([[[5.0], [0.0], [5.0], [5.0], [0.0]]])
    found = reducer("dpc_knn", 5, keep=2, neighbours=2).reduce(tokens_of(x))
    assert found.token_map.tolist() == [[0, 1, 0, 0, 1]]


def test_features_of_large_norm_have_peaks_as_well() -> None:
    x = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0))
    near = reducer("dpc_knn", 20, keep=1, neighbours=1).reduce(tokens_of(x))
    assert near.token_map.unique().tolist() == [0]
    two = torch.cat([x[:, :10], x[:, 10:] + 10], dim=1) * 1000  # exp(-1e6) is 0
    found = reducer("dpc_knn", 20, keep=2).reduce(tokens_of(two)).token_map[0]
    assert len(set(found[:10].tolist())) == len(set(found[10:].tolist())) == 1
    assert found[0] != found[19]


def test_more_neighbours_than_tokens() -> None:
    with pytest.raises(ContractError, match="neighbours=9 of 8 tokens"):
        reducer("dpc_knn", 8, neighbours=9)
