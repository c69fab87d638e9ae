"""Figures of the tokenizer report, against counts made one by one."""

import io
import json
import math
import sys
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from operators.base import Ragged, TokenPieces
from operators.text.byte_text import ByteText, ByteTextConfig
from operators.text.text_tokenizer import TextTokenizer, TextTokenizerConfig
from pipeline.errors import SetupError, SpecError
from pipeline.report import tokenizer_plots, tokenizer_report
from pipeline.report.tokenizer_report import (
    DAMAGES,
    PieceTable,
    TokenizerFigures,
    TokenizerMeter,
    renyi_entropy,
    robustness,
    to_json,
)
from pipeline.report.tokenizer_tables import tokenizer_notes, tokenizer_tables

GOLDEN = "tests/golden/text/bytelevel_bpe.json"

# A vocabulary by hand: id -> bytes; 8 is unknown, 9 a special.
PIECES: list[bytes | None] = [
    b"a", b"b", b"ab", b" ", b" a", "é".encode()[:1], "é".encode()[1:], b"12", None, None, b" 7",
]  # fmt: skip


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def ragged(rows: list[list[int]]) -> Ragged:
    offsets = np.cumsum([0, *map(len, rows)])
    return Ragged(np.array([i for row in rows for i in row], np.uint8), offsets)


def pieces() -> TokenPieces:
    return TokenPieces(pa.array(PIECES, pa.large_binary()), unknown_id=8)


def figures(
    texts: list[str], rows: list[list[int]], groups: list[str | None] | None = None, **more: Any
) -> TokenizerFigures:
    meter = TokenizerMeter("t", "corpus", len(PIECES), 1, [8, 9], pieces())
    middle = len(texts) // 2
    for part in (slice(0, middle), slice(middle, None)):
        found = None if groups is None else pa.array(groups[part], pa.large_string())
        meter.add(column(texts[part]), ragged(rows[part]), found)
    return meter.figures(**more)


def test_every_figure_of_a_corpus_counted_by_hand() -> None:
    texts = ["ab a", "é 12", "b 7x"]
    rows = [[2, 4, 9], [5, 6, 3, 7], [1, 10, 8]]
    found = figures(texts, rows)
    assert (found.documents, found.bytes, found.characters, found.words) == (3, 13, 12, 6)
    assert (found.tokens, found.special_tokens) == (9, 1)
    assert found.fertility == 9 / 6
    assert found.bytes_per_token == 13 / 9
    assert found.characters_per_token == 12 / 9
    # "é" is parted; the third document's tokens do not add up to it.
    assert found.whole_words == 3 / 4
    assert found.stored_share == 9 / 13
    assert found.entropy_bits == pytest.approx(math.log2(9))
    assert found.entropy_bits_per_byte == pytest.approx(math.log2(9) * 9 / 13)
    assert found.renyi_efficiency == pytest.approx(math.log2(9) / math.log2(11))
    assert (found.used, found.used_share, found.ids_for_90) == (9, 9 / 11, 9)
    assert found.single_byte_share == 4 / 9
    assert found.partial_utf8_share == 2 / 9
    assert found.unknown_share == 1 / 9
    assert found.digit_shares == {
        "1": 1 / 3,
        "2": 2 / 3,
        "3": 0.0,
        "4 or more": 0.0,
        "with other characters": 0.0,
    }
    assert found.length_shares is not None
    assert found.length_shares[:3] == [4 / 8, 4 / 8, 0.0]
    assert found.longest_used[:3] == [(2, "ab"), (4, " a"), (7, "12")]
    assert found.vocabulary is not None
    assert (found.vocabulary.with_text, found.vocabulary.single_byte) == (9, 5)
    assert (found.vocabulary.partial_utf8, found.vocabulary.digits) == (2, 2)
    assert found.vocabulary.unreachable is None
    assert json.loads(to_json([found]))["tokenizers"][0]["tokens"] == 9


