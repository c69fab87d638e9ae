"""Super tokens: the equations spelled out cell by cell."""

from typing import Any

import numpy as np
import pytest
import torch

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.reducers.unreduce import reconstruct
from tests.reducer_cases import reducer, tokens_of

FIELDS = ("reconstruction_index", "reconstruction_weights")


@pytest.mark.parametrize("variant", ["authors", "paper"])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize(("grid", "cell"), [((4, 6), (2, 2)), ((6, 8), (1, 4)), ((2, 3), (2, 1))])
def test_the_equations(
    grid: tuple[int, int], cell: tuple[int, int], iterations: int, variant: str
) -> None:
    num, (rows, columns) = grid[0] * grid[1], (grid[0] // cell[0], grid[1] // cell[1])
    x = np.random.default_rng(7).normal(size=(num, 5)) * 2
    home = {i: (i // grid[1] // cell[0], i % grid[1] // cell[1]) for i in range(num)}
    every = [(r, c) for r in range(rows) for c in range(columns)]
    centre = {at: np.mean([x[i] for i in range(num) if home[i] == at], axis=0) for at in every}
    for _ in range(iterations):
        share: dict[int, dict[tuple[int, int], float]] = {}
        for i in range(num):
            weights = {}
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    at = (home[i][0] + dr, home[i][1] + dc)
                    if at in centre:
                        weights[at] = np.exp(x[i] @ centre[at] / np.sqrt(5))
                    elif variant == "authors":
                        weights[at] = 1.0
            total = sum(weights.values())
            share[i] = {at: w / total for at, w in weights.items() if at in centre}
        centre = {
            at: sum(share[i].get(at, 0) * x[i] for i in range(num))
            / sum(share[i].get(at, 0) for i in range(num))
            for at in every
        }
    op = reducer(
        "super_tokens",
        num,
        channels=5,
        grid=grid,
        cell=cell,
        iterations=iterations,
        variant=variant,
    )
    found = op.reduce(tokens_of(torch.from_numpy(x).float()[None]))
    wanted = np.array([centre[at] for at in every])
    np.testing.assert_allclose(found.features[0].numpy(), wanted, rtol=1e-4, atol=1e-5)
    z = np.random.default_rng(8).normal(size=(len(every), 3)).astype(np.float32)
    dense = reconstruct(z, *(found.extra[name][0].numpy() for name in FIELDS))
    for i in range(num):
        main = max(every, key=lambda at: share[i].get(at, -1))
        assert found.token_map[0, i] == every.index(main)
        again = sum(weight * z[every.index(at)] for at, weight in share[i].items())
        np.testing.assert_allclose(dense[i], again, rtol=1e-4, atol=1e-5)


def test_the_main_cell_is_inside_even_where_all_shares_are_lost() -> None:
    x = torch.ones(1, 16, 4) * 100
    x[:, ::2] *= -1  # inner products with the means are far below the zeros outside
    found = reducer("super_tokens", 16, cell=(4, 1)).reduce(tokens_of(x))
    assert found.features.isfinite().all()
    assert found.token_map.min() >= 0
    assert found.token_map.max() < 4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cell": (4, 2)}, r"cell=\[4, 2\] does not divide a grid of \[6, 6\]"),
        (
            {"extra": {"token_mask": FieldSpec("bool", (36,))}},
            "token_mask says that some tokens are padding",
        ),
    ],
)
def test_grids_that_do_not_fit(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ContractError, match=match):
        reducer("super_tokens", 36, **options)
