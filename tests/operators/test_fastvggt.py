"""FastVGGT: the authors' groups and features, and the parts of a scene spelled out."""

import numpy as np
import pytest
import torch

from operators.errors import ContractError
from tests.reducer_cases import golden, reducer


@pytest.mark.parametrize(
    ("file", "views", "grid", "merged", "protect"),
    [("3img_6x4_grid", 3, (4, 6), 40, 0.1), ("4img_6x6_noprot", 4, (6, 6), 60, 0.0)],
)
def test_golden(file: str, views: int, grid: tuple[int, int], merged: int, protect: float) -> None:
    given, wanted = golden("fastvggt", file)
    total, width = given["x"].shape[1:]
    op = reducer(
        "fastvggt",
        total // views,
        channels=width,
        crops=(views,),
        keep=total - merged,
        protect=protect,
        special_tokens=5,
        grid=grid,
    )
    out = op({"features": given["x"].unflatten(1, (views, -1))})
    assert torch.equal(out["token_map"].flatten(1).long(), wanted["group_of_token"])
    torch.testing.assert_close(out["features"], wanted["merged"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_the_definition(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(3 * 5, 4)).astype(np.float32)  # 1 + 2 x 2 each
    op = reducer(
        "fastvggt", 5, channels=4, crops=(3,), keep=0.7, protect=0.2, special_tokens=1,
        seed=seed, variant="paper",
    )  # fmt: skip
    out = op({"features": torch.from_numpy(x).reshape(1, 3, 5, 4)})
    cells = torch.randint(4, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    destinations = sorted([*range(5), 5, 10, 6 + cells[0], 11 + cells[1]])
    guarded = [0, 5, 10]
    sources = [n for n in range(15) if n not in destinations and n not in guarded]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    partner = {a: max(destinations, key=lambda b: (unit[a] @ unit[b], -b)) for a in sources}
    order = sorted(sources, key=lambda a: (-(unit[a] @ unit[partner[a]]), a))
    members = [[a] for a in order[4:]] + [[b] for b in destinations]
    for a in order[:4]:
        members[len(order) - 4 + destinations.index(partner[a])].append(a)
    rows = [x[group].mean(axis=0) for group in members] + [x[n] for n in guarded]
    np.testing.assert_allclose(out["features"][0], rows, rtol=1e-5, atol=1e-5)
    assert out["sizes"][0].tolist() == [len(group) for group in members] + [1, 1, 1]
    wanted = {n: row for row, group in enumerate(members) for n in group}
    wanted |= {n: len(members) + i for i, n in enumerate(guarded)}
    assert out["token_map"].flatten().tolist() == [wanted[n] for n in range(15)]


def test_destinations_are_never_merged() -> None:
    op = reducer("fastvggt", 16, crops=(3,), keep=1, protect=0.0)
    assert op.num_kept(48) == 16 + 4 + 4  # whatever keep says
    out = op({"features": torch.ones(1, 3, 16, 8)})
    assert out["token_map"][0, 0].tolist() == list(range(16))


def test_mistakes() -> None:
    with pytest.raises(ContractError, match="not several views of 0 special tokens and 3 x 5"):
        reducer("fastvggt", 16, crops=(3,), grid=(3, 5))
    with pytest.raises(ContractError, match="expected several of each image"):
        reducer("fastvggt", 16)
    with pytest.raises(ContractError, match="17 tokens are no square"):
        reducer("fastvggt", 17, crops=(3,))
