"""BAT: split, matches and clusters spelled out, padding, budgets."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from operators.errors import ContractError
from operators.reducers.bat import density_peaks
from tests.reducer_cases import reducer, tokens_of


def clusters_of(x: np.ndarray, num: int, neighbors: int) -> list[list[int]]:
    """Cluster by density peaks."""
    count = len(x)
    far = [[math.dist(a, b) / x.shape[1] ** 0.5 for b in x] for a in x]
    density = [math.exp(-sum(d * d for d in sorted(row)[:neighbors]) / neighbors) for row in far]
    scores = []
    for i in range(count):
        denser = [far[i][j] for j in range(count) if density[j] > density[i]]
        scores.append(density[i] * (min(denser) if denser else max(map(max, far))))
    centres = sorted(range(count), key=lambda i: -scores[i])[:num]
    found: list[list[int]] = [[] for _ in centres]
    for i in range(count):
        nearest = min(range(num), key=lambda c: far[i][centres[c]])
        found[centres.index(i) if i in centres else nearest].append(i)
    return found


@pytest.mark.parametrize("weights", ["attention", "size"])
@pytest.mark.parametrize("seed", range(8))
def test_the_rule(seed: int, weights: str) -> None:
    random = np.random.default_rng(seed)
    x, attention = random.normal(size=(12, 3)), random.random(12)
    order = sorted(range(12), key=lambda i: -attention[i])
    attentive, others = sorted(order[:5]), sorted(order[5:])  # 0.625 of 8 rows; 2 are matched
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    even, odd = attentive[0::2], attentive[1::2]
    partner = {a: max(odd, key=lambda b: unit[a] @ unit[b]) for a in even}
    best = sorted(even, key=lambda a: -(unit[a] @ unit[partner[a]]))
    rows = [[a] for a in best[2:]] + [[b, *(a for a in best[:2] if partner[a] == b)] for b in odd]
    rows += [[others[i] for i in cluster] for cluster in clusters_of(x[others], 5, 3)]
    op = reducer("bat", 12, keep=8, attentive=0.625, matched=0.4, neighbors=3, weights=weights)
    found = op.reduce(
        tokens_of(
            torch.from_numpy(x)[None].float(),
            cls_attention=torch.from_numpy(attention)[None, None, None].float(),
        )
    )
    for row, members in enumerate(rows):
        assert torch.nonzero(found.token_map[0] == row).flatten().tolist() == sorted(members)
        weigh = attention[members] if weights == "attention" else np.ones(len(members))
        wanted = (x[members] * weigh[:, None]).sum(axis=0) / weigh.sum()
        np.testing.assert_allclose(found.features[0, row].numpy(), wanted, atol=1e-5)


def test_equal_tokens_make_as_many_clusters_as_asked() -> None:
    found = density_peaks(tokens_of(torch.ones(1, 5, 2)), 3, 2)
    assert found.tolist() == [[0, 1, 2, 0, 0]]


@pytest.mark.parametrize("seed", range(4))
def test_padding_makes_no_difference(seed: int) -> None:
    """The result is that of the same tokens without it, as long as there are enough."""
    random = np.random.default_rng(seed)
    valid = torch.ones(1, 14, dtype=torch.bool)
    valid[0, [0, 5, 9]] = False
    features = torch.from_numpy(random.normal(size=(1, 14, 3))).float()
    attention = torch.from_numpy(random.random((1, 1, 1, 14))).float()
    padded = replace(tokens_of(features, cls_attention=attention), valid=valid)
    few = tokens_of(features[:, valid[0]], cls_attention=attention[..., valid[0]])
    found = reducer("bat", 14, keep=6).reduce(padded)
    alone = reducer("bat", 11, keep=6).reduce(few)
    assert found.lengths is not None
    assert found.lengths.tolist() == [6]
    assert torch.equal(found.token_map[valid], alone.token_map[0])
    torch.testing.assert_close(found.features, alone.features)


def test_one_row_is_one_cluster() -> None:
    op = reducer("bat", 6, keep=1, attentive=1.0)
    found = op.reduce(tokens_of(torch.randn(1, 6, 2), cls_attention=torch.rand(1, 1, 1, 6)))
    assert found.token_map.tolist() == [[0] * 6]


def test_more_clusters_than_tokens_are_refused() -> None:
    assert reducer("bat", 10, keep=10, matched=0.0).num_kept(10) == 10
    with pytest.raises(ContractError, match="5 attentive ones and 4 clusters of 3 tokens"):
        reducer("bat", 10, keep=9, matched=0.3)
