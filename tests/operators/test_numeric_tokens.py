"""numeric_tokens: the contract, the rules as patterns, slabs, frozen texts, mistakes."""

import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ContractError, RowErrors
from operators.testing import assert_operator_contract
from operators.text.algorithms import characters
from operators.text.numeric_tokens import NumericTokens, NumericTokensConfig, published_shapes

TEXTS = st.text(alphabet="00012٤5½.,, \n\u3000a$é", max_size=16)


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def slow(word: str, config: NumericTokensConfig) -> str:
    num_digits = sum(character.isdigit() for character in word)
    if not re.fullmatch(r"(\d+[\d,.]*)|([,.]\d+)", word):
        return word
    if config.mostly_digits and num_digits + 1 <= len(word) - num_digits:
        return word
    shape = "[" + re.sub(r"\d", "X", word) + "]"
    known = published_shapes() if config.shapes is None else config.shapes
    return shape if config.form == "shape" and shape in known else "[NUM]"


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=4),
    form=st.sampled_from(["shape", "number"]),
    mostly_digits=st.booleans(),
    shapes=st.sampled_from([None, ("[X]", "[X,X]"), ()]),
)
def test_every_word_is_replaced_as_the_patterns_say(
    texts: list[str], form: str, mostly_digits: bool, shapes: tuple[str, ...] | None
) -> None:
    config = NumericTokensConfig.model_validate(
        {"form": form, "mostly_digits": mostly_digits, "shapes": shapes}
    )
    out = assert_operator_contract(NumericTokens(config), {"text": column(texts)})
    want = ["".join(slow(part, config) for part in re.split(r"(\s+)", text)) for text in texts]
    assert out["text"].to_pylist() == want


def test_texts_are_frozen() -> None:
    """Published shards hold these texts: other ones need a new version."""
    texts = ["paid 53.2 and 40,200.5 in 2021 , 1.2.3 (5) 5%", "", "no number"]
    op = NumericTokens(NumericTokensConfig())
    want = ["paid [XX.X] and [XX,XXX.X] in [XXXX] , [NUM] (5) 5%", "", "no number"]
    assert op({"text": column(texts)})["text"].to_pylist() == want


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(characters, "SLAB_BYTES", 1)
    op = NumericTokens(NumericTokensConfig(form="number"))
    found = op({"text": column(["1\n2.5 é\n٤", "", "3", "x\n4"])})["text"].to_pylist()
    assert found == ["[NUM]\n[NUM] é\n[NUM]", "", "[NUM]", "x\n[NUM]"]


def test_metadata_lists_what_a_tokenizer_must_know() -> None:
    assert NumericTokens(NumericTokensConfig(form="number")).metadata() == {
        "pseudo_tokens": ["[NUM]"]
    }
    assert len(NumericTokens(NumericTokensConfig()).metadata()["pseudo_tokens"]) == 215  # type: ignore[arg-type]


def test_null_text_is_a_broken_contract() -> None:
    with pytest.raises(ContractError, match=r"numeric_tokens: 1 of 2 texts are null"):
        NumericTokens(NumericTokensConfig())({"text": pa.array(["a", None], pa.large_string())})


def test_a_text_that_is_no_utf8_is_named_and_the_others_are_done() -> None:
    texts = pa.array([b"12", b"\xff"], pa.large_binary()).view(pa.large_string())
    with pytest.raises(RowErrors) as caught:
        NumericTokens(NumericTokensConfig())({"text": texts})
    assert "numeric_tokens: the text is no UTF-8" in str(caught.value.errors[1])
    assert caught.value.good["text"].to_pylist() == ["[XX]"]
