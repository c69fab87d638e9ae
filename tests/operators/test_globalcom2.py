"""GlobalCom2: the authors' indices and shares, and the method spelled out crop by crop."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from operators.base import Ragged
from operators.errors import ContractError, RowErrors
from tests.reducer_cases import golden, reducer


def ragged(values: np.ndarray, counts: list[int]) -> Ragged:
    return Ragged(values, np.concatenate(([0], np.cumsum(counts))))


@pytest.mark.parametrize("file", ["2x2_portrait", "3x1_wide"])
def test_golden(file: str) -> None:
    given, wanted = golden("globalcom2", file)
    path = Path(__file__).parents[1] / "golden" / "reducers" / "globalcom2" / f"{file}.safetensors"
    with safe_open(path, "np") as opened:
        params = json.loads(opened.metadata()["params"])
    scores = torch.cat([given["thumb_scores"][None], given["crop_scores"]]).numpy()
    features = torch.cat([given["thumb_features"][None], given["crop_features"]]).numpy()
    crops, num = scores.shape
    op = reducer("globalcom2", num, channels=16, crops=(None,), keep=params["retention"])
    width, height = params["original_size_w_h"]
    grid = [params["num_patch_height"], params["num_patch_width"], height, width]
    out = op(
        {
            "features": ragged(features, [crops]),
            "cls_logits": ragged(scores[:, None, None], [crops]),
            "crop_grid": torch.tensor([grid], dtype=torch.int32),
        }
    )
    token_map, found = out["token_map"].values, out["features"][0]
    assert np.argsort(token_map[0])[-36:].tolist() == wanted["thumb_keep_desc"].tolist()
    assert np.array_equal(found[:36], wanted["thumb_features"].numpy())
    first = 36
    for crop in range(crops - 1):
        kept = wanted[f"crop{crop}.features_desc"].numpy()
        valid = wanted[f"crop{crop}.keep_in_valid"]
        places = np.flatnonzero(token_map[1 + crop] >= 0)
        assert len(places) == len(valid)
        rows = found[first : first + len(kept)]
        assert np.array_equal(rows, features[1 + crop, places])  # in raster order
        assert sorted(map(tuple, rows)) == sorted(map(tuple, kept))
        first += len(kept)
    assert first == len(found)


def area(grid: tuple[int, int], size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """First row and column of the picture on the crops, and its height and width."""
    height, width = grid[0] * side, grid[1] * side
    if size[1] / size[0] > width / height:
        above = (height - int(size[0] * width / size[1])) // 2
        return above, 0, height - 2 * above, width
    left = (width - int(size[1] * height / size[0])) // 2
    return 0, left, height, width - 2 * left


def brute_force(
    scores: np.ndarray, grid: tuple[int, int], size: tuple[int, int], keep: float, warmth: float
) -> list[list[int]]:
    """Tokens that each crop of one image keeps, the thumbnail's by score."""
    num, side = scores.shape[1], int(scores.shape[1] ** 0.5)
    kept = [sorted(range(num), key=lambda n: (-scores[0, n], n))[: int(num * keep)]]
    high, wide = side // grid[0], side // grid[1]
    mass = []
    for crop in range(grid[0] * grid[1]):
        cell = [
            scores[0, y * side + x]
            for y in range(side)
            for x in range(side)
            if min(y // high, grid[0] - 1) * grid[1] + min(x // wide, grid[1] - 1) == crop
        ]
        mass.append(float(np.sum(cell)))
    weights = np.exp((np.array(mass) - max(mass)) / warmth)
    weights /= weights.sum() + 1e-8
    shares = np.minimum(keep * (1 + weights - weights.mean()), 1)
    above, left, height, width = area(grid, size, side)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(scores[0].reshape(1, 1, side, side)),
        size=(height, width),
        mode="bilinear",
        align_corners=False,
    )[0, 0].numpy()
    for crop, share in enumerate(shares):
        there, guide = [], []
        for n in range(num):
            y = crop // grid[1] * side + n // side - above
            x = crop % grid[1] * side + n % side - left
            if 0 <= y < height and 0 <= x < width:
                there.append(n)
                guide.append(large[y, x])
        own = scores[1 + crop, there]
        both = own / np.linalg.norm(own) + np.array(guide) / np.linalg.norm(guide)
        best = sorted(range(len(there)), key=lambda i: (-both[i], there[i]))
        kept.append(sorted(there[i] for i in best[: int(len(there) * share)]))
    return kept


@pytest.mark.parametrize(
    ("grid", "size"), [((2, 2), (70, 50)), ((1, 3), (28, 90)), ((3, 2), (80, 80)), ((2, 1), (9, 4))]
)
@pytest.mark.parametrize("variant", ["authors", "paper"])
def test_the_definition(grid: tuple[int, int], size: tuple[int, int], variant: str) -> None:
    crops, num = 1 + grid[0] * grid[1], 36
    counts = [crops, 1, crops]
    random = np.random.default_rng(crops)
    scores = random.random((sum(counts), 1, 2, num)).astype(np.float32)
    features = random.normal(size=(sum(counts), num, 8)).astype(np.float32)
    op = reducer("globalcom2", num, crops=(None,), keep=0.4, temperature=2.0, variant=variant)
    grids = [[*grid, *size], [1, 1, 5, 5], [*grid, *size[::-1]]]
    out = op(
        {
            "features": ragged(features, counts),
            op.signals[0]: ragged(scores, counts),
            "crop_grid": torch.tensor(grids, dtype=torch.int32),
        }
    )
    first = 0
    for image, count in enumerate(counts):
        found = scores[first : first + count, 0].mean(axis=1)
        if count == 1:
            wanted = [sorted(range(num), key=lambda n: (-found[0, n], n))[:14]]
        else:
            shape = size if image == 0 else size[::-1]
            wanted = brute_force(found, grid, shape, 0.4, 2.0)
        row = 0
        for crop, kept in enumerate(wanted):
            token_map = out["token_map"].values[first + crop]
            assert token_map[kept].tolist() == list(range(row, row + len(kept)))
            assert np.array_equal(
                out["features"][image][row : row + len(kept)], features[first + crop, kept]
            )
            assert (token_map >= 0).sum() == len(kept)
            row += len(kept)
        first += count


def test_crops_that_are_not_the_grid_are_refused() -> None:
    op = reducer("globalcom2", 16, crops=(3,))
    batch = {
        "features": torch.ones(2, 3, 16, 8),
        "cls_logits": torch.ones(2, 3, 1, 2, 16),
        "crop_grid": torch.tensor([[0, 1, 9, 9], [2, 1, 9, 9]]),
    }
    with pytest.raises(RowErrors) as caught:
        op(batch)
    assert list(caught.value.errors) == [0]


def test_crops_are_squares() -> None:
    with pytest.raises(ContractError, match="15 tokens are no square"):
        reducer("globalcom2", 15, crops=(3,))
    with pytest.raises(ContractError, match="is none of 4 tokens"):
        reducer("globalcom2", 4, crops=(3,), keep=0.2)
