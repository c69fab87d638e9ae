"""grid_order cells against the authors' code of xAR: which positions a cell has, what it sees."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from operators.sequence.orders import cells

GOLDEN = Path(__file__).parents[1] / "golden" / "text" / "xar" / "cells.json"
CASES: list[dict[str, Any]] = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['side']}/{case['clusters']}")
def test_cells_are_the_authors(case: dict[str, Any]) -> None:
    side = case["side"]
    order = cells(side, side, side // math.isqrt(case["clusters"]))
    groups = np.split(order.permutation, np.cumsum(order.group_sizes)[:-1])
    assert [group.tolist() for group in groups] == case["cells"]
    assert np.cumsum(order.group_sizes).tolist() == case["visible_prefix_per_cell"]
