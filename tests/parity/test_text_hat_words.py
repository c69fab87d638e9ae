"""hat_words against the splitter that the paper's authors published."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from operators.text.hat_words import HATWords, HATWordsConfig

CASES = json.loads(
    (Path(__file__).parents[1] / "golden/text/hat_splitter/split.json").read_text(encoding="utf-8")
)
LIMITS = [None, *map(int, CASES[0]["limit"])]


def test_there_are_texts() -> None:
    assert len(CASES) == 139
    assert sum(bool(case["limit"]) for case in CASES) == 139


@pytest.mark.parametrize("limit", LIMITS)
def test_every_text_has_the_words_of_the_published_splitter(limit: int | None) -> None:
    op = HATWords(HATWordsConfig(max_word_bytes=limit))
    out = op({"text": pa.array([case["text"] for case in CASES], pa.large_string())})
    for row, case in enumerate(CASES):
        if limit is not None and str(limit) not in case["limit"]:
            continue  # long texts were cut for none
        data, words = out["tokens"][row].tobytes(), []
        for length in out["word_lengths"][row].tolist():
            words.append(data[:length])
            data = data[length:]
        want = [word.encode() for word in case["split"]]
        if limit is not None:
            want = [bytes.fromhex(word) for word in case["limit"][str(limit)]]
        assert (words, data) == (want, b""), case["text"]
