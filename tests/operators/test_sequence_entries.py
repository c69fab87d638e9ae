"""sequence: images of a sample, dropped captions, loss masks, ids that are checked row by row."""

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import Batch, FieldSpec, Ragged
from operators.errors import ContractError, RowErrors
from operators.keyed_draws import draws_of_keys
from operators.sequence.sequence import Sequence, SequenceConfig
from operators.testing import assert_operator_contract
from tests.ragged_rows import Rows, ragged, rows_of, texts

VOCABULARY = [
    {"special": ["<bos>", "<eos>", "<boi>", "<eoi>", "<null>"]},
    {"text": 300},
    {"image": 70},
]
BOS, EOS, BOI, EOI, NULL = range(5)
TEXT, IMAGE = 5, 305
CAPTION: dict[str, Any] = {"field": "caption", "modality": "text"}
CODES: dict[str, Any] = {"field": "codes", "modality": "image"}
DROPPED_SHA256 = "ab052e69364d25a3cc2a5f3fe0da7d6b307b0a5ce581165ba4d3b43b77896a60"


def operator(template: list[Any], **options: Any) -> Sequence:
    return Sequence(
        SequenceConfig.model_validate({"vocabulary": VOCABULARY, "template": template, **options})
    )


def keys(num: int) -> pa.Array:
    return texts(*(f"sample/{i}" for i in range(num)))


def images(rows: list[Rows], length: int) -> Ragged:
    values = np.array([image for row in rows for image in row], np.uint8).reshape(-1, length)
    return Ragged(values, np.cumsum([0, *map(len, rows)]))


@settings(max_examples=100, deadline=None)
@example(captions=[[]], codes=[[]], rate=1.0, wraps=True, learns={"codes"})
@given(
    captions=st.lists(st.lists(st.integers(0, 299), max_size=4), min_size=4, max_size=4),
    codes=st.lists(
        st.lists(st.lists(st.integers(0, 69), min_size=2, max_size=2), max_size=3),
        min_size=4,
        max_size=4,
    ),
    rate=st.sampled_from([0.3, 1.0]),
    wraps=st.booleans(),
    learns=st.sets(st.sampled_from(["<bos>", "caption", "codes", "<eos>"]), min_size=1),
)
def test_images_drops_and_masks_are_what_a_loop_gives(
    captions: Rows, codes: list[Rows], rate: float, wraps: bool, learns: set[str]
) -> None:
    wrapping = {"before": ["<boi>"], "after": ["<eoi>"]} if wraps else {}
    drop = {"rate": rate, "instead": ["<null>"], "seed": 3}
    template = ["<bos>", {**CAPTION, "drop": drop}, {**CODES, **wrapping}, "<eos>"]
    num = len(captions)
    is_dropped = draws_of_keys(3, "drop/caption", keys(num))[:, 0] < rate
    want, want_masks = [], []
    for row, caption in enumerate(captions):
        words = [NULL] if is_dropped[row] else [TEXT + i for i in caption]
        pictures: list[int] = []
        for image in codes[row] if row < len(codes) else []:
            ids = [IMAGE + i for i in image]
            pictures += [BOI, *ids, EOI] if wraps else ids
        parts = {"<bos>": [BOS], "caption": words, "codes": pictures, "<eos>": [EOS]}
        want.append([i for part in parts.values() for i in part])
        want_masks.append([int(name in learns) for name, part in parts.items() for _ in part])
    op = operator(template, loss_on=sorted(learns))
    op.bind({"codes": FieldSpec("uint8", (None, 2), 70), "key": FieldSpec("string")})
    codes = [*codes, *([[]] * (num - len(codes)))]
    batch = {"caption": ragged(captions), "codes": images(codes, 2), "key": keys(num)}
    out = assert_operator_contract(op, batch)
    assert rows_of(out["sequence"]) == want
    assert rows_of(out["loss_mask"]) == want_masks


