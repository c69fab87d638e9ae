"""text_template: what Python's own formatting gives, parts that are left out, mistakes."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.sequence.text_template import TextTemplate, TextTemplateConfig
from operators.testing import assert_operator_contract
from tests.ragged_rows import texts

ALPACA: list[Any] = [
    "### Instruction:\n{instruction}\n\n",
    {"text": "### Input:\n{input}\n\n", "unless_empty": "input"},
    "### Response:\n{output}",
]
TEXTS = st.lists(st.text(max_size=5), min_size=3, max_size=3)


def operator(template: list[Any]) -> TextTemplate:
    return TextTemplate(TextTemplateConfig.model_validate({"template": template}))


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["{a}", "{b} and {a}", "{{", "}}{b}", "\n", "{a}{a}{{a}}"]), max_size=4
    ),
    a=TEXTS,
    b=TEXTS,
)
def test_any_template_is_filled_in_as_python_would(
    parts: list[str], a: list[str], b: list[str]
) -> None:
    op = operator([*parts, "{a}{b}"])
    out = assert_operator_contract(op, {"a": texts(*a), "b": texts(*b)})
    template = "".join([*parts, "{a}{b}"])
    assert out["text"].to_pylist() == [template.format(a=x, b=y) for x, y in zip(a, b, strict=True)]


def test_part_is_left_out_where_its_field_is_empty() -> None:
    op = operator(ALPACA)
    assert set(op.inputs) == {"instruction", "input", "output"}
    batch = {
        "instruction": texts("add", "greet"),
        "input": texts("1 {2}", ""),
        "output": texts("3", "hello"),
    }
    assert assert_operator_contract(op, batch)["text"].to_pylist() == [
        "### Instruction:\nadd\n\n### Input:\n1 {2}\n\n### Response:\n3",
        "### Instruction:\ngreet\n\n### Response:\nhello",
    ]


def test_condition_may_be_a_field_that_is_not_written() -> None:
    op = operator(["{a}", {"text": "!", "unless_empty": "b"}])
    assert op.inputs["b"] == FieldSpec("string")
    batch = {"a": texts("x", "y"), "b": texts("", "1")}
    assert assert_operator_contract(op, batch)["text"].to_pylist() == ["x", "y!"]


def test_no_rows_give_no_rows() -> None:
    out = operator(["# ", "{a}"])({"a": texts()})["text"]
    assert out.to_pylist() == []
    assert out.type == pa.large_string()


def test_metadata_is_the_template() -> None:
    assert json.loads(json.dumps(operator(ALPACA).metadata())) == {"template": ALPACA}


def test_null_is_refused_and_its_field_named() -> None:
    with pytest.raises(ContractError, match="text_template: a: 1 of 2 texts are null"):
        operator(["{a}"])({"a": pa.array(["x", None], pa.large_string())})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ([], "at least 1 item"),
        (["plain"], r"template: \['plain'\] names no field"),
        (["{a}", "{"], r"template\[1\]: '{': .*write {field}, and {{ or }} for a brace"),
        (["{a} }"], r"template\[0\]: '{a} }'"),
        (["{}"], r"template\[0\]: '{}': `{}` names no field"),
        (["{a:>5}"], "field 'a' has a format or conversion"),
        (["{a!r}"], "field 'a' has a format or conversion"),
        (["{a}", {"text": "x"}], "Field required"),
    ],
)
def test_template_that_makes_no_sense(template: list[Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        operator(template)