def slow_whole_words(text: str, tokens: list[bytes]) -> tuple[int, int]:
    """How many words there are, and inside how many no token begins."""
    data, begins, at = text.encode(), set(), 0
    for token in tokens:
        begins.add(at)
        at += len(token)
    words = whole = start = 0
    for i in range(len(data) + 1):
        if i == len(data) or data[i : i + 1].isspace():
            if i > start:
                words += 1
                whole += not any(start < b < i for b in begins)
            start = i + 1
    return words, whole


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from([0, 1, 2, 3, 4, 7, 10]), max_size=8), max_size=5),
    prefix=st.booleans(),
)
def test_words_that_are_not_parted_are_those_a_loop_finds(
    rows: list[list[int]], prefix: bool
) -> None:
    """``prefix``: the tokenizer puts a space before the text, as those of SentencePiece do."""
    tokens = [[PIECES[i] or b"" for i in row] for row in rows]
    texts = [b"".join(each).decode() for each in tokens]
    if prefix:
        rows = [[3, *row] for row in rows]
    counted = [slow_whole_words(text, each) for text, each in zip(texts, tokens, strict=True)]
    words, whole = (sum(each[i] for each in counted) for i in (0, 1))
    found = figures(texts, rows)
    assert found.words == words
    assert found.whole_words == (whole / words if words else None)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5, 4.0])
def test_renyi_entropy(alpha: float) -> None:
    counts = np.array([8, 4, 2, 2])
    p = counts / 16
    want = -(p * np.log2(p)).sum() if alpha == 1 else np.log2((p**alpha).sum()) / (1 - alpha)
    assert renyi_entropy(counts, alpha) == pytest.approx(want)
    assert renyi_entropy(np.full(32, 5), alpha) == pytest.approx(5.0)
    assert renyi_entropy(np.array([], np.int64), alpha) is None


def test_groups_and_premiums() -> None:
    texts = ["ab", "aab", "ab", "é"]
    found = figures(texts, [[2], [0, 2], [0, 1], [5, 6]], ["en", "en", None, "fr"])
    assert found.reference_group == "en"
    assert list(found.groups) == ["en", "(none)", "fr"]
    en, none, fr = found.groups.values()
    assert (en.documents, en.bytes, en.characters, en.tokens) == (2, 5, 5, 3)
    assert (en.premium_per_character, en.premium_per_document) == (1.0, 1.0)
    assert fr.premium_per_character == pytest.approx((2 / 1) / (3 / 5))
    assert fr.premium_per_document == pytest.approx(2 / 1.5)
    assert none.characters_per_token == 1.0
    again = figures(texts, [[2], [0, 2], [0, 1], [5, 6]], ["en", "en", None, "fr"], reference="fr")
    assert again.reference_group == "fr"
    assert again.groups["en"].premium_per_character == pytest.approx((3 / 5) / 2)


def test_groups_beyond_the_most_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_report, "MAX_GROUPS", 2)
    rows = [[2]] * 6
    found = figures(["ab"] * 6, rows, ["a", "b", "c", "d", "a", "e"])
    counts = {name: group.documents for name, group in found.groups.items()}
    assert counts == {"(2 others)": 3, "a": 2, "b": 1}


def test_normalised_length_is_given_for_the_same_texts_alone() -> None:
    first = figures(["ab", "a"], [[2], [0]])
    assert figures(["ab", "a"], [[0, 1], [0]], first=first).nsl == 3 / 2
    assert figures(["ab", "b"], [[0, 1], [1]], first=first).nsl is None
    assert figures(["aba", ""], [[2, 0], []], first=first).nsl is None


def test_nothing_gives_no_figures_but_no_error() -> None:
    found = figures([], [])
    assert (found.tokens, found.fertility, found.renyi_efficiency) == (0, None, None)
    assert (found.ids_for_90, found.curve, found.digit_shares) == (0, [], None)


def test_ids_without_pieces_and_of_several_streams() -> None:
    meter = TokenizerMeter("t", "corpus", 16, 1)
    values = np.array([[1, 2], [1, 3]], np.uint8)
    meter.add(column(["ab", ""]), Ragged(values, np.array([0, 2, 2])))
    found = meter.figures()
    assert (found.tokens, found.used, found.stored_share) == (2, 3, 2.0)
    assert found.vocabulary is None
    assert found.whole_words is None
    notes = list(tokenizer_notes([found]))
    assert any("does not say what its ids stand for" in note for note in notes)


