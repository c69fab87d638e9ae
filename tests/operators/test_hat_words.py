"""hat_words: the contract, a slow reading of the rules, frozen lengths, causality, mistakes."""

import sys
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.base import Ragged
from operators.errors import ContractError, RowErrors, SetupError
from operators.registry import get
from operators.testing import assert_operator_contract
from operators.text.algorithms import characters
from operators.text.algorithms.word_boundaries import unicode_words
from operators.text.hat_words import HATWords, HATWordsConfig
from operators.text.text_column import utf8_bytes

# One or two characters of every kind that the rules tell apart.
KINDS = (
    "aZ٣1 \u3000\r\n\x0b\u2028\u0301\u200d\u00ad🙂©🇺"
    "カאב'\"\u2019.:·,;_\u202f-!「$中ǅⅧ1é\U0001d49c\U0001d7ce"
)
TEXTS = st.text(alphabet=KINDS, max_size=12)


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def words(out: Ragged, lengths: Ragged) -> list[list[bytes]]:
    found = []
    for row in range(len(out)):
        ends = np.cumsum(lengths[row].astype(np.int64))
        data = out[row].tobytes()
        found.append([data[a:b] for a, b in zip([0, *ends], ends, strict=False)])
    return found


def split(texts: list[str], limit: int | None = None) -> list[list[str]]:
    out = HATWords(HATWordsConfig(max_word_bytes=limit))({"text": column(texts)})
    return [[w.decode() for w in row] for row in words(out["tokens"], out["word_lengths"])]


def break_class(character: str) -> str:
    names = (
        *("CR", "LF", "Newline", "Extend", "ZWJ", "Format", "Regional_Indicator", "Katakana"),
        *("Hebrew_Letter", "ALetter", "Single_Quote", "Double_Quote", "MidNumLet", "MidLetter"),
        *("MidNum", "Numeric", "ExtendNumLet", "WSegSpace"),
    )
    found = [name for name in names if regex.fullmatch(rf"\p{{WB={name}}}", character)]
    return found[0] if found else "Other"


CLASSES = {character: break_class(character) for character in KINDS}


def segments(text: str) -> list[str]:
    """UAX #29 as it stands: every rule in order, at every position."""
    classes = [CLASSES[character] for character in text]
    cuts = [0, *(i for i in range(1, len(text)) if breaks(text, classes, i)), len(text)]
    return [text[a:b] for a, b in pairwise(cuts) if a < b]


def breaks(text: str, classes: list[str], i: int) -> bool:
    line_ends, marks = {"CR", "LF", "Newline"}, {"Extend", "Format", "ZWJ"}
    letter = {"ALetter", "Hebrew_Letter"}
    mid_quote = {"MidNumLet", "Single_Quote"}
    before, behind = classes[i - 1], classes[i]
    if (before, behind) == ("CR", "LF"):
        return False
    if before in line_ends or behind in line_ends:
        return True
    if before == "ZWJ" and regex.fullmatch(r"\p{ExtPict}", text[i]):
        return False
    if before == behind == "WSegSpace":
        return False
    if behind in marks:
        return False
    left = [
        each
        for j, each in enumerate(classes[:i])
        if each not in marks or j == 0 or classes[j - 1] in line_ends
    ]
    right = [each for each in classes[i:] if each not in marks]
    a, b = left[-1], right[0]
    a_2 = left[-2] if len(left) > 1 else ""
    b_2 = right[1] if len(right) > 1 else ""
    joined = (
        a in letter and b in letter,
        a in letter and b in {"MidLetter", *mid_quote} and b_2 in letter,
        a_2 in letter and a in {"MidLetter", *mid_quote} and b in letter,
        (a, b) == ("Hebrew_Letter", "Single_Quote"),
        (a, b, b_2) == ("Hebrew_Letter", "Double_Quote", "Hebrew_Letter"),
        (a_2, a, b) == ("Hebrew_Letter", "Double_Quote", "Hebrew_Letter"),
        a == b == "Numeric",
        a in letter and b == "Numeric",
        a == "Numeric" and b in letter,
        a_2 == "Numeric" and a in {"MidNum", *mid_quote} and b == "Numeric",
        a == "Numeric" and b in {"MidNum", *mid_quote} and b_2 == "Numeric",
        a == b == "Katakana",
        a in {*letter, "Numeric", "Katakana", "ExtendNumLet"} and b == "ExtendNumLet",
        a == "ExtendNumLet" and b in {*letter, "Numeric", "Katakana"},
    )
    if any(joined):
        return False
    if a == b == "Regional_Indicator":
        run = 0
        while run < len(left) and left[-1 - run] == "Regional_Indicator":
            run += 1
        return run % 2 == 0
    return True


