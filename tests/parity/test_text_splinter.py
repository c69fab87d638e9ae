"""splinter against the authors' code: maps, characters, rewritten text."""

from pathlib import Path

import pytest

from operators.text.algorithms.word_splinters import LANGUAGES, learn_reductions, put_together
from operators.text.splinter import (
    AUTHORS_FIRST_CODE,
    Splinter,
    SplinterConfig,
    codes_of,
)
from tests.method_files import golden, splinter_file, texts

RUNS = golden("splinter/train")


@pytest.mark.parametrize("run", range(len(RUNS)))
def test_map_and_characters(run: int) -> None:
    found = RUNS[run]
    language = LANGUAGES[found["language"]]
    words = language.words(found["word_counts"], 10)
    reductions = learn_reductions(words, found["letters_for_reductions"])
    want = {int(length): shares for length, shares in found["reductions_map"].items()}
    assert list(want.pop(1)) == list(language.letters)
    ordered = {length: list(shares.items()) for length, shares in reductions.items()}
    assert ordered == {length: list(shares.items()) for length, shares in want.items()}
    assert codes_of(language.letters, reductions, AUTHORS_FIRST_CODE) == found["new_unicode_chars"]


@pytest.mark.parametrize("run", range(len(RUNS)))
def test_rewritten_text(run: int, tmp_path: Path) -> None:
    op = Splinter(SplinterConfig(tokenizer=splinter_file(tmp_path, run), lossless=False))
    op.setup("cpu")
    items = RUNS[run]["items"]
    out = op({"text": texts([item["text"] for item in items])})["splintered"].to_pylist()
    assert out == [item["encoded"] for item in items]


def test_units_make_up_the_words() -> None:
    for found in RUNS:
        language = LANGUAGES[found["language"]]
        for item in found["items"]:
            words = item["baseline"].split()
            for word, units in zip(words, item["decoded_units"], strict=True):
                assert put_together(units) == word
            assert language.swap_final(language.swap_final(item["text"])) == item["text"]
