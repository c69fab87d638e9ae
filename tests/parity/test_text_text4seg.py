"""text4seg against the authors' code, in both directions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from operators.text.algorithms.run_length import (
    RRLE,
    decode_cells,
    decode_rows,
    decode_runs,
    number_labels,
)
from operators.text.text4seg import Text4Seg, Text4SegConfig

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/text/text4seg/rrle.json").read_text())
MASKS = GOLDEN["masks"]


def labels_of(grid: list[list[str]]) -> tuple[str, ...]:
    return tuple(sorted({label for row in grid for label in row}))


def encoded(grid: list[list[str]], **settings: Any) -> str:
    labels = labels_of(grid)
    op = Text4Seg(Text4SegConfig(labels=labels, grid=None, **settings))
    mask = np.array([[[labels.index(label) for label in row] for row in grid]], np.uint8)
    text: str = op({"mask": mask})["text"].to_pylist()[0]
    return text


def result(decode: Callable[[], list[str]]) -> str | None:
    try:
        return "|".join(decode())
    except ValueError:
        return None


@pytest.mark.parametrize("case", MASKS, ids=lambda case: f"{len(case['grid'])} rows")
def test_masks(case: dict[str, Any]) -> None:
    assert encoded(case["grid"]) == case["rrle"]
    assert encoded(case["grid"], separators="mapillary") == case["mapillary_style"]
    labels = decode_rows(case["rrle"], RRLE)
    assert "|".join(labels) == case["decoded"]
    assert number_labels(labels) == case["labels"]
    over_rows, cells = case["decode_mask_s"], case["decode_mask_l"]
    assert result(lambda: decode_runs(case["rrle"], RRLE)) == (
        over_rows if isinstance(over_rows, str) else None
    )
    assert result(lambda: decode_cells(case["rrle"], RRLE)) == cells


@pytest.mark.parametrize("case", GOLDEN["decode"], ids=lambda case: repr(case["text"]))
def test_strings_and_their_mistakes(case: dict[str, Any]) -> None:
    assert result(lambda: decode_rows(case["text"], RRLE)) == case.get("decoded")


def test_there_is_at_least_one_of_each() -> None:
    assert len(MASKS) == 5
    assert {"error", "decoded"} <= {key for case in GOLDEN["decode"] for key in case}
