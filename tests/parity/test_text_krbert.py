"""krbert against the authors' code: words, both candidates, the choice."""

from pathlib import Path

import pytest

from operators.text.krbert import KRBert, KRBertConfig, Vocabulary, basic_words
from tests.method_files import golden, id_rows, krbert_file, texts

RUNS = golden("krbert/tokenize")


@pytest.mark.parametrize("run", range(len(RUNS)))
def test_ids(run: int, tmp_path: Path) -> None:
    found = RUNS[run]
    config = KRBertConfig(
        tokenizer=krbert_file(tmp_path, found["vocab"]),
        sub_character=found["sub_character"],
        lower_case=found["do_lower_case"],
        unknown_wins=True,
    )
    op = KRBert(config)
    op.setup("cpu")
    out = op({"text": texts([item["text"] for item in found["items"]])})
    assert id_rows(out["tokens"]) == [item["ids"] for item in found["items"]]


@pytest.mark.parametrize("run", range(len(RUNS)))
def test_words_and_candidates(run: int) -> None:
    """The golden texts of the sub-character runs are decomposed already."""
    found = RUNS[run]
    vocabulary = Vocabulary(found["vocab"])
    for item in found["items"]:
        words = basic_words(item["text"], lower_case=found["do_lower_case"])
        assert words == item["basic"]
        for word, forwards, backwards in zip(words, item["forward"], item["backward"], strict=True):
            for ids, want in (
                (vocabulary.forwards(word), forwards),
                (vocabulary.backwards(word), backwards),
            ):
                tokens = ["[UNK]"] if ids is None else [found["vocab"][i] for i in ids]
                assert tokens == want
