"""digit_groups: the contract, the patterns it stands for, slabs, frozen texts, mistakes."""

from itertools import pairwise

import pyarrow as pa
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ContractError, RowErrors
from operators.testing import assert_operator_contract
from operators.text.algorithms import characters
from operators.text.digit_groups import DigitGroups, DigitGroupsConfig

TEXTS = st.text(alphabet="0123٤\uff15½Ⅷab_é ,.\n日", max_size=14)


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def pattern(size: int, direction: str, digits: str, before_letters: str) -> str:
    """The pattern whose matches are the groups."""
    digit = r"\p{N}" if digits == "unicode" else "[0-9]"
    if direction == "left_to_right":
        groups = rf"{digit}{{1,{size}}}"
    else:
        groups = rf"{digit}{{1,{size}}}(?=(?:{digit}{{{size}}})*(?!{digit}))"
    # Two runs have digits without a word's end behind them: those that letters follow.
    behind = "" if before_letters == "group" else rf"(?={digit}*+(?!\w))"
    return behind + groups


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=4),
    size=st.integers(1, 4),
    direction=st.sampled_from(["left_to_right", "right_to_left"]),
    digits=st.sampled_from(["unicode", "ascii"]),
    before_letters=st.sampled_from(["group", "leave"]),
)
def test_separators_stand_between_matches_that_touch(
    texts: list[str], size: int, direction: str, digits: str, before_letters: str
) -> None:
    op = DigitGroups(
        DigitGroupsConfig.model_validate(
            {
                "size": size,
                "direction": direction,
                "digits": digits,
                "before_letters": before_letters,
                "separator": "<>",
            }
        )
    )
    out = assert_operator_contract(op, {"text": column(texts)})["text"].to_pylist()
    for text, found in zip(texts, out, strict=True):
        spans = [
            m.span() for m in regex.finditer(pattern(size, direction, digits, before_letters), text)
        ]
        starts = [b for (_, stop), (b, _) in pairwise(spans) if stop == b]
        cuts = [0, *starts, len(text)]
        assert found == "<>".join(text[a:b] for a, b in pairwise(cuts))


def test_the_published_pattern_with_a_word_boundary() -> None:
    texts = ["a1234b 1234 12345x9 1234_ 12345", "1234", "x1234"]
    published = r"\d{1,3}(?=(?:\d{3})*\b)"
    op = DigitGroups(DigitGroupsConfig(before_letters="leave", separator="|"))
    out = op({"text": column(texts)})["text"].to_pylist()
    assert out == ["a1234b 1|234 12345x9 1234_ 12|345", "1|234", "x1|234"]
    for text, found in zip(texts, out, strict=True):
        groups = [group for run in regex.findall(r"[\d|]+", found) for group in run.split("|")]
        assert set(regex.findall(published, text)) <= set(groups)


def test_texts_are_frozen() -> None:
    """Published shards hold these texts: other ones need a new version."""
    texts = ["pi is 3.14159, 1234567 and 1,234", "", "v2024 ٣٤٥٦٧"]
    op = DigitGroups(DigitGroupsConfig())
    assert op({"text": column(texts)})["text"].to_pylist() == [
        "pi is 3.14,159, 1,234,567 and 1,234",
        "",
        "v2,024 ٣٤,٥٦٧",
    ]


def test_numbers_end_with_their_document_and_slabs_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = ["12345", "6789\n12345", "\n1234", "", "9"]
    op = DigitGroups(DigitGroupsConfig(before_letters="leave"))
    want = ["12,345", "6,789\n12,345", "\n1,234", "", "9"]
    assert op({"text": column(texts)})["text"].to_pylist() == want
    monkeypatch.setattr(characters, "SLAB_BYTES", 1)
    assert op({"text": column(texts)})["text"].to_pylist() == want


def test_a_long_number_takes_linear_time() -> None:
    """The patterns look ahead from every group: a million digits would take hours."""
    op = DigitGroups(DigitGroupsConfig())
    [found] = op({"text": column(["7" * 1_000_000])})["text"].to_pylist()
    assert found == f"{int('7' * 100):,}"[:1] + ",777" * 333_333


@pytest.mark.parametrize("separator", ["1", "a٣"])
def test_a_separator_with_digits_is_refused(separator: str) -> None:
    with pytest.raises(ValueError, match="holds digits, which would join the groups"):
        DigitGroupsConfig(separator=separator)


def test_null_text_is_a_broken_contract() -> None:
    with pytest.raises(ContractError, match=r"digit_groups: 1 of 2 texts are null"):
        DigitGroups(DigitGroupsConfig())({"text": pa.array(["a", None], pa.large_string())})


def test_a_text_that_is_no_utf8_is_named_and_the_others_are_done() -> None:
    texts = pa.array([b"1234", b"\xff"], pa.large_binary()).view(pa.large_string())
    with pytest.raises(RowErrors) as caught:
        DigitGroups(DigitGroupsConfig())({"text": texts})
    assert "digit_groups: the text is no UTF-8" in str(caught.value.errors[1])
    assert caught.value.good["text"].to_pylist() == ["1,234"]
