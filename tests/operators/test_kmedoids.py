"""K-Medoids: the authors' medoids with a pinned start, and the rounds spelled out."""

import numpy as np
import pytest
import torch

from operators.reducers import clustering, kmedoids
from tests.reducer_cases import golden, reducer, tokens_of


def attention_of(weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return signals that give tokens these weights [B, N]: the first token pays all of it."""
    count, num = weights.shape
    attention = torch.zeros(count, 1, 1, num, num)
    attention[:, 0, 0, 0] = weights
    return {"attention": attention, "cls_attention": torch.zeros(count, 1, 1, num)}


def test_golden_weighted() -> None:
    given, wanted = golden("kmedoids", "weighted_n64_k12")
    op = reducer("kmedoids", 64, keep=12, iterations=3)
    found = op.reduce(tokens_of(given["x"], **attention_of(given["token_weight"][..., 0])))
    assert found.index is not None
    assert torch.equal(found.index, wanted["center_idx"])
    assert torch.equal(found.token_map, wanted["assignment"])
    assert torch.equal(found.features, wanted["centers"])


def test_golden_unweighted(monkeypatch: pytest.MonkeyPatch) -> None:
    given, wanted = golden("kmedoids", "unweighted_n80_k10")
    first = given["init_index"].expand(2, 1)
    monkeypatch.setattr(kmedoids, "drawn", lambda *_: first)  # the authors draw one for all
    op = reducer("kmedoids", 80, keep=10, iterations=5, weights="none")
    found = op.reduce(tokens_of(given["x"]))
    assert found.index is not None
    assert torch.equal(found.index, wanted["center_idx"])
    assert torch.equal(found.token_map, wanted["assignment"])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("weights", ["attention", "none"])
def test_the_rounds(seed: int, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(11, 3))
    weight = random.uniform(0.5, 2, size=11)
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    if weights == "attention":
        centres = sorted(range(11), key=lambda i: -weight[i])[:4]
    else:
        weight[:] = 1
        centres = [seed % 11]
        while len(centres) < 4:
            left = [i for i in range(11) if i not in centres]
            centres.append(max(left, key=lambda i: max(distance[i, c] for c in centres)))
    for _ in range(3):
        slots = [min(range(4), key=lambda k: distance[i, centres[k]]) for i in range(11)]
        centres = [
            min(
                (i for i in range(11) if slots[i] == k),
                key=lambda i: weight[i] * sum(distance[i, j] for j in range(11)),
            )
            for k in range(4)
        ]
    monkeypatch.setattr(kmedoids, "drawn", lambda *_: torch.tensor([[seed % 11]]))
    op = reducer("kmedoids", 11, keep=4, weights=weights)
    signals = attention_of(torch.from_numpy(weight).float()[None]) if op.signals else {}
    found = op.reduce(tokens_of(torch.from_numpy(x).float()[None], **signals))
    assert found.index is not None
    assert found.index[0].tolist() == centres
    for i in range(11):
        assert found.token_map[0, i] == min(range(4), key=lambda k: distance[i, centres[k]])


def test_the_first_centre_is_of_seed_and_key() -> None:
    tokens = tokens_of(torch.zeros(200, 9, 1))
    firsts = {seed: clustering.drawn(tokens, seed, "a")[:, 0] for seed in (0, 1)}
    assert set(firsts[0].tolist()) == set(range(9))
    assert not torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[0], clustering.drawn(tokens, 0, "b")[:, 0])


def test_medoids_by_place() -> None:
    x = torch.tensor([[[9.0], [0.0], [9.1], [0.1]]])
    weights = torch.tensor([[1.0, 2.0, 3.0, 1.5]])
    found = reducer("kmedoids", 4, keep=2).reduce(tokens_of(x, **attention_of(weights)))
    assert found.index is not None
    assert found.index.tolist() == [[0, 3]]
    assert found.token_map.tolist() == [[0, 1, 0, 1]]
    weights = torch.tensor([[1.0, 3.0, 2.0, 1.5]])
    for order, places in (("slot", [[3, 0]]), ("raster", [[0, 3]])):
        op = reducer("kmedoids", 4, keep=2, order=order)
        index = op.reduce(tokens_of(x, **attention_of(weights))).index
        assert index is not None
        assert index.tolist() == places
