"""TESTA: the authors' groups of both merges, and a video spelled out."""

from collections import Counter

import numpy as np
import pytest
import torch

from operators.errors import ContractError
from operators.reducers.base import Tokens, merge, sum_by_map
from operators.reducers.testa import match_frames, most_frequent
from operators.reducers.tome import match
from tests.reducer_cases import golden, reducer


def test_golden_frames() -> None:
    given, wanted = golden("testa", "frame")  # [B, places, frames, C]
    rows = match_frames(given["metric"].transpose(1, 2), 4)
    assert torch.equal(rows[:, None].expand(-1, 25, -1), wanted["group_of_token"])
    by_place = Tokens(given["x"][0], given["size"][0, ..., 0])
    found = merge(by_place, rows.expand(25, -1), 8)
    torch.testing.assert_close(found.features, wanted["x"][0], rtol=1e-5, atol=1e-5)


def test_golden_tokens() -> None:
    given, wanted = golden("testa", "patch_cls")
    tokens = Tokens(given["x"].flatten(0, 1), given["size"].flatten(0, 1)[..., 0])
    token_map = match(given["metric"].flatten(0, 1), 14, tokens, has_class=True, ascending=True)
    assert torch.equal(token_map, wanted["group_of_token"].flatten(0, 1))
    found = merge(tokens, token_map, 36)
    torch.testing.assert_close(found.features, wanted["x"].flatten(0, 1), rtol=1e-5, atol=1e-5)
    sizes = sum_by_map(tokens.sizes[..., None], token_map, 36)
    assert torch.equal(sizes, wanted["size"].flatten(0, 1))


def frame_groups(x: np.ndarray, num_merged: int) -> list[list[int]]:
    unit = x / np.linalg.norm(x, axis=2, keepdims=True)
    frames, places = x.shape[:2]
    even, odd = range(0, frames, 2), range(1, frames, 2)
    partner, likeness = {}, {}
    for a in even:
        best = [max((float(unit[a, n] @ unit[b, n]), -b) for b in odd) for n in range(places)]
        votes = Counter(-b for _, b in best)
        partner[a] = min(votes, key=lambda b: (-votes[b], b))
        likeness[a] = min(value for value, _ in best)  # all different
    order = sorted(even, key=lambda a: (-likeness[a], a))
    groups = [[a] for a in sorted(order[num_merged:])] + [[b] for b in odd]
    for a in order[:num_merged]:
        groups[len(order) - num_merged + odd.index(partner[a])].append(a)
    return groups


def token_groups(x: np.ndarray, num_merged: int) -> list[list[int]]:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    even, odd = range(0, len(x), 2), range(1, len(x), 2)
    partner = {a: max(odd, key=lambda b: (unit[a] @ unit[b], -b)) for a in even}
    order = sorted(even, key=lambda a: (-(unit[a] @ unit[partner[a]]), a))
    groups = [[a] for a in sorted(order[num_merged:])] + [[b] for b in odd]
    for a in order[:num_merged]:
        groups[len(order) - num_merged + odd.index(partner[a])].append(a)
    return groups


@pytest.mark.parametrize("seed", range(6))
def test_a_video(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(6, 7, 4)).astype(np.float32)
    wanted, members = [], []
    for frames in frame_groups(x, 2):
        merged = x[frames].mean(axis=0)
        for group in token_groups(merged, 3):
            wanted.append(merged[group].mean(axis=0))
            members.append(sorted((t, n) for t in frames for n in group))
    op = reducer("testa", 7, channels=4, crops=(6,), frames=4, tokens=4, metric="features")
    out = op({"features": torch.from_numpy(x)[None]})
    assert out["features"].shape == (1, 16, 4)
    assert out["token_map"].shape == (1, 6, 7)
    for row, places in enumerate(members):
        found = torch.nonzero(out["token_map"][0] == row).tolist()
        assert sorted((t, n) for t, n in found) == places
    np.testing.assert_allclose(out["features"][0], wanted, rtol=1e-4, atol=1e-5)


def test_all_frames_may_stay() -> None:
    features = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    op = reducer("testa", 6, crops=(4,), frames=4, tokens=6, metric="features")
    out = op({"features": features})
    assert torch.equal(out["features"], features.flatten(1, 2))
    assert out["token_map"].flatten().tolist() == list(range(24))


def test_maps_of_single_frames_are_carried_on() -> None:
    single = reducer("divprune", 9, crops=(4,), keep=6)
    added = {name: single.outputs[name] for name in ("token_map", "sizes")}
    joint = reducer("testa", 6, crops=(4,), frames=3, tokens=4, metric="features", extra=added)
    features = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    before = single({"features": features})
    out = joint(before)
    assert out["token_map"].shape == (2, 4, 9)
    assert torch.equal(out["token_map"] < 0, before["token_map"] < 0)
    for image in range(2):
        for row in range(12):
            members = features[image][out["token_map"][image] == row]
            assert len(members) == out["sizes"][image, row]
            torch.testing.assert_close(out["features"][image, row], members.mean(dim=0))


def test_the_most_frequent_of_equals_is_the_lowest() -> None:
    assert most_frequent(torch.tensor([[3, 1, 3, 1, 2], [5, 9, 7, 8, 6]])).tolist() == [1, 5]


def test_mistakes() -> None:
    with pytest.raises(ContractError, match=r"frames=0\.25 is 2 of 8, one call"):
        reducer("testa", 9, crops=(8,), frames=0.25)
    with pytest.raises(ContractError, match="expected several of each image"):
        reducer("testa", 9)
    with pytest.raises(ContractError, match="equally many"):
        reducer("testa", 9, crops=(None,))