def test_dense_images_stand_one_after_another() -> None:
    op = operator([{**CODES, "after": ["<eoi>"]}])
    op.bind({"codes": FieldSpec("uint8", (2, 3), 70)})
    assert op.inputs["codes"].accepts(FieldSpec("uint8", (2, 3), 70))
    codes = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    out = assert_operator_contract(op, {"codes": codes})
    ids = [IMAGE + i for i in range(6, 12)]
    assert rows_of(out["sequence"])[1] == [*ids[:3], EOI, *ids[3:], EOI]


def dropped(op: Sequence, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which captions and which images of ``num`` samples are dropped."""
    batch = {"caption": ragged([[1]] * num), "codes": ragged([[2]] * num), "key": keys(num)}
    rows = rows_of(op(batch)["sequence"])
    return (
        np.array([TEXT + 1 not in row for row in rows]),
        np.array([IMAGE + 2 not in row for row in rows]),
    )


def test_dropped_samples_are_frozen_and_their_share_is_the_rate() -> None:
    """Published shards lack these captions."""
    captions, codes = dropped(
        operator([{**CAPTION, "drop": {"rate": 0.1}}, {**CODES, "drop": {"rate": 0.3}}]), 20_000
    )
    assert hashlib.sha256(np.packbits(captions).tobytes()).hexdigest() == DROPPED_SHA256
    assert abs(captions.mean() - 0.1) < 0.01
    assert abs(codes.mean() - 0.3) < 0.01
    assert abs((captions & codes).mean() - 0.03) < 0.006  # independent of each other


def test_fields_of_one_draw_are_dropped_together() -> None:
    drop = {"rate": 0.4, "draw": "both"}
    captions, codes = dropped(operator([{**CAPTION, "drop": drop}, {**CODES, "drop": drop}]), 200)
    assert captions.any()
    assert np.array_equal(captions, codes)


def test_seed_chooses_other_samples() -> None:
    one, _ = dropped(operator([{**CAPTION, "drop": {"rate": 0.5}}, CODES]), 200)
    other, _ = dropped(operator([{**CAPTION, "drop": {"rate": 0.5, "seed": 1}}, CODES]), 200)
    assert not np.array_equal(one, other)


def test_key_is_read_only_where_something_is_dropped() -> None:
    assert "key" not in operator([CAPTION]).inputs
    assert "key" in operator([{**CAPTION, "drop": {"rate": 1}}]).inputs


def test_loss_mask_is_there_only_where_it_is_asked_for() -> None:
    assert set(operator([CAPTION]).outputs) == {"sequence"}
    op = operator(["<bos>", CAPTION], loss_on=["caption"])
    assert op.outputs["loss_mask"] == FieldSpec("uint8", (None,))
    assert op.metadata()["loss_on"] == ["caption"]


def test_long_and_short_form_of_an_entry_give_the_same() -> None:
    batch: Batch = {"caption": ragged([[1, 2], []])}
    short, long = operator(["<bos>", {"text": "caption"}]), operator(["<bos>", CAPTION])
    assert rows_of(short(batch)["sequence"]) == rows_of(long(batch)["sequence"])


def test_metadata_has_what_was_said() -> None:
    template = ["<bos>", {**CAPTION, "drop": {"rate": 0.1, "instead": ["<null>"]}}]
    metadata = operator(template).metadata()
    assert metadata["template"] == template
    assert json.loads(json.dumps(metadata)) == metadata


def test_ids_checked_by_row() -> None:
    op = operator([{**CAPTION, "check": "rows"}])
    assert op.inputs["caption"].accepts(FieldSpec("int64", (None,)))
    assert not operator([CAPTION]).inputs["caption"].accepts(FieldSpec("int64", (None,)))
    with pytest.raises(RowErrors) as caught:
        op({"caption": ragged([[1], [2, -3], [300], [299], []], "int64")})
    assert {row: str(error) for row, error in caught.value.errors.items()} == {
        1: "sequence: field 'caption' holds id -3, but 'text' has 300 ids",
        2: "sequence: field 'caption' holds id 300, but 'text' has 300 ids",
    }
    assert rows_of(caught.value.good["sequence"]) == [[TEXT + 1], [TEXT + 299], []]


def test_bad_row_among_images_is_named_and_costs_no_other() -> None:
    op = operator([{**CODES, "before": ["<boi>"]}])
    op.bind({"codes": FieldSpec("uint8", (None, 1), 70)})
    with pytest.raises(RowErrors) as caught:
        op({"codes": images([[], [[1], [2]], [[3], [70]], [[4]]], 1)})
    assert list(caught.value.errors) == [2]
    assert rows_of(caught.value.good["sequence"]) == [
        [],
        [BOI, IMAGE + 1, BOI, IMAGE + 2],
        [BOI, IMAGE + 4],
    ]


def test_wrapped_field_is_split_again() -> None:
    op = operator(["<bos>", {**CODES, "before": ["<boi>"], "after": ["<eoi>"]}, CAPTION])
    batch = {"codes": ragged([[1, 2], []]), "caption": ragged([[7], [8, 9]])}
    fields = op.decode(op(batch))
    assert rows_of(fields["codes"]) == [[1, 2], []]
    assert rows_of(fields["caption"]) == [[7], [8, 9]]


def test_what_is_dropped_comes_back_empty() -> None:
    op = operator(["<bos>", {**CAPTION, "drop": {"rate": 1}}, CODES])
    batch = {"codes": ragged([[1]]), "caption": ragged([[7]]), "key": keys(1)}
    assert rows_of(op.decode(op(batch))["caption"]) == [[]]


@pytest.mark.parametrize(
    ("entry", "shape", "message"),
    [
        ({"drop": {"rate": 0.1, "instead": ["<null>"]}}, (None,), "is dropped from some rows"),
        ({"drop": {"rate": 0.1}, "after": ["<eoi>"]}, (None,), "is dropped from some rows"),
        ({"after": ["<eoi>"]}, (None, 4), "is several images, each between special tokens"),
    ],
)
def test_rows_that_cannot_be_taken_apart(
    entry: dict[str, Any], shape: tuple[int | None, ...], message: str
) -> None:
    op = operator([{**CODES, **entry}])
    op.bind({"codes": FieldSpec("uint8", shape, 70)})
    with pytest.raises(ContractError, match=message):
        op.split(ragged([[IMAGE]]))


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        (
            ["<bos>", {**CAPTION, "before": ["<x>"]}],
            {},
            r"template\[1\] \(caption\): special .*'<x>'",
        ),
        ([{**CAPTION, "after": ["<x>"]}], {}, r"template\[0\] \(caption\): special token '<x>'"),
        (
            [{**CAPTION, "drop": {"rate": 0.1, "instead": ["<x>"]}}],
            {},
            r"template\[0\] \(caption\): special token '<x>' is not declared; .* has \['<bos>'",
        ),
        (
            [{**CAPTION, "modality": "a"}],
            {},
            r"template\[0\]: unknown modality 'a' of field 'caption'",
        ),
        ([CAPTION, "<eos>", CAPTION], {}, r"template\[2\]: field 'caption' stands twice"),
        ([{**CAPTION, "drop": {"rate": 0}}], {}, "greater than 0"),
        ([{**CAPTION, "drop": {"rate": 2}}], {}, "less than or equal to 1"),
        ([{**CAPTION, "droop": 1}], {}, "Extra inputs are not permitted"),
        ([{"field": "caption"}], {}, "Field required"),
        ([3], {}, "valid string"),
        ([{"text": "key"}], {}, r"template\[0\]: field 'key' has the name of what names a sample"),
        ([{"text": "<bos>"}], {}, "field '<bos>' has the name of a special token"),
        ([CAPTION], {"loss_on": ["codes"]}, r"loss_on: 'codes' is no .* has \['caption'\]"),
        ([CAPTION], {"loss_on": ["<bos>"]}, "loss_on: '<bos>' is no special token or field"),
        ([CAPTION], {"loss_on": []}, "at least 1 item"),
        (
            [
                {**CAPTION, "drop": {"rate": 0.1, "draw": "d"}},
                {**CODES, "drop": {"rate": 0.2, "draw": "d"}},
            ],
            {},
            "fields 'caption' and 'codes' share the draw 'd', but differ in rate or seed",
        ),
    ],
)
def test_template_that_makes_no_sense(
    template: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        operator(template, **options)
