"""interleave: a slow oracle for markers and for parts, masks, every document that does not fit."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import Column, FieldSpec, Ragged
from operators.errors import ContractError, RowErrors
from operators.sequence.interleave import Interleave, InterleaveConfig
from operators.testing import assert_operator_contract
from tests.ragged_rows import Rows, ragged, rows_of

BOS, EOS, BOI, EOI = range(4)
TEXT, IMAGE = 4, 54  # where the ranges begin
MARKER = 49
OPTIONS: dict[str, Any] = {
    "vocabulary": [{"special": ["<bos>", "<eos>", "<boi>", "<eoi>"]}, {"text": 50}, {"image": 20}],
    "text": {"text": "tokens"},
    "images": {"image": "codes"},
    "begin": ["<bos>"],
    "end": ["<eos>"],
    "before": ["<boi>"],
    "after": ["<eoi>"],
}
PARTS = ("text", "images", "begin", "end", "before", "after")

Document = tuple[list[Any], ...]


def operator(**options: Any) -> Interleave:
    return Interleave(InterleaveConfig.model_validate({**OPTIONS, **options}))


def images_of(documents: list[Rows], length: int) -> Ragged:
    """Return the images of documents: ragged, ``length`` ids each."""
    offsets = np.cumsum([0, *map(len, documents)])
    values = np.array([image for images in documents for image in images], np.uint8)
    return Ragged(values.reshape(-1, length), offsets)


def join_slowly(
    parts: Rows, images: Rows, *, first_is_text: bool, learns: set[str]
) -> tuple[list[int], list[int]]:
    texts = [[("text", TEXT + i) for i in part] for part in parts]
    pictures = [
        [("before", BOI), *(("images", IMAGE + i) for i in image), ("after", EOI)]
        for image in images
    ]
    first, second = (texts, pictures) if first_is_text else (pictures, texts)
    middle = []
    for i in range(max(len(first), len(second))):
        middle += [*first[i : i + 1], *second[i : i + 1]]
    whole = [("begin", BOS), *(pair for run in middle for pair in run), ("end", EOS)]
    return [i for _, i in whole], [int(kind in learns) for kind, _ in whole]


@st.composite
def documents(draw: st.DrawFn, *, kind: str) -> tuple[list[Rows], list[Rows]]:
    """Draw the parts and the images of some documents."""
    part = st.lists(st.integers(0, MARKER - 1), max_size=4)
    image = st.lists(st.integers(0, 19), min_size=3, max_size=3)
    parts, images = [], []
    for _ in range(draw(st.integers(1, 4))):
        num = draw(st.integers(0, 3))
        one_more = 1 if kind == "marker" else draw(st.integers(0, 1))
        num_parts = num if kind == "image" else num + one_more
        num_images = num + one_more if kind == "image" else num
        parts.append(draw(st.lists(part, min_size=num_parts, max_size=num_parts)))
        images.append(draw(st.lists(image, min_size=num_images, max_size=num_images)))
    return parts, images


def check(
    op: Interleave,
    parts: list[Rows],
    images: list[Rows],
    batch: dict[str, Column],
    learns: set[str],
) -> None:
    out = assert_operator_contract(op, batch)
    want = [
        join_slowly(some, pictures, first_is_text=op.config.first_is_text, learns=learns)
        for some, pictures in zip(parts, images, strict=True)
    ]
    assert rows_of(out["sequence"]) == [ids for ids, _ in want]
    assert rows_of(out["loss_mask"]) == [mask for _, mask in want]


learnt = st.sets(st.sampled_from(PARTS), min_size=1)


@settings(max_examples=100, deadline=None)
@example(drawn=([[[], []]], [[[1, 2, 3]]]), learns={"text"})
@given(drawn=documents(kind="marker"), learns=learnt)
def test_images_stand_where_the_markers_were(
    drawn: tuple[list[Rows], list[Rows]], learns: set[str]
) -> None:
    parts, images = drawn
    tokens = [sum(([MARKER, *part] for part in some[1:]), list(some[0])) for some in parts]
    batch = {"tokens": ragged(tokens), "codes": images_of(images, 3)}
    check(operator(marker=MARKER, loss_on=sorted(learns)), parts, images, batch, learns)


@pytest.mark.parametrize("first", ["text", "image"])
def test_parts_and_images_take_turns(first: str) -> None:
    @settings(max_examples=100, deadline=None)
    @given(drawn=documents(kind=first), learns=learnt)
    def run(drawn: tuple[list[Rows], list[Rows]], learns: set[str]) -> None:
        parts, images = drawn
        batch = {
            "tokens": ragged([[i for part in some for i in part] for some in parts]),
            "codes": images_of(images, 3),
            "part_lengths": ragged([[len(part) for part in some] for some in parts], "int64"),
        }
        op = operator(alternating={"first": first}, loss_on=sorted(learns))
        check(op, parts, images, batch, learns)

    run()


def test_dense_images_are_views_or_one() -> None:
    tokens = ragged([[1, MARKER, MARKER], [MARKER, 2, MARKER]])
    views = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.uint8)
    op = operator(marker=MARKER)
    op.bind({"codes": FieldSpec("uint8", (2, 2), 20)})
    out = assert_operator_contract(op, {"tokens": tokens, "codes": views})
    boi = [BOI]
    assert rows_of(out["sequence"])[1] == [
        *(BOS, BOI, IMAGE + 5, IMAGE + 6, EOI, TEXT + 2),
        *(*boi, IMAGE + 7, IMAGE + 8, EOI, EOS),
    ]
    op = operator(marker=MARKER)
    op.bind({"codes": FieldSpec("uint8", (2,), 20)})
    one = {"tokens": ragged([[1, MARKER], [MARKER]]), "codes": views[:, 0]}
    found = rows_of(assert_operator_contract(op, one)["sequence"])
    assert found[1] == [BOS, BOI, IMAGE + 5, IMAGE + 6, EOI, EOS]


def test_texts_own_mask_is_kept() -> None:
    op = operator(marker=MARKER, loss_on=["text", "after"], text_has_mask=True)
    batch = {
        "tokens": ragged([[1, MARKER, 2, 3], [4]]),
        "codes": images_of([[[7]], []], 1),
        "text_loss_mask": ragged([[1, 1, 0, 1], [1]], "uint8"),
    }
    out = assert_operator_contract(op, batch)
    assert rows_of(out["loss_mask"]) == [[0, 1, 0, 0, 1, 0, 1, 0], [0, 1, 0]]


def test_metadata_says_what_stands_where() -> None:
    metadata = operator(marker=MARKER).metadata()
    assert metadata["marker"] == MARKER
    assert metadata["before"] == ["<boi>"]
    assert metadata["size"] == 74
    assert json.loads(json.dumps(metadata)) == metadata


def test_images_and_places_that_do_not_fit_are_bad_rows() -> None:
    op = operator(marker=MARKER)
    batch = {
        "tokens": ragged([[MARKER], [MARKER, 1], [2], [3]]),
        "codes": images_of([[[1]], [[1], [2]], [], [[4]]], 1),
    }
    with pytest.raises(RowErrors) as caught:
        op(batch)
    expected = "expected one for each id 49 (marker) of the text"
    assert {row: str(error) for row, error in caught.value.errors.items()} == {
        1: f"interleave: 2 images for 1 markers, {expected}",
        3: f"interleave: 1 images for 0 markers, {expected}",
    }
    assert rows_of(caught.value.good["sequence"]) == [[0, 2, 55, 3, 1], [0, 6, 1]]


@pytest.mark.parametrize(
    ("first", "num_images", "message"),
    [
        ("text", 3, "3 images for 2 parts, expected as many as parts of the text, or one fewer"),
        ("text", 0, "0 images for 2 parts, expected as many as parts of the text, or one fewer"),
        ("image", 1, "1 images for 2 parts, expected as many as parts of the text, or one more"),
        ("image", 4, "4 images for 2 parts, expected as many as parts of the text, or one more"),
    ],
)
def test_turns_that_do_not_come_out_even_are_bad_rows(
    first: str, num_images: int, message: str
) -> None:
    batch = {
        "tokens": ragged([[1, 2]]),
        "codes": images_of([[[1]] * num_images], 1),
        "part_lengths": ragged([[1, 1]], "int64"),
    }
    with pytest.raises(RowErrors) as caught:
        operator(alternating={"first": first})(batch)
    assert str(caught.value.errors[0]) == f"interleave: {message}"


def test_part_lengths_that_are_not_the_texts_are_bad_rows() -> None:
    lengths = [[2], [1], [4], [3, -1], [0, 2]]
    batch = {
        "tokens": ragged([[1, 2]] * 5),
        "codes": images_of([[[1]]] * 5, 1),
        "part_lengths": ragged(lengths, "int64"),
    }
    with pytest.raises(RowErrors) as caught:
        operator(alternating={"first": "text"})(batch)
    assert {row: str(error) for row, error in caught.value.errors.items()} == {
        row: f"interleave: part_lengths {lengths[row]} are not the lengths of the parts of a text "
        "of 2 ids"
        for row in (1, 2, 3)
    }
    assert len(caught.value.good["sequence"]) == 2


def test_ids_out_of_range_and_masks_of_other_lengths_are_bad_rows() -> None:
    op = operator(marker=MARKER, check="rows", loss_on=["text"], text_has_mask=True)
    assert op.inputs["tokens"].accepts(FieldSpec("int64", (None,)))
    batch = {
        "tokens": ragged([[1], [-1], [50], [2], [3]], "int64"),
        "codes": images_of([[], [], [], [], []], 1),
        "text_loss_mask": ragged([[1], [1], [1], [1, 1], [0]], "uint8"),
    }
    with pytest.raises(RowErrors) as caught:
        op(batch)
    assert {row: str(error) for row, error in caught.value.errors.items()} == {
        1: "interleave: field 'tokens' holds id -1, but 'text' has 50 ids",
        2: "interleave: field 'tokens' holds id 50, but 'text' has 50 ids",
        3: "interleave: text_loss_mask has 2 places for 1 ids of text",
    }
    assert rows_of(caught.value.good["loss_mask"]) == [[0, 1, 0], [0, 0, 0]]


def test_vocabulary_of_another_size_is_refused_by_the_spec() -> None:
    op = operator(marker=MARKER)
    assert not op.inputs["tokens"].accepts(FieldSpec("int64", (None,)))
    assert not op.inputs["codes"].accepts(FieldSpec("uint16", (None, 3), 21))
    assert op.inputs["codes"].accepts(FieldSpec("uint16", (None, 3), 20))


def test_images_of_several_streams_are_refused() -> None:
    with pytest.raises(ContractError, match="images 'codes' are uint16"):
        operator(marker=MARKER).bind({"codes": FieldSpec("uint16", (2, 4, 3), 20)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "marker=None and alternating=None: give one of them"),
        ({"marker": 1, "alternating": {"first": "text"}}, "give one of them"),
        ({"marker": 50}, "marker=50 is no id of 'text', which has 50"),
        ({"marker": 1, "text": {"speech": "a"}}, "text: unknown modality 'speech' of field 'a'"),
        ({"marker": 1, "images": {"images": "a"}}, "images: unknown modality 'images'"),
        ({"marker": 1, "after": ["<end>"]}, "after: special token '<end>' is not declared"),
        ({"marker": 1, "text_has_mask": True}, "text_has_mask needs `text` in loss_on"),
        ({"marker": 1, "loss_on": ["text", "audio"]}, "Input should be 'text'"),
    ],
)
def test_template_that_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        operator(**options)
