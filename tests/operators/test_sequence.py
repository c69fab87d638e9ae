"""sequence: a slow oracle, splitting as the exact inverse, and every layout that makes no sense."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import FieldSpec, Invertible, Ragged
from operators.columns import as_ragged
from operators.errors import ContractError, RowErrors, SampleError
from operators.sequence.sequence import Sequence, SequenceConfig
from operators.testing import assert_operator_contract

VOCABULARY = [{"special": ["<pad>", "<bos>", "<eos>", "<boi>"]}, {"text": 300}, {"image": 70}]
TEMPLATE: list[Any] = ["<bos>", {"text": "caption"}, "<boi>", {"image": "codes"}, "<eos>"]
STARTS, SIZES = {"text": 4, "image": 304}, {"text": 300, "image": 70}
SPECIAL = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<boi>": 3}

Rows = list[list[int]]


def operator(template: list[Any] | None = None, vocabulary: list[Any] | None = None) -> Sequence:
    return Sequence(
        SequenceConfig.model_validate(
            {"vocabulary": vocabulary or VOCABULARY, "template": template or TEMPLATE}
        )
    )


def ragged(rows: Rows, dtype: str = "uint16") -> Ragged:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows], dtype=np.int64)))
    return Ragged(np.array([i for row in rows for i in row], dtype), offsets)


def rows_of(column: Ragged) -> Rows:
    return [column[i].tolist() for i in range(len(column))]


def join_slowly(template: list[Any], fields: dict[str, Rows], num_rows: int) -> Rows:
    joined: Rows = []
    for row in range(num_rows):
        ids: list[int] = []
        for item in template:
            if isinstance(item, str):
                ids.append(SPECIAL[item])
            else:
                [(modality, field)] = item.items()
                ids += [STARTS[modality] + i for i in fields[field][row]]
        joined.append(ids)
    return joined


def is_unambiguous(template: list[Any]) -> bool:
    seen: set[str] = set()
    for item in template:
        if isinstance(item, str):
            seen = set()
        elif (modality := next(iter(item))) in seen:
            return False
        else:
            seen.add(modality)
    return True


@st.composite
def templates(draw: st.DrawFn) -> list[Any]:
    kinds = draw(st.lists(st.sampled_from([*SPECIAL, "text", "image"]), min_size=1, max_size=7))
    assume(any(kind in SIZES for kind in kinds))
    return [k if k in SPECIAL else {k: f"field_{i}"} for i, k in enumerate(kinds)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Any], dict[str, Rows], int]:
    template, num_rows, fields = draw(templates()), draw(st.integers(1, 4)), {}
    for item in template:
        if not isinstance(item, str):
            [(modality, field)] = item.items()
            row = st.lists(st.integers(0, SIZES[modality] - 1), max_size=5)
            fields[field] = draw(st.lists(row, min_size=num_rows, max_size=num_rows))
    return template, fields, num_rows


@settings(max_examples=150, deadline=None)
@example(case=([{"text": "a"}, {"image": "b"}], {"a": [[], [1]], "b": [[2], []]}, 2))
@example(case=(["<bos>", {"text": "a"}], {"a": [[], []]}, 2))
@given(case=cases())
def test_any_template_joins_and_splits_as_a_loop_would(
    case: tuple[list[Any], dict[str, Rows], int],
) -> None:
    template, fields, num_rows = case
    op = operator(template)
    out = assert_operator_contract(op, {name: ragged(rows) for name, rows in fields.items()})
    assert rows_of(out["sequence"]) == join_slowly(template, fields, num_rows)
    if is_unambiguous(template):
        found = op.split(out["sequence"])
        assert {name: rows_of(column) for name, column in found.items()} == fields
    else:
        with pytest.raises(ContractError, match="cannot be told apart again"):
            op.split(out["sequence"])


def test_dense_fields_join_like_ragged_ones() -> None:
    op = operator()
    codes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    caption = ragged([[7], [], [8, 9]], "uint32")
    out = assert_operator_contract(op, {"caption": caption, "codes": codes})["sequence"]
    assert rows_of(out) == rows_of(op({"caption": caption, "codes": as_ragged(codes)})["sequence"])
    assert rows_of(out)[1] == [1, 3, 308, 309, 310, 311, 2]


def test_specs_bound_every_field_by_its_range() -> None:
    op = operator()
    ids = "uint8|uint16|uint32|uint64"
    assert op.inputs == {
        "caption": FieldSpec(ids, (None,), 300),
        "codes": FieldSpec(ids, (None,), 70),
    }
    assert op.inputs["codes"].accepts(FieldSpec("uint8", (16,), 70))
    assert not op.inputs["codes"].accepts(FieldSpec("uint8", (16,), 71))
    assert op.outputs == {"sequence": FieldSpec("uint16", (None,), 374)}


@pytest.mark.parametrize(
    ("size", "dtype"), [(252, "uint8"), (253, "uint16"), (65_532, "uint16"), (65_533, "uint32")]
)
def test_output_type_is_the_smallest_that_holds_all_ranges(size: int, dtype: str) -> None:
    op = operator(["<bos>", {"text": "caption"}], [VOCABULARY[0], {"text": size}])
    out = assert_operator_contract(op, {"caption": ragged([[size - 1], [0]], "uint64")})
    assert out["sequence"].values.dtype == dtype
    assert rows_of(out["sequence"]) == [[1, size + 3], [1, 4]]


def test_metadata_is_the_layout() -> None:
    metadata = operator().metadata()
    assert metadata == {
        "vocabulary": {
            "special": {"start": 0, "stop": 4, "ids": SPECIAL},
            "text": {"start": 4, "stop": 304},
            "image": {"start": 304, "stop": 374},
        },
        "size": 374,
        "template": TEMPLATE,
    }
    assert json.loads(json.dumps(metadata)) == metadata


def test_config_keeps_its_ids_through_json_with_sorted_keys() -> None:
    """Fingerprints and manifests sort keys."""
    config = operator().config
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    assert SequenceConfig.model_validate_json(text) == config


def test_several_special_ranges_keep_earlier_ids() -> None:
    op = operator(["<bos>", {"text": "a"}, "<eot>"], [*VOCABULARY, {"late": ["<eot>"]}])
    assert rows_of(op({"a": ragged([[0]])})["sequence"]) == [[1, 4, 374]]


def test_no_rows_give_no_rows() -> None:
    op = operator()
    out = op({"caption": ragged([]), "codes": np.zeros((0, 4), np.uint8)})["sequence"]
    assert out.offsets.tolist() == [0]
    assert out.values.dtype == np.uint16
    assert rows_of(op.split(out)["codes"]) == []


def test_id_beyond_its_range_is_an_error_of_its_row() -> None:
    fields = {
        "caption": ragged([[1], [5, 300, 999], [2], [299]]),
        "codes": ragged([[0], [1], [70], [69]], "uint8"),
    }
    op = operator()
    with pytest.raises(RowErrors) as caught:
        op(fields)
    assert {row: str(error) for row, error in caught.value.errors.items()} == {
        1: "sequence: field 'caption' holds id 300, but 'text' has 300 ids",
        2: "sequence: field 'codes' holds id 70, but 'image' has 70 ids",
    }
    assert rows_of(caught.value.good["sequence"]) == [[1, 5, 3, 304, 2], [1, 303, 3, 373, 2]]


def test_only_bad_rows_leave_no_good_ones() -> None:
    with pytest.raises(RowErrors) as caught:
        operator([{"image": "codes"}])({"codes": ragged([[70], [71]])})
    assert rows_of(caught.value.good["sequence"]) == []


def test_decode_is_split() -> None:
    op = operator()
    assert isinstance(op, Invertible)
    out = op({"caption": ragged([[1, 2], []]), "codes": ragged([[3], [4, 5]])})
    fields = op.decode(out)
    assert rows_of(fields["caption"]) == [[1, 2], []]
    assert rows_of(fields["codes"]) == [[3], [4, 5]]
    assert (fields["caption"].values.dtype, fields["codes"].values.dtype) == ("uint16", "uint8")


@pytest.mark.parametrize(
    "row",
    [
        [],
        [1, 10, 3, 310],  # cut: no <eos>
        [1, 10, 2, 310, 3],  # specials in another order
        [1, 10, 3, 310, 2, 2],  # one too many
        [1, 310, 3, 10, 2],  # fields exchanged
        [10, 1, 3, 310, 2],  # ids before the template begins
        [1, 10, 3, 310, 2, 310],  # ids after it ends
        [1, 10, 0, 310, 2],  # a special that the template lacks
        [1, 10, 3, 374, 2],  # an id beyond the vocabulary
    ],
)
def test_row_that_does_not_follow_the_template_is_not_split(row: list[int]) -> None:
    with pytest.raises(SampleError, match=rf"row 1 with {len(row)} ids does not follow the temp"):
        operator().split(ragged([[1, 10, 3, 310, 2], row, [1, 3, 2]]))


def test_fields_without_special_between_must_stand_in_order() -> None:
    op = operator([{"text": "a"}, {"image": "b"}])
    with pytest.raises(SampleError, match="row 0 with 2 ids does not follow"):
        op.split(ragged([[310, 10]]))


def test_unknown_modality_names_those_there_are() -> None:
    with pytest.raises(
        ValidationError, match=r"unknown modality 'audio' of field 'a'; .*\['text', 'image'\]"
    ):
        operator([{"audio": "a"}])


def test_special_range_is_no_modality() -> None:
    with pytest.raises(ValidationError, match="unknown modality 'special'"):
        operator([{"special": "a"}])


def test_undeclared_special_token_names_those_there_are() -> None:
    with pytest.raises(ValidationError, match=r"'<eoi>' is not declared; vocabulary has \['<pad>'"):
        operator(["<eoi>", {"text": "a"}])


def test_special_token_declared_twice_is_named() -> None:
    with pytest.raises(ValidationError, match="special token '<bos>' is declared twice"):
        operator(vocabulary=[*VOCABULARY, {"more": ["<bos>"]}])


def test_range_declared_twice_is_named() -> None:
    with pytest.raises(ValidationError, match="range 'text' is declared twice"):
        operator(vocabulary=[*VOCABULARY, {"text": 5}])


@pytest.mark.parametrize(("content", "size"), [(0, 0), (-3, -3), ([], 0)])
def test_empty_range_is_named(content: object, size: int) -> None:
    with pytest.raises(ValidationError, match=f"range 'audio' holds {size} ids, expected 1"):
        operator(vocabulary=[*VOCABULARY, {"audio": content}])


def test_field_that_stands_twice_is_named() -> None:
    with pytest.raises(ValidationError, match="field 'a' stands twice"):
        operator([{"text": "a"}, "<eos>", {"text": "a"}])


def test_template_without_field_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"template: \['<bos>'\] names no field"):
        operator(["<bos>"])


def test_empty_template_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        SequenceConfig.model_validate({"vocabulary": VOCABULARY, "template": []})


def test_mapping_as_vocabulary_shows_the_list_to_write() -> None:
    with pytest.raises(
        ValidationError, match=r"is a mapping, expected a list .*\[{'special': \['<bos>'\]}, {'text"
    ):
        SequenceConfig.model_validate(
            {"vocabulary": {"special": ["<bos>"], "text": 5}, "template": ["<bos>", {"text": "a"}]}
        )


def test_item_of_two_fields_is_refused() -> None:
    with pytest.raises(ValidationError, match="at most 1 item"):
        operator([{"text": "a", "image": "b"}])
