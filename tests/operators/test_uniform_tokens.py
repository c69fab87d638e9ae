"""Uniform tokens: middles of equal parts, in a line and in a grid."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from operators.base import FieldSpec
from operators.errors import ContractError
from tests.reducer_cases import reducer, tokens_of


def index_of(num: int, **options: Any) -> list[int]:
    found = reducer("uniform_tokens", num, **options).reduce(tokens_of(torch.zeros(1, num, 1)))
    assert found.index is not None
    return [int(place) for place in found.index[0]]


@pytest.mark.parametrize(("num", "keep"), [(1, 1), (7, 3), (10, 7), (576, 64), (9, 9)])
def test_a_line(num: int, keep: int) -> None:
    assert index_of(num, keep=keep) == [int((i + 0.5) * num / keep) for i in range(keep)]


@pytest.mark.parametrize(
    ("grid", "keep", "wanted"),
    [
        (None, 4, [7, 10, 25, 28]),
        ((4, 9), 4, [19, 21, 23, 25]),
        ((2, 18), 6, [19, 22, 25, 28, 31, 34]),
        ((12, 3), 4, [4, 13, 22, 31]),
        (None, 2, [9, 27]),
        ((4, 9), 3, [19, 22, 25]),
    ],
)
def test_a_grid(grid: tuple[int, int] | None, keep: int, wanted: list[int]) -> None:
    assert index_of(36, keep=keep, pattern="grid", grid=grid) == wanted


def test_padding_is_left_out_of_the_line() -> None:
    valid = torch.tensor([[False, True, True, False, True, True, True], [True] + [False] * 6])
    op = reducer("uniform_tokens", 7, keep=3)
    found = op.reduce(replace(tokens_of(torch.zeros(2, 7, 1)), valid=valid))
    assert found.lengths is not None
    assert found.index is not None
    assert found.lengths.tolist() == [3, 1]
    assert found.index[0].tolist() == [1, 4, 6]
    assert found.index[1, 0] == 0


def test_budgets_that_are_no_grid() -> None:
    with pytest.raises(ContractError, match=r"7 tokens are no grid within \[6, 6\]"):
        reducer("uniform_tokens", 36, keep=7, pattern="grid")


def test_a_grid_after_another_reducer() -> None:
    extra = {"token_map": FieldSpec("int16", (64,)), "sizes": FieldSpec("int16", (36,))}
    with pytest.raises(ContractError, match="raster order"):
        reducer("uniform_tokens", 36, keep=9, pattern="grid", extra=extra)
    assert reducer("uniform_tokens", 36, keep=9, extra=extra).num_kept(36) == 9
