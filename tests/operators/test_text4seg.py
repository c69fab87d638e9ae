"""text4seg: the contract, a loop over cells, both directions, resizing, frozen text, mistakes."""

from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.base import FieldSpec
from operators.errors import ContractError, RowErrors, SampleError
from operators.testing import assert_operator_contract
from operators.text.text4seg import Text4Seg, Text4SegConfig

LABELS = ("others", "cat", "the dog on the left", "*")


def operator(**settings: Any) -> Text4Seg:
    return Text4Seg(Text4SegConfig.model_validate({"labels": LABELS, **settings}))


def masks(num: int, height: int, width: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, random.integers(1, 5), (num, height, width)).astype(np.uint8)


def runs(labels: list[str]) -> list[str]:
    return [f"{label} *{len(list(same))}" for label, same in groupby(labels)]


def slow(mask: np.ndarray, form: str) -> str:
    rows = [[LABELS[value] for value in row] for row in mask.tolist()]
    cells = [label for row in rows for label in row]
    if form == "cells":
        return "| ".join(cells) + "\n"
    if form == "image_runs":
        return "| ".join(runs(cells)) + "\n"
    return "\n ".join("| ".join(runs(row)) for row in rows) + "\n"


@settings(max_examples=80, deadline=None)
@given(
    num=st.integers(1, 3),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    seed=st.integers(0, 99),
    form=st.sampled_from(["row_runs", "image_runs", "cells"]),
    tags=st.booleans(),
)
def test_text_is_what_a_loop_writes_and_gives_the_mask_back(
    num: int, height: int, width: int, seed: int, form: str, tags: bool
) -> None:
    op = operator(grid=None, form=form, tags=tags)
    op.bind({"mask": FieldSpec("uint8", (height, width))})
    batch = {"mask": masks(num, height, width, seed)}
    out = assert_operator_contract(op, batch)
    ends = ("<seg>", "</seg>") if tags else ("", "")
    want = [f"{ends[0]}{slow(mask, form)}{ends[1]}" for mask in batch["mask"]]
    assert out["text"].to_pylist() == want
    back = op.decode(out)["mask"]
    assert back.dtype == np.uint8
    assert np.array_equal(back, batch["mask"])


@pytest.mark.parametrize("form", ["row_runs", "image_runs"])
def test_the_older_separators_are_read_too(form: str) -> None:
    op = operator(grid=4, separators="mapillary", form=form)
    mask = masks(3, 4, 4, 1)
    assert np.array_equal(op.decode(op({"mask": mask}))["mask"], mask)


def test_text_is_frozen() -> None:
    """Published shards hold these texts: other ones need a new version."""
    mask = np.array([[[0, 1, 1, 1], [1, 1, 0, 2]]], np.uint16)
    assert operator(grid=None)({"mask": mask})["text"].to_pylist() == [
        "others *1| cat *3\n cat *2| others *1| the dog on the left *1\n"
    ]
    assert operator(grid=2, tags=True)({"mask": mask})["text"].to_pylist() == [
        "<seg>cat *2\n cat *1| the dog on the left *1\n</seg>"
    ]


@pytest.mark.parametrize(("size", "side"), [(8, 4), (9, 3), (5, 2), (3, 7), (16, 16)])
def test_resizing_takes_the_pixel_in_the_middle_as_pillow_does(size: int, side: int) -> None:
    from PIL import Image

    mask = masks(1, size, size, 3)
    want = np.asarray(Image.fromarray(mask[0]).resize((side, side), Image.Resampling.NEAREST))
    op = operator(grid=side)
    assert np.array_equal(op.decode(op({"mask": mask}))["mask"][0], want)


def test_numbers_by_appearance_make_a_full_mask_background() -> None:
    op = operator(grid=2, numbering="appearance")
    texts = pa.array(["cat *2\n cat *2\n", "zebra *1| others *1\n cat *2\n"], pa.large_string())
    assert op.decode({"text": texts})["mask"].tolist() == [[[0, 0], [0, 0]], [[1, 0], [2, 2]]]


def test_a_value_without_a_label_is_named_and_the_others_are_written() -> None:
    mask = np.array([[[0]], [[7]], [[1]]], np.uint8)
    with pytest.raises(RowErrors) as caught:
        operator(grid=1)({"mask": mask})
    assert str(caught.value.errors[1]) == (
        "text4seg: the mask holds 7, but there are 4 labels, for 0 to 3; name all values in "
        "`labels`"
    )
    assert caught.value.good["text"].to_pylist() == ["others *1\n", "cat *1\n"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat *1\n", "row 0 has 1 cells, the grid has 4"),
        ("cat 4", "row 0: 'cat 4' is not a label, ' \\*' and a count"),
        ("cat *x", "row 0: invalid literal"),
        ("cow *4", r"row 0 names \['cow'\], which are not among the labels"),
    ],
)
def test_malformed_text_is_named(text: str, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        operator(grid=2).decode({"text": pa.array([text], pa.large_string())})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("a|b",), r"the label 'a\|b' holds '\|'"),
        (("a *b",), r"holds ' \*'"),
        (("a\nb",), r"holds '\\n'"),
        (("",), "is empty or has spaces at its ends"),
        ((" a",), "is empty or has spaces at its ends"),
        (("a", "a"), "some stand twice"),
        ((), "at least 1 item"),
    ],
)
def test_labels_that_could_not_be_read_back_are_refused(
    labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        operator(labels=labels)


def test_decode_must_know_the_sides() -> None:
    with pytest.raises(ContractError, match="does not know the sides of the masks"):
        operator(grid=None).decode({"text": pa.array(["cat *4"], pa.large_string())})
