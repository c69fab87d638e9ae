"""fim_text: a slow oracle of both layouts, texts put together again, sentinels in the text."""

import hashlib
import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.errors import ContractError, RowErrors
from operators.keyed_draws import draws_of_keys
from operators.sequence.fim_text import FimText, FimTextConfig
from operators.testing import assert_operator_contract
from tests.ragged_rows import texts

FROZEN_SHA256 = "f58b0cfd0703f053c413e5afbf2bd3ba0aab2d0dbf3faa96b0b2955deb833a62"
# Some of them take two, three or four bytes, and the newline is frequent.
CHARACTERS = st.sampled_from(list("ab\n\n\r \xe9\u65e5\U0001f600"))
DOCUMENTS = st.lists(st.text(CHARACTERS, max_size=12), min_size=1, max_size=5)


def operator(**options: Any) -> FimText:
    return FimText(FimTextConfig(**options))


def keys(num: int) -> pa.Array:
    return texts(*(f"sample/{i}" for i in range(num)))


def rearranged(op: FimText, documents: list[str]) -> list[str]:
    batch = {"text": texts(*documents), "key": keys(len(documents))}
    found: list[str] = assert_operator_contract(op, batch)["text"].to_pylist()
    return found


def plain_slowly(text: str, draws: list[float], rate: float, spm_rate: float) -> str:
    moves, one, other, choice = draws
    a, b = sorted(int(place * (len(text) + 1)) for place in (one, other))
    prefix, middle, suffix = text[:a], text[a:b], text[b:]
    if moves >= rate:
        return text
    if choice < spm_rate:
        return f"<PRE><SUF>{suffix}<MID>{prefix}{middle}<EOT>"
    return f"<PRE>{prefix}<SUF>{suffix}<MID>{middle}<EOT>"


def fim_se_slowly(text: str, draws: list[float], rate: float, *, exact: bool) -> str:
    moves, one, other, choice = draws
    if moves >= rate or len(text) < 2:
        return text
    first = int(one * len(text))
    left = [place for place in range(len(text)) if place != first]
    a, b = sorted((first, left[int(other * len(left))]))
    prefix, middle, suffix = text[:a], text[a:b], text[b:]
    added = "" if exact else "\n"
    r_prefix, newline, l_prefix = prefix.rpartition("\n")
    r_prefix += newline or added
    f_suffix, newline, r_suffix = suffix.partition("\n")
    f_suffix += newline or added
    target = l_prefix + middle + f_suffix
    shown_l = l_prefix if choice >= 0.5 else ""
    shown_f = f_suffix if 0.25 <= choice < 0.5 or choice >= 0.75 else ""
    return f"<PRE>{r_prefix}<SUF>{r_suffix}<START>{shown_l}<END>{shown_f}<MID>{target}<EOT>"


@settings(max_examples=100, deadline=None)
@example(documents=["", "a"], rate=1.0, spm_rate=0.5, seed=0)
@given(
    documents=DOCUMENTS,
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    spm_rate=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 3),
)
def test_plain_is_what_a_loop_gives_and_reassembles(
    documents: list[str], rate: float, spm_rate: float, seed: int
) -> None:
    found = rearranged(operator(rate=rate, spm_rate=spm_rate, seed=seed), documents)
    draws = draws_of_keys(seed, "fim_text", keys(len(documents))).tolist()
    want = [
        plain_slowly(text, drawn, rate, spm_rate)
        for text, drawn in zip(documents, draws, strict=True)
    ]
    assert found == want
    for text, result in zip(documents, found, strict=True):
        parts = re.fullmatch(r"<PRE>(.*)<SUF>(.*)<MID>(.*)<EOT>", result, re.DOTALL)
        prefix, suffix, middle = parts.groups() if parts else (text, "", "")
        assert prefix + middle + suffix == text


@settings(max_examples=150, deadline=None)
@example(documents=["", "a", "ab", "\n\n"], rate=1.0, exact=False, seed=0)
@given(
    documents=DOCUMENTS,
    rate=st.sampled_from([0.5, 1.0]),
    exact=st.booleans(),
    seed=st.integers(0, 3),
)
def test_fim_se_is_what_a_loop_gives_and_reassembles(
    documents: list[str], rate: float, exact: bool, seed: int
) -> None:
    op = operator(layout="fim_se", rate=rate, exact_lines=exact, seed=seed)
    found = rearranged(op, documents)
    draws = draws_of_keys(seed, "fim_text", keys(len(documents))).tolist()
    want = [
        fim_se_slowly(text, drawn, rate, exact=exact)
        for text, drawn in zip(documents, draws, strict=True)
    ]
    assert found == want
    for text, result in zip(documents, found, strict=True):
        parts = re.fullmatch(r"<PRE>(.*)<SUF>(.*)<START>.*<END>.*<MID>(.*)<EOT>", result, re.DOTALL)
        prefix, suffix, target = parts.groups() if parts else (text, "", "")
        whole = prefix + target + suffix
        # The authors' layout may hold a line break before and one after that the text lacks.
        endings = (text,) if exact else (text, f"\n{text}", f"{text}\n", f"\n{text}\n")
        assert whole in endings


def test_texts_are_frozen() -> None:
    """Published shards hold texts cut at these places."""
    documents = ["one\ntwo two\nthree\n" * (i % 3 + 1) for i in range(40)]
    found = [rearranged(operator(layout=layout), documents) for layout in ("plain", "fim_se")]
    assert hashlib.sha256(repr(found).encode()).hexdigest() == FROZEN_SHA256


def test_authors_draws_cut_texts_of_one_length_alike() -> None:
    op = operator(layout="fim_se", rate=1.0, draws="length")
    found = rearranged(op, ["abcdefgh", "ABCDEFGH"])
    assert found[0] != "abcdefgh"
    assert found[0].lower() == found[1].lower()
    assert rearranged(op, ["", "a"]) == ["", "a"]


@pytest.mark.parametrize("sentinel", ["<PRE>", "<END>"])
def test_text_with_a_sentinel_is_a_bad_row_moved_or_not(sentinel: str) -> None:
    batch = {"text": texts("a", f"b{sentinel}c", "d"), "key": keys(3)}
    with pytest.raises(RowErrors) as caught:
        operator(rate=0.0)(batch)
    errors = {row: str(error) for row, error in caught.value.errors.items()}
    assert errors == {1: f"fim_text: the text holds '{sentinel}', a sentinel"}
    assert caught.value.good["text"].to_pylist() == ["a", "d"]


def test_null_text_is_refused() -> None:
    with pytest.raises(ContractError, match="1 of 1 texts are null"):
        operator()({"text": pa.array([None], pa.large_string()), "key": keys(1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": "length"}, "draws='length' is for layout fim_se"),
        ({"authors_end": True}, "authors_end=True is for layout fim_se"),
        ({"exact_lines": True}, "exact_lines=True is for layout fim_se"),
        ({"layout": "fim_se", "spm_rate": 0.5}, "spm_rate=0.5 is for layout plain"),
        ({"sentinels": {"prefix": "<SUF>"}}, "share a text"),
        ({"sentinels": {"prefix": ""}}, "at least 1 character"),
        ({"rate": 1.5}, "less than or equal to 1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FimTextConfig(**options)