def slow_words(text: str) -> list[str]:
    pieces = []
    for segment in segments(text):
        start = 0
        for i in range(1, len(segment) + 1):
            ends = regex.fullmatch(r"\p{P}", segment[i - 1])
            rises = regex.fullmatch(r"\p{Ll}\p{Lu}", segment[i - 1 : i + 1])
            if i == len(segment) or ends or rises:
                pieces.append(segment[start:i])
                start = i
    found: list[str] = []
    last = ""
    for piece in pieces:
        kind = "word"
        if piece == " ":
            kind = "space"
        elif regex.fullmatch(r"\p{White_Space}+", piece):
            kind = "white"
        elif regex.fullmatch(r"\p{P}", piece):
            kind = "point"
        joins = last == "space" and kind == "word"
        joins = joins or (last in {"space", "word", "point"} and kind == "point")
        if joins:
            found[-1] += piece
        else:
            found.append(piece)
        last = kind
    return found


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_words_and_segments_are_those_of_the_rules_read_slowly(texts: list[str]) -> None:
    assert split(texts) == [slow_words(text) for text in texts]
    documents = utf8_bytes(column(texts))
    starts = unicode_words(documents)
    want = [
        documents.offsets[row] + sum(len(s.encode()) for s in segments(text)[:i])
        for row, text in enumerate(texts)
        for i in range(len(segments(text)))
    ]
    assert starts.tolist() == want


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=5),
    limit=st.one_of(st.none(), st.integers(1, 9)),
    before=st.integers(0, 2),
)
def test_contract_holds_for_any_slice(texts: list[str], limit: int | None, before: int) -> None:
    op = HATWords(HATWordsConfig(max_word_bytes=limit))
    whole = column(["äx "] * before + texts + [" y"])
    out = assert_operator_contract(op, {"text": whole.slice(before, len(texts))})
    assert op.decode(out)["text"].to_pylist() == texts
    for row, text in enumerate(texts):
        lengths = out["word_lengths"][row]
        assert lengths.sum() == len(text.encode())
        assert (lengths > 0).all()
        assert limit is None or lengths.max(initial=0) <= limit


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, limit=st.integers(1, 9))
def test_a_long_word_is_cut_at_the_last_character_that_fits(text: str, limit: int) -> None:
    out = HATWords(HATWordsConfig(max_word_bytes=limit))({"text": column([text])})
    want: list[bytes] = []
    for word in split([text])[0]:
        rest = word.encode()
        while len(rest) > limit:
            cut = max((i for i in range(1, limit + 1) if rest[i] & 0xC0 != 0x80), default=limit)
            want.append(rest[:cut])
            rest = rest[cut:]
        want.append(rest)
    assert words(out["tokens"], out["word_lengths"]) == [want]


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, num=st.integers(0, 12))
def test_a_prefix_has_the_words_of_the_whole_up_to_the_last(text: str, num: int) -> None:
    whole, prefix = split([text, text[:num]])
    assert prefix[:-1] == whole[: max(len(prefix) - 1, 0)]


def test_words_are_frozen() -> None:
    """Published shards hold these lengths: other ones need a new version."""
    text = "In 2024, it's  camelCase_x:\n\n\tnaïve “quotes”… 中文。 3.14"
    out = HATWords(HATWordsConfig())({"text": column([text])})["word_lengths"]
    assert out.values.tolist() == [2, 6, 4, 1, 2, 5, 5, 2, 1, 1, 1, 6, 4, 12, 4, 6, 3, 2]


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a 'b\n\u0301c.D \r\n x\n" * 5 + "eF" * 20
    whole = split([text, "", text[3:]])
    monkeypatch.setattr(characters, "SLAB_BYTES", 1)
    assert split([text, "", text[3:]]) == whole


def test_no_rows_give_no_rows() -> None:
    out = HATWords(HATWordsConfig(max_word_bytes=3))({"text": column([])})
    assert [len(out["tokens"]), len(out["word_lengths"])] == [0, 0]


def test_null_text_is_a_broken_contract() -> None:
    with pytest.raises(ContractError, match=r"hat_words: 1 of 2 texts are null, expected none"):
        HATWords(HATWordsConfig())({"text": pa.array(["a", None], pa.large_string())})


def test_a_text_that_is_no_utf8_is_named_and_the_others_are_split() -> None:
    texts = pa.array([b"a b", b"\xff", b"cD"], pa.large_binary()).view(pa.large_string())
    with pytest.raises(RowErrors) as caught:
        HATWords(HATWordsConfig())({"text": texts})
    assert list(caught.value.errors) == [1]
    assert "hat_words: the text is no UTF-8" in str(caught.value.errors[1])
    assert caught.value.good["word_lengths"].values.tolist() == [1, 2, 1, 1]


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(SetupError, match=r"the package regex.*pip install 'tokenmill\[text\]'"):
        HATWords(HATWordsConfig()).identity()


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        HATWordsConfig(max_word_bytes=0)
    assert get("hat_words") is HATWords
