"""HiRED: the authors' masks, and budgets spelled out crop by crop."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from operators.base import FieldSpec, Ragged
from operators.errors import ContractError, RowErrors
from tests.reducer_cases import golden, reducer


def ragged(values: np.ndarray, counts: list[int]) -> Ragged:
    return Ragged(values, np.concatenate(([0], np.cumsum(counts))))


@pytest.mark.parametrize("file", ["2x2_b0.2", "3x1_and_1x2_b0.4"])
def test_golden(file: str) -> None:
    given, wanted = golden("hired", file)
    path = Path(__file__).parents[1] / "golden" / "reducers" / "hired" / f"{file}.safetensors"
    with safe_open(path, "np") as opened:
        params = json.loads(opened.metadata()["params"])
    attention = torch.stack([given["top_cls_attn"], given["bottom_cls_attn"]], dim=1)
    rows, num = len(attention), attention.shape[-1]
    op = reducer(
        "hired",
        num,
        crops=(None,),
        num_layers=2,
        keep=params["token_budget_rate"],
        alpha=params["alpha"],
    )
    counts = params["num_patches"]
    features = np.random.default_rng(0).normal(size=(rows, num, 8)).astype(np.float32)
    out = op(
        {
            "features": ragged(features, counts),
            "cls_attention": ragged(attention.numpy(), counts),
        }
    )
    mask = wanted["mask"].bool().numpy()
    assert np.array_equal(out["token_map"].values >= 0, mask)
    firsts = np.concatenate(([0], np.cumsum(counts)))
    for image in range(len(counts)):
        kept = mask[firsts[image] : firsts[image + 1]]
        rows_of_image = features[firsts[image] : firsts[image + 1]]
        assert np.array_equal(out["features"][image], rows_of_image[kept])  # raster order


def brute_force(
    attention: np.ndarray, grid: tuple[int, int], keep: float, alpha: float, variant: str
) -> list[list[int]]:
    """Tokens that each crop of one image keeps, from [V, L, H, N]."""
    crops, _, _, num = attention.shape
    early, late = attention[:, 0].sum(axis=1), attention[:, -1].sum(axis=1)

    def best(scores: np.ndarray, k: int) -> list[int]:
        return sorted(sorted(range(num), key=lambda n: (-scores[n], n))[:k])

    total = int(crops * num * keep)
    for_thumbnail = min(int(total * alpha), num)
    rest = min(total - for_thumbnail, (crops - 1) * num)
    kept = [best(late[0], for_thumbnail)]
    side = int(num**0.5)
    strong = best(early[0], int(num * (1 - alpha)))
    for crop in range(crops - 1):
        if variant == "authors":
            run = num // (crops - 1)
            weight = len([n for n in strong if n // run == crop]) / len(strong)
        else:
            height, width = side // grid[0], side // grid[1]
            top, left = crop // grid[1] * height, crop % grid[1] * width
            cells = [(top + y) * side + left + x for y in range(height) for x in range(width)]
            weight = early[0][cells].sum() / early[0].sum()
        kept.append(best(late[1 + crop], min(int(rest * weight + 1e-5), num)))
    return kept


@pytest.mark.parametrize("variant", ["authors", "paper"])
@pytest.mark.parametrize(("grid", "num"), [((2, 2), 16), ((1, 3), 9), ((3, 1), 36)])
def test_the_definition(variant: str, grid: tuple[int, int], num: int) -> None:
    counts = [1 + grid[0] * grid[1], 1, 1 + grid[0] * grid[1]]
    random = np.random.default_rng(num)
    attention = random.random((sum(counts), 2, 3, num)).astype(np.float32)
    features = random.normal(size=(sum(counts), num, 8)).astype(np.float32)
    op = reducer("hired", num, crops=(None,), num_layers=2, keep=0.4, alpha=0.25, variant=variant)
    batch = {"features": ragged(features, counts), "cls_attention": ragged(attention, counts)}
    if variant == "paper":
        batch["crop_grid"] = torch.tensor([[*grid, 90, 90], [1, 1, 90, 90], [*grid, 90, 90]])
    out = op(batch)
    firsts = np.concatenate(([0], np.cumsum(counts)))
    for image in range(3):
        start = firsts[image]
        wanted = brute_force(attention[start : firsts[image + 1]], grid, 0.4, 0.25, variant)
        for crop, kept in enumerate(wanted):
            token_map = out["token_map"].values[start + crop]
            assert np.flatnonzero(token_map >= 0).tolist() == kept
            assert np.array_equal(
                out["features"][image][token_map[kept]], features[start + crop, kept]
            )


def test_crops_that_are_not_the_grid_are_refused() -> None:
    op = reducer("hired", 16, crops=(3,), num_layers=2, variant="paper")
    batch = {
        "features": torch.ones(2, 3, 16, 8),
        "cls_attention": torch.ones(2, 3, 2, 2, 16),
        "crop_grid": torch.tensor([[2, 1, 9, 9], [2, 2, 9, 9]]),
    }
    with pytest.raises(RowErrors) as caught:
        op(batch)
    assert list(caught.value.errors) == [1]
    assert "to be the 2 crops after the thumbnail" in str(caught.value.errors[1])
    assert len(caught.value.good["sizes"]) == 1


def test_one_layer_or_one_crop_is_not_enough() -> None:
    with pytest.raises(ContractError, match="an early and a late one"):
        reducer("hired", 16, crops=(3,))
    with pytest.raises(ContractError, match="expected several of each image"):
        reducer("hired", 16, num_layers=2)


def test_padding_is_never_kept() -> None:
    mask = {"token_mask": FieldSpec("bool", (None, 16))}
    op = reducer("hired", 16, crops=(None,), num_layers=2, keep=1.0, extra=mask)
    is_there = np.arange(48).reshape(3, 16) % 5 > 0
    out = op(
        {
            "features": ragged(np.ones((3, 16, 8), np.float32), [3]),
            "cls_attention": ragged(np.ones((3, 2, 2, 16), np.float32), [3]),
            "token_mask": ragged(is_there, [3]),
        }
    )
    assert (out["token_map"].values[~is_there] == -1).all()
    assert (out["token_map"].values[is_there] >= 0).any()
