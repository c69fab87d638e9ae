"""splinter: text -> splintered -> text, a slow beam, the trainer, every mistake."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import Invertible
from operators.errors import ContractError, RowErrors, SetupError
from operators.testing import assert_operator_contract
from operators.text.algorithms.word_splinters import (
    LANGUAGES,
    WordSplinterer,
    learn_reductions,
    put_together,
    taken_out,
)
from operators.text.splinter import (
    Splinter,
    SplinterConfig,
    SplinterTrainer,
    SplinterTrainerConfig,
)
from tests.method_files import golden, splinter_file, texts, undecodable

HEBREW = st.text(st.sampled_from("אבגדהוזכךלםמןנףפץצשת"), min_size=1, max_size=10)
PIECES = st.one_of(
    HEBREW,
    st.sampled_from([" ", "\n", ". ", "-", '"', "(", "\u05b0", "\u05be", "\u2003", "?", "abc"]),
    st.text(st.characters(min_codepoint=0x4FFE, max_codepoint=0x5024), max_size=3),
    st.text(max_size=3),
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)

FROZEN = "4b1ae856efe61b818a1a70b93823e4459b01ad002d378a2a8335609f7dd605d5"


def ready(folder: Path, run: int = 0, **options: Any) -> Splinter:
    op = Splinter(SplinterConfig(tokenizer=splinter_file(folder, run), **options))
    op.setup("cpu")
    return op


@pytest.fixture(scope="module")
def hebrew(tmp_path_factory: pytest.TempPathFactory) -> Splinter:
    return ready(tmp_path_factory.mktemp("splinter"))


@settings(max_examples=300, deadline=None)
@example(rows=["", "\u5000", "\u5022\u5022א", "סֵפֶר, ספר. abcך"])
@given(rows=st.lists(TEXTS, min_size=1, max_size=4))
def test_any_text_comes_back(hebrew: Splinter, rows: list[str]) -> None:
    out = hebrew({"text": texts(rows)})
    assert hebrew.decode(out)["text"].to_pylist() == rows


@pytest.mark.parametrize("run", range(4))
def test_words_are_rewritten_as_the_authors_do(tmp_path: Path, run: int) -> None:
    """Where nothing is lost anyway, ``lossless`` changes nothing."""
    language = LANGUAGES[golden("splinter/train")[run]["language"]]
    rows = list(language.words(golden("splinter/train")[run]["word_counts"], 1))
    assert len(rows) > 50
    lossless = ready(tmp_path, run)({"text": texts(rows)})
    assert lossless["splintered"].equals(
        ready(tmp_path, run, lossless=False)({"text": texts(rows)})["splintered"]
    )


def slow_best_step(word: str, shares: dict[int, dict[str, float]], depth: int = 3) -> Any:
    """The first step of the best of all paths of ``depth`` steps; None if none is so long."""
    if depth == 0 or len(word) == 3:
        return 1.0, None
    best = None
    fits = [key for key in shares.get(len(word), {}) if word[int(key[:-2])] == key[-1]]
    for key in fits[:3]:
        rest = slow_best_step(taken_out(word, int(key[:-2])), shares, depth - 1)
        if rest is not None:
            score = shares[len(word)][key] * rest[0]
            if best is None or score > best[0]:
                best = (score, key)
    return best


def slow_units(word: str, shares: dict[int, dict[str, float]]) -> list[str]:
    taken: list[str] = []
    while len(word) > 3 and (best := slow_best_step(word, shares)):
        taken.append(best[1])
        word = taken_out(word, int(best[1][:-2]))
    return [*word, *reversed(taken)]


def test_every_short_word_is_taken_apart_as_defined_and_put_together() -> None:
    # Powers of two: products are exact, and many paths have the same.
    shares = {
        4: {"0:a": 0.5, "-1:b": 0.25, "1:a": 0.25},
        5: {"-1:a": 0.5, "0:b": 0.25, "2:a": 0.25},
        6: {"1:b": 0.5, "0:a": 0.5, "-2:a": 0.5, "-3:b": 0.5},
        7: {"3:a": 0.5, "-1:b": 0.5},
    }
    splinterer = WordSplinterer(shares)
    words = ["".join(p) for n in range(9) for p in itertools.product("ab", repeat=n)]
    for word in words:
        units = splinterer.take_apart(word)
        assert units == slow_units(word, shares)
        assert put_together(units) == word
    assert max(len(splinterer.take_apart(word)) for word in words) == 8


def test_contract_and_frozen_text(tmp_path: Path) -> None:
    """Tokenizers are trained on this text: another one needs a new version."""
    rows = ["שלום עולם, זה ספר (חדש).\nכתב-יד:", "", "הסיפורים abc", "היליד  ההגדל"]
    op = ready(tmp_path)
    out = assert_operator_contract(op, {"text": texts(rows)})["splintered"].to_pylist()
    assert out[0] == "倠倓倕倀 候倓倕倅, 倍個 倘倛借 (倎倊倠).\n倒倡倈-倐倊:"
    digest = hashlib.sha256("\0".join(out).encode()).hexdigest()
    assert digest == FROZEN
    assert isinstance(op, Invertible)
    json.dumps(dict(op.metadata()))


def test_a_new_character_in_the_text_is_escaped(hebrew: Splinter) -> None:
    out = hebrew({"text": texts(["倀"])})["splintered"].to_pylist()
    last = max(golden("splinter/train")[0]["new_unicode_chars"].values())
    assert out == [chr(ord(last) + 1) + "倀"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", r"is no map of this method"),
        ('{"language": "he"}', r"no map of this method: KeyError\('reductions'\)"),
        ('{"language": "xx", "reductions": {}, "codes": {}}', r"KeyError\('xx'\)"),
        ('{"language": "ar", "reductions": {}, "codes": {}}', r"it has no codes for \["),
    ],
)
def test_a_file_that_is_no_map(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "splinter.json").write_text(content)
    op = Splinter(SplinterConfig(tokenizer=str(tmp_path / "splinter.json")))
    with pytest.raises(SetupError, match=message):
        op.setup("cpu")


def test_a_missing_file(tmp_path: Path) -> None:
    op = Splinter(SplinterConfig(tokenizer=str(tmp_path / "splinter.json")))
    with pytest.raises(SetupError, match=r"splinter: tokenizer .* has no file splinter.json"):
        op.identity()


def test_text_that_is_no_text_goes_to_the_quarantine(hebrew: Splinter) -> None:
    with pytest.raises(RowErrors) as caught:
        hebrew({"text": undecodable([b"a", b"\xff"])})
    assert list(caught.value.errors) == [1]
    assert caught.value.good["splintered"].to_pylist() == ["a"]


def documents_of(counts: dict[str, int]) -> Any:
    """Return documents with words of these counts, in two arrays, with punctuation and marks."""

    def documents() -> Iterator[pa.Array]:
        for part in (0, 1):
            rows = [
                ", ".join([word] * (count // 2 + part * (count % 2))) + "."
                for word, count in counts.items()
            ]
            yield texts(rows)

    return documents


def trained(counts: dict[str, int], **options: Any) -> dict[str, bytes]:
    config = SplinterTrainerConfig.model_validate(options)
    return dict(SplinterTrainer(config).train(documents_of(counts), lambda *_: None))


@pytest.mark.parametrize("run", range(4))
def test_training_counts_words_and_gives_the_authors_map(run: int, tmp_path: Path) -> None:
    found = golden("splinter/train")[run]
    letters = found["letters_for_reductions"]
    options = {"language": found["language"], "letters": letters and "".join(letters)}
    counts = {word: count for word, count in found["word_counts"].items() if word}
    files = trained(counts, first_code=0x5000, **options)
    assert files == trained(counts, first_code=0x5000, **options), "not deterministic"
    content = json.loads(files["splinter.json"])
    assert content["codes"] == found["new_unicode_chars"]
    want = {n: shares for n, shares in found["reductions_map"].items() if n != "1"}
    assert content["reductions"] == want

    (tmp_path / "splinter.json").write_bytes(trained(counts, **options)["splinter.json"])
    op = Splinter(SplinterConfig(tokenizer=str(tmp_path / "splinter.json")))
    op.setup("cpu")
    words = list(LANGUAGES[found["language"]].words(counts, 1))
    out = op({"text": texts(words)})
    assert op.decode(out)["text"].to_pylist() == words
    assert all("\ue000" <= char < "\uf8ff" for char in "".join(out["splintered"].to_pylist()))


def test_training_counts_through_diacritics() -> None:
    counts = {"ספר": 6, "סֵפֶר": 5, "הספר": 12}
    reductions = json.loads(trained(counts, language="he")["splinter.json"])["reductions"]
    assert reductions == {"4": {"0:ה": 1.0}}


def test_no_words_to_learn_from() -> None:
    assert learn_reductions({}, None) == {}
    with pytest.raises(ContractError, match=r"none of \d+ words has at least 10 .*'he'.*min_count"):
        trained({"ספר": 3, "abc": 50}, language="he")


@pytest.mark.parametrize("first_code", [0xD7F0, 0xDFF0, 0x10F000 + 0xFF0])
def test_characters_without_room(first_code: int) -> None:
    if first_code > 0x10F000:
        with pytest.raises(ValidationError, match="first_code"):
            SplinterTrainerConfig(language="he", first_code=first_code)
        return
    with pytest.raises(ContractError, match=r"leaves no room for .* first_code: 0xE000"):
        trained({"ספר": 30}, language="he", first_code=first_code)
