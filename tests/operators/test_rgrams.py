"""The trainer rgrams: frozen file, tokens across words, what it learns is what it tokenizes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from operators.text.rgrams import RGrams, RGramsConfig
from operators.text.text_tokenizer import TextTokenizer, TextTokenizerConfig
from tests.operators.test_bpe import merged
from tests.text_documents import documents, quiet, some_texts

TEXTS = some_texts(60)
RGRAMS_SHA256 = "7b718aff5cf7ecc410974e14a5c5707dd456295cbe35c488896f565042932b06"


def trained(texts: list[str] = TEXTS, **options: Any) -> bytes:
    config = RGramsConfig.model_validate({"vocab_size": 480, **options})
    return RGrams(config).train(documents(texts), quiet)["tokenizer.json"]


def model(data: bytes) -> tuple[dict[str, int], list[list[str]]]:
    """Return vocabulary and merges."""
    found = json.loads(data)["model"]
    return found["vocab"], found["merges"]


def test_file_is_frozen() -> None:
    """Data sets are made with such files: a new digest needs a new version of the trainer."""
    assert hashlib.sha256(trained()).hexdigest() == RGRAMS_SHA256


def test_tokens_are_phrases() -> None:
    vocabulary, _ = model(trained())
    assert len(vocabulary) == 480
    assert max(token.strip("Ġ").count("Ġ") for token in vocabulary) >= 2


@pytest.mark.parametrize("within", ["line", "document"])
def test_no_token_goes_across(within: str) -> None:
    vocabulary, _ = model(trained(["a\nb\nc\n" * 3] * 4, within=within))
    inside = any("Ċ" in token[:-1] for token in vocabulary)
    assert inside == (within == "document")


def test_it_ends_when_no_pair_stands_twice() -> None:
    vocabulary, merges = model(trained(["abcd abcd", "xy"]))
    assert len(vocabulary) == 256 + 3
    assert merges == [["a", "b"], ["c", "d"], ["ab", "cd"]]
    assert len(model(trained(["abcd abcd", "xy"], min_count=3))[0]) == 256


@pytest.mark.parametrize("within", ["line", "document"])
def test_tokenizing_repeats_the_training(within: str, tmp_path: Path) -> None:
    """The oracle replaces pair after pair, everywhere, in the order of the merges."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(trained(within=within, special_tokens=["<s>"]))
    vocabulary, merges = model(path.read_bytes())
    operator = TextTokenizer(TextTokenizerConfig(tokenizer=str(path)))
    operator.setup("cpu")
    texts = [*TEXTS[:20], "", "\n", "\n\n", "unseen ü\nlines"]
    found = operator({"text": pa.array(texts, pa.large_string())})
    assert operator.decode(found)["text"].to_pylist() == texts
    ids = [((vocabulary[a], vocabulary[b]), vocabulary[a + b]) for a, b in merges]
    for row, text in enumerate(texts):
        expected: list[int] = []
        for unit in text.splitlines(keepends=True) if within == "line" else [text]:
            tokens = list(unit.encode())
            for pair, new in ids:
                tokens = merged(tokens, pair, new)
            expected += tokens
        assert found["tokens"][row].tolist() == expected


@pytest.mark.parametrize("options", [{"vocab_size": 256}, {"min_count": 1}, {"within": "word"}])
def test_wrong_settings(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        trained(**options)