def test_tokens_that_no_text_gives_are_found() -> None:
    """A greedy tokenizer that never makes " a" (id 4), and merges 1 and 2 behind a letter only."""

    def encode(texts: pa.Array) -> Ragged:
        rows = []
        for text in texts.to_pylist():
            row, at, data = [], 0, text.encode()
            while at < len(data):
                options = [2, 0, 1, 3] if at == 0 else [2, 7, 0, 1, 3]
                fitting = [i for i in options if data.startswith(PIECES[i] or b"?", at)]
                row.append(fitting[0] if fitting else 8)
                at += len(PIECES[fitting[0]] or b"") if fitting else 1
            rows.append(row)
        return ragged(rows)

    found = PieceTable(pieces()).figures(encode)
    assert (found.reached, found.unreachable) == (5, 2)
    assert found.unreachable_examples == [(4, " a"), (10, " 7")]


def test_every_byte_of_ascii_is_reached_and_a_merge_is_too() -> None:
    op = ByteText(ByteTextConfig(add_eos=True))
    found = PieceTable(op.pieces()).figures(lambda texts: op({"text": texts})["tokens"])
    assert (found.with_text, found.partial_utf8) == (256, 128)
    assert (found.reached, found.unreachable) == (128, 0)
    bpe = TextTokenizer(TextTokenizerConfig(tokenizer=GOLDEN))
    bpe.setup("cpu")
    found = PieceTable(bpe.pieces()).figures(lambda texts: bpe({"text": texts})["tokens"])
    assert found.reached is not None
    assert found.reached > 200


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="abcdé日 .\n", max_size=40))
def test_damage_is_what_its_name_says(text: str) -> None:
    damaged = {name: damage(text) for name, damage in DAMAGES.items()}
    assert Counter(damaged["letters swapped"]) == Counter(text)
    lost = Counter(text) - Counter(damaged["letters dropped"])
    assert len(damaged["letters dropped"]) == len(text) - lost.total()
    gained = Counter(damaged["letters doubled"]) - Counter(text)
    assert set(gained) <= set(text)
    assert {name: damage(text) for name, damage in DAMAGES.items()} == damaged


def test_damage_happens_to_one_letter_in_twenty() -> None:
    text = "several words of text " * 200
    num_inner = sum(len(word) - 1 for word in text.split())
    lost = len(text) - len(DAMAGES["letters dropped"](text))
    assert 0.03 < lost / num_inner < 0.07
    assert DAMAGES["letters swapped"](text) != text


def test_bytes_are_robust_and_stay_but_for_what_was_damaged() -> None:
    op = ByteText(ByteTextConfig())
    found = robustness(lambda texts: op({"text": texts})["tokens"], column(["some words " * 99]))
    assert all(each.tokens == 1.0 for each in found.values())
    assert found["letters swapped"].kept == 1.0
    assert found["upper case"].kept < 0.2
    assert robustness(lambda texts: None, column(["x"])) == {}


def printed(found: list[TokenizerFigures]) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    for table in tokenizer_tables(found):
        console.print(table)
    return console.export_text()


def test_tables_have_a_column_for_each_tokenizer() -> None:
    first = figures(["ab 12"], [[2, 3, 7]], ["en"])
    text = printed([first, figures(["ab 12"], [[0, 1, 3, 7]], ["en"], first=first)])
    for line in ("tokens by the first's (NSL)", "1.333", "Rényi efficiency", "' 7'"):
        assert line in text, text
    assert "unknown" in text


@pytest.mark.parametrize(
    ("format_", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_plots(format_: str, begin: bytes) -> None:
    pytest.importorskip("matplotlib")
    texts, rows = ["ab 12", "é"], [[2, 3, 7], [5, 6]]
    found = [figures(texts, rows, ["en", "fr"]), figures(texts, rows, ["en", "fr"])]
    assert tokenizer_plots.check_format(f"x.{format_.upper()}") == format_
    assert tokenizer_plots.draw(found, format_).startswith(begin)
    assert tokenizer_plots.draw([figures([], [])], format_).startswith(begin)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(SpecError, match=r"x.gif: unknown format.*\.png, \.svg, \.pdf"):
        tokenizer_plots.check_format("x.gif")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SetupError, match=r"matplotlib is not installed.*tokenmill\[plots\]"):
        tokenizer_plots.draw([figures([], [])], "png")
