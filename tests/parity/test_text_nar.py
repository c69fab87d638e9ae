"""grid_order diagonals against the authors' code of NAR: what is predicted when, what is seen."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from operators.sequence.orders import diagonals

GOLDEN = Path(__file__).parents[1] / "golden" / "text" / "nar" / "order.json"
CASES: list[dict[str, Any]] = json.loads(GOLDEN.read_text())
DECODED = [case for case in CASES if "steps" in case]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["grid"]))
def test_positions_see_their_own_group_and_those_before(case: dict[str, Any]) -> None:
    order = diagonals(case["grid"], case["grid"])
    group_of_place = np.repeat(np.arange(len(order.group_sizes)), order.group_sizes)
    group = group_of_place[order.inverse]
    sees = group[:, None] >= group[None, :]
    assert ["".join("01"[int(x)] for x in row) for row in sees] == case["mask_rows"]


@pytest.mark.parametrize("case", DECODED, ids=lambda case: str(case["grid"]))
def test_generation_is_in_the_order(case: dict[str, Any]) -> None:
    order = diagonals(case["grid"], case["grid"])
    # The stand-in model numbers tokens as it makes them; here they stand in raster order.
    assert order.inverse[1:].tolist() == case["output_without_first"]
    assert list(order.group_sizes[1:]) == [step["accept"] for step in case["steps"]]
    ends = np.cumsum([0, *order.group_sizes])
    cells = [order.permutation[start:stop] for start, stop in pairwise(ends)]
    # A step reads the group before it; the grid's first position is 1.
    assert [(c + 1).tolist() for c in cells[:-1]] == [s["input_pos"] for s in case["steps"]]
