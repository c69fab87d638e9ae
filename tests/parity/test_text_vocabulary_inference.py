"""vocabulary_inference: every case of the authors' code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from operators.text.vocabulary_inference import VocabularyInference, VocabularyInferenceConfig

GOLDEN = Path("tests/golden/text/inference_methods")
SEGMENT = json.loads((GOLDEN / "segment.json").read_text())
HAND = json.loads((GOLDEN / "hand.json").read_text())
METHODS = {
    "merges": "bpe_merges",
    "dropout_1": "bpe_dropout",
    "greedy_prefix": "longest_prefix",
    "longest_suffix": "longest_suffix",
    "longest_token": "longest_token",
    "least_tokens": "fewest_tokens",
    "likelihood": "most_likely",
}


def tokenizer(kind: str) -> Tokenizer:
    if kind == "bpe":
        vocab = {token: i for i, token in enumerate(SEGMENT["bpe"]["tokens"])}
        merges = [tuple(merge.split(" ")) for merge in SEGMENT["bpe"]["merges"]]
        found = Tokenizer(models.BPE(vocab, merges))
    elif kind == "unigram":
        scores = [(token, score) for token, score in SEGMENT["unigram"]["tokens_scores"]]
        found = Tokenizer(models.Unigram(scores, SEGMENT["unigram"]["unk_id"]))
    else:
        vocab = {token: i for i, token in enumerate(SEGMENT["wordpiece"])}
        found = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        found.pre_tokenizer = pre_tokenizers.Whitespace()
        return found
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return found


def tokens(tok: Tokenizer, folder: Path, texts: list[str], method: str) -> list[list[str]]:
    path = folder / "tokenizer.json"
    tok.save(str(path))
    options: dict[str, Any] = {"dropout": 1.0} if method == "bpe_dropout" else {}
    op = VocabularyInference(
        VocabularyInferenceConfig(tokenizer=str(path), method=method, lossless=False, **options)
    )
    op.setup("cpu")
    column = pa.array(texts, pa.large_string())
    ids = op({"text": column, **({"key": column} if options else {})})["tokens"]
    names = {i: token for token, i in tok.get_vocab().items()}
    return [[names[i] for i in ids[row].tolist()] for row in range(len(texts))]


@pytest.mark.parametrize("name", SEGMENT["results"])
def test_tokens_are_those_of_the_authors(name: str, tmp_path: Path) -> None:
    kind, _, method = name.partition("_")
    found = tokens(tokenizer(kind), tmp_path, SEGMENT["texts"], METHODS[method])
    for text, got, want in zip(SEGMENT["texts"], found, SEGMENT["results"][name], strict=True):
        assert got == want, text


@pytest.mark.parametrize("case", HAND, ids=lambda case: case["method"])
def test_words_by_hand(case: dict[str, Any], tmp_path: Path) -> None:
    vocab = {token: i for i, token in enumerate([*case["vocab"], "[UNK]"])}
    prefix = "##" if case["method"].endswith("##") else ""
    model = models.WordPiece(vocab, unk_token="[UNK]", continuing_subword_prefix=prefix)
    method = "longest_token" if case["method"].startswith("flota") else "longest_suffix"
    words = [item["word"] for item in case["items"]]
    assert tokens(Tokenizer(model), tmp_path, words, method) == [
        item["tokens"] for item in case["items"]
    ]


def test_all_cases_are_here() -> None:
    assert len(SEGMENT["results"]) == 14
    assert np.sum([len(case["items"]) for case in HAND]) == 28
