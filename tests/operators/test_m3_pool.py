"""Matryoshka pooling: the authors' features at every scale, and how a reader finds one."""

from typing import Any

import numpy as np
import pytest
import torch

from operators.base import FieldSpec
from operators.errors import ContractError
from tests.reducer_cases import golden, reducer, tokens_of


@pytest.mark.parametrize(
    ("file", "num", "scales"),
    [("pool24", 576, (1, 9, 36, 144)), ("pool10_nondivisible", 100, (1, 4, 9, 25))],
)
def test_golden(file: str, num: int, scales: tuple[int, ...]) -> None:
    given, wanted = golden("m3_pool", file)
    op = reducer("m3_pool", num, channels=16, scales=scales)
    found = op.reduce(tokens_of(given["x"]))
    layout: Any = op.metadata()["layout"]
    assert layout["scales"] == [int(scale**0.5) for scale in scales]
    first = 0
    for scale in scales:
        rows = found.features[:, first : first + scale]
        torch.testing.assert_close(rows, wanted[f"scale{scale}"], rtol=1e-5, atol=1e-5)
        alone = reducer("m3_pool", num, channels=16, scales=(scale,)).reduce(tokens_of(given["x"]))
        torch.testing.assert_close(alone.features, rows)
        first += scale
    assert first == found.features.shape[1]


def test_map_and_sizes() -> None:
    op = reducer("m3_pool", 25, scales=(1, 4))
    out = op({"features": torch.ones(1, 25, 8)})
    squares = [[1, 1, 2, 2, -1], [1, 1, 2, 2, -1], [3, 3, 4, 4, -1], [3, 3, 4, 4, -1], [-1] * 5]
    assert out["token_map"].reshape(5, 5).tolist() == squares  # the finest scale
    assert out["sizes"].tolist() == [[25, 4, 4, 4, 4]]


def test_padding_is_left_out_of_averages() -> None:
    mask = {"token_mask": FieldSpec("bool", (16,))}
    op = reducer("m3_pool", 16, channels=1, scales=(4,), extra=mask)
    features = torch.arange(16.0).reshape(1, 16, 1)
    is_there = torch.ones(1, 16, dtype=torch.bool)
    is_there[0, [2, 3, 6, 7, 13]] = False
    out = op({"features": features, "token_mask": is_there})
    wanted = [[2.5], [(8 + 9 + 12) / 3], [12.5]]
    np.testing.assert_allclose(out["features"][0], wanted, rtol=1e-6)
    assert out["sizes"][0].tolist() == [4, 3, 4]
    assert out["token_map"].reshape(4, 4).tolist() == [
        [0, 0, -1, -1], [0, 0, -1, -1], [1, 1, 2, 2], [1, -1, 2, 2]
    ]  # fmt: skip
    with pytest.raises(ContractError, match="some tokens are padding"):
        reducer("m3_pool", 16, scales=(1, 4), extra=mask)


def test_scales_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ContractError, match="no square"):
        reducer("m3_pool", 15, scales=(1,))
    with pytest.raises(ContractError, match="scale 10 of 100 tokens averages 3 x 3 and gives 9"):
        reducer("m3_pool", 100, scales=(10,))
    with pytest.raises(ContractError, match="more than there are") as caught:
        reducer("m3_pool", 100, scales=(101,))
    assert caught.value.hint == "choose among [1, 4, 9, 25, 100]"
    with pytest.raises(ValueError, match="do not rise"):
        reducer("m3_pool", 100, scales=(4, 1))
