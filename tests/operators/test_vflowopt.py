"""VFlowOpt: the authors' importance and recycling, the rule spelled out, pictures, mistakes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from operators.base import FieldSpec, Ragged
from operators.errors import ContractError
from operators.reducers.base import merge
from operators.reducers.vflowopt import importance, patch_entropy, recycle
from tests.reducer_cases import batch_for, golden, reducer, tokens_of


@pytest.mark.parametrize(
    ("file", "threshold", "weight"), [("importance_8x8", 1.3, 0.6), ("importance_6x6_t0", 0.0, 0.3)]
)
def test_golden_importance(file: str, threshold: float, weight: float) -> None:
    given, wanted = golden("vflowopt", file)
    attention = given["attn"]
    side = math.isqrt(attention.shape[2])
    entropy = patch_entropy(given["pixels_u8"].movedim(1, 3), side, side)
    torch.testing.assert_close(entropy, wanted["entropy"], rtol=1e-5, atol=1e-5)
    tokens = tokens_of(torch.zeros(*wanted["entropy"].shape, 1), attention=attention[:, None])
    found = importance(tokens, threshold) + weight * entropy.softmax(dim=1)
    torch.testing.assert_close(found, wanted["importance"], rtol=1e-5, atol=1e-7)


def test_golden_recycling() -> None:
    given, wanted = golden("vflowopt", "recycle_r0.3_m4")
    scores, features = given["importance"][None], given["features"][None]
    place = torch.arange(729)
    thumbnail = place // 27 // 4 * 7 + place % 27 // 4
    place = torch.arange(8 * 11)
    local = place // 11 // 4 * 3 + place % 11 // 4
    cell = torch.cat([thumbnail, local + 49])  # two grids, one budget
    cells = cell == torch.arange(49 + 6)[:, None]
    dropped = torch.tensor([round(817 * (1 - 0.3)) + 817 // 16])
    tokens = tokens_of(features)
    token_map, lengths = recycle(tokens, scores, cells, dropped)
    assert lengths.tolist() == [249]
    found = merge(tokens, token_map, 249, scores)
    torch.testing.assert_close(found.features[0], wanted["features"], rtol=1e-5, atol=1e-5)
    best = [scores[0][token_map[0] == row].argmax() for row in range(249)]
    kept = [torch.nonzero(token_map[0] == row)[at, 0] for row, at in enumerate(best)]
    assert torch.equal(torch.stack(kept), torch.nonzero(wanted["keep_mask"]).flatten())


@pytest.mark.parametrize("threshold", [0.0, 1.0, 7.0])  # nobody receives 7 times the mean
@pytest.mark.parametrize("seed", range(8))
def test_the_rule(seed: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    attention = random.random((2, 12, 12)) ** 3
    x = random.normal(size=(12, 3))
    mean = attention.mean(axis=0)
    received = [sum(mean[q, n] for q in range(12)) / 12 for n in range(12)]
    asked = [q for q in range(12) if received[q] > threshold * sum(received) / 12] or range(12)
    scores = [sum(mean[q, n] for q in asked) / len(asked) for n in range(12)]
    low = sorted(range(12), key=lambda n: scores[n])[: round(12 * 0.5) + 12 // 4]
    groups: dict[tuple[int, int], list[int]] = {}
    for n in sorted(low):  # cells of 2 x 2 in 4 rows of 3
        groups.setdefault((n // 3 // 2, n % 3 // 2), []).append(n)
    rows = {n: [n] for n in range(12) if n not in low}
    for group in groups.values():
        rows[max(group, key=lambda n: scores[n])] = group
    op = reducer("vflowopt", 12, keep=0.5, cell=2, threshold=threshold, grid_width=3)
    found = op.reduce(
        tokens_of(
            torch.from_numpy(x)[None].float(),
            attention=torch.from_numpy(attention)[None, None].float(),
        )
    )
    assert found.lengths is not None
    assert found.lengths.tolist() == [len(rows)]
    for row, place in enumerate(sorted(rows)):
        members = rows[place]
        assert torch.nonzero(found.token_map[0] == row).flatten().tolist() == members
        weights = np.array([scores[n] for n in members])
        wanted = (x[members] * weights[:, None]).sum(axis=0) / weights.sum()
        np.testing.assert_allclose(found.features[0, row].numpy(), wanted, atol=1e-5)


def test_entropy_decides_where_attention_does_not() -> None:
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    images[0, 4:6, 2:4, 0] = torch.tensor([[0, 90], [180, 250]], dtype=torch.uint8)  # token 9
    images[1, 0:2, 6:8] = 200
    images[1, 0, 6] = 50  # token 3
    extra = {"image": FieldSpec("uint8", (8, 8, 3))}
    op = reducer("vflowopt", 16, keep=2, entropy_weight=1.0, extra=extra)
    batch = {
        "features": torch.randn(2, 16, 8),
        "attention": torch.full((2, 1, 2, 16, 16), 1 / 16),
        "image": images,
    }
    out = op(batch)
    for row, token in enumerate((9, 3)):
        alone = int(out["token_map"][row][token])
        assert out["sizes"][row][alone] == 1
        assert torch.equal(
            torch.as_tensor(out["features"][row][alone]), batch["features"][row, token]
        )


@pytest.mark.parametrize("crops", [(2,), (None,)])
def test_every_crop_has_its_picture(crops: tuple[int | None, ...]) -> None:
    extra = {"image": FieldSpec("uint8", (*crops, 13, 12, 3))}
    op = reducer("vflowopt", 36, entropy_weight=0.5, crops=crops, extra=extra)
    plain = reducer(
        "vflowopt", 36, entropy_weight=0.5, extra={"image": FieldSpec("uint8", (13, 12, 3))}
    )
    flat = batch_for(plain, 4)
    wanted = plain(flat)
    if crops == (2,):
        batch = {name: column.unflatten(0, (2, 2)) for name, column in flat.items()}
    else:
        offsets = np.array([0, 2, 4])
        batch = {name: Ragged(column.numpy(), offsets) for name, column in flat.items()}
    out = op(batch)
    assert np.array_equal(out["features"].values, wanted["features"].values)
    assert np.array_equal(out["sizes"].values, wanted["sizes"].values)


def test_padding_neither_asks_nor_is_merged() -> None:
    valid = torch.ones(1, 16, dtype=torch.bool)
    valid[0, [3, 7, 11, 15]] = False  # the last column
    attention = torch.rand(1, 1, 2, 16, 16)
    given = replace(tokens_of(torch.randn(1, 16, 3), attention=attention), valid=valid)
    few = tokens_of(
        given.features[:, valid[0]], attention=attention[..., valid[0], :][..., valid[0]]
    )
    found = reducer("vflowopt", 16, keep=0.5, threshold=0.9, cell=2).reduce(given)
    alone = reducer("vflowopt", 12, keep=0.5, threshold=0.9, cell=2, grid_width=3).reduce(few)
    assert found.lengths is not None
    assert alone.lengths is not None
    assert found.lengths.tolist() == alone.lengths.tolist()
    assert torch.equal(found.token_map[valid], alone.token_map[0])


def test_no_padding_leaves_more_than_the_most() -> None:
    """Of 15 tokens one more stays than of 16, for which a whole cell is counted."""
    op = reducer("vflowopt", 16, keep=0.3, threshold=0.0)
    valid = torch.arange(16) < torch.arange(1, 17)[:, None]
    given = tokens_of(torch.randn(16, 16, 3), attention=torch.rand(16, 1, 1, 16, 16))
    found = op.reduce(replace(given, valid=valid))
    assert found.lengths is not None
    assert int(found.lengths.max()) == op.num_kept(16) == found.features.shape[1] == 5
    assert torch.equal(found.token_map.amax(dim=1) + 1, found.lengths)


def test_mistakes() -> None:
    with pytest.raises(ContractError, match="would drop 42 of 36 tokens"):
        reducer("vflowopt", 36, keep=3, cell=2)
    with pytest.raises(ContractError, match="no square patches for the 6 x 6 tokens"):
        reducer(
            "vflowopt", 36, entropy_weight=1.0, extra={"image": FieldSpec("uint8", (12, 18, 3))}
        )
