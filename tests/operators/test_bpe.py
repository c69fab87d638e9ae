"""The trainers bpe and superbpe: frozen files, an oracle, what is lost, and every mistake."""

import hashlib
import json
from base64 import b64decode
from collections import Counter
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import Ragged
from operators.errors import ContractError
from operators.text.algorithms.bpe_training import learn_merges
from operators.text.algorithms.pretokens import PATTERNS, splitter
from operators.text.bpe import BPE, BPEConfig
from operators.text.superbpe import SuperBPE, SuperBPEConfig
from operators.text.text_tokenizer import TextTokenizer, TextTokenizerConfig
from tests.text_documents import documents, quiet, some_texts

TEXTS = some_texts(200)
BPE_SHA256 = "4db369c1abc95e6a5d76797d7d00f976dde0f94ad0e3702e7b0d2497e08e2cb8"
SUPERBPE_SHA256 = "4fe92dff48fc54c24a87a4c4e3f531f941b87f186bddded0366010d7f72fcfe2"


def trained(**settings: object) -> dict[str, bytes]:
    config = BPEConfig.model_validate({"vocab_size": 400, **settings})
    return dict(BPE(config).train(documents(TEXTS), quiet))


def super_trained(**settings: object) -> bytes:
    config = SuperBPEConfig.model_validate({"vocab_size": 420, "transition_size": 360, **settings})
    return SuperBPE(config).train(documents(TEXTS), quiet)["tokenizer.json"]


def tokenize(path: str, texts: list[str]) -> tuple[Ragged, list[str]]:
    """Return ids, and what they decode to."""
    operator = TextTokenizer(TextTokenizerConfig(tokenizer=path))
    operator.setup("cpu")
    out = operator({"text": pa.array(texts, pa.large_string())})
    return out["tokens"], operator.decode(out)["text"].to_pylist()


def test_files_are_frozen() -> None:
    """Data sets are made with such files: a new digest needs a new version of the trainer."""
    assert hashlib.sha256(trained()["tokenizer.json"]).hexdigest() == BPE_SHA256
    assert hashlib.sha256(super_trained()).hexdigest() == SUPERBPE_SHA256


def test_how_documents_are_handed_over_changes_nothing() -> None:
    config = BPEConfig(vocab_size=400)
    together = BPE(config).train(documents(TEXTS, at_once=200), quiet)
    assert together == trained()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_bpe_learns_tokenizes_and_comes_back(pattern: str, tmp_path: object) -> None:
    path = f"{tmp_path}/tokenizer.json"
    with open(path, "wb") as file:
        file.write(trained(pattern=pattern)["tokenizer.json"])
    texts = ["", "the of and", "\x00 ünseen 漢字 \r\n  \t😀", TEXTS[0]]
    tokens, back = tokenize(path, texts)
    assert back == texts
    assert len(tokens[1]) < len("the of and")


def test_tokens_of_superbpe_span_words(tmp_path: object) -> None:
    path = f"{tmp_path}/tokenizer.json"
    with open(path, "wb") as file:
        file.write(super_trained())
    vocabulary = json.loads(super_trained())["model"]["vocab"]
    assert len(vocabulary) == 420
    words = [len([part for part in token.split("Ġ") if part]) for token in vocabulary]
    assert 2 <= max(words) <= 4
    assert max(words[:360]) == 1
    tokens, back = tokenize(path, TEXTS[:20])
    assert back == TEXTS[:20]
    assert tokens.values.max() >= 360


def test_limits_of_superbpe_can_be_lifted() -> None:
    texts = ["note: see how it is that they are there then: see how it is that they are"] * 9
    config = {"vocab_size": 330, "transition_size": 300}
    found = {}
    for options in ({}, {"max_words": None}, {"across_colons": True}):
        trainer = SuperBPE(SuperBPEConfig.model_validate({**config, **options}))
        files = trainer.train(documents(texts), quiet)
        vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
        words = max(len([part for part in token.split("Ġ") if part]) for token in vocabulary)
        found[str(options)] = (words, any(":Ġ" in token for token in vocabulary))
    assert found["{}"] == (4, False)
    assert found["{'max_words': None}"][0] > 4
    assert found["{'across_colons': True}"] == (4, True)


def test_special_tokens_and_fillers_follow() -> None:
    files = trained(special_tokens=["<s>", "</s>"], multiple_of=64, vocab_size=400)
    added = json.loads(files["tokenizer.json"])["added_tokens"]
    assert [(token["id"], token["content"]) for token in added[:3]] == [
        (400, "<s>"),
        (401, "</s>"),
        (402, "<|special-402|>"),
    ]
    assert added[-1]["id"] == 447
    lines = files["vocab.tiktoken"].decode().splitlines()
    assert [int(line.split()[1]) for line in lines] == list(range(448))
    assert b64decode(lines[97].split()[0]) == b"a"
    assert b64decode(lines[447].split()[0]) == b"<|special-447|>"


def test_max_token_length_is_not_reached() -> None:
    tokens = json.loads(trained(max_token_length=4)["tokenizer.json"])["model"]["vocab"]
    assert max(map(len, tokens)) == 3
    tokens = json.loads(trained(max_token_length=2)["tokenizer.json"])["model"]["vocab"]
    assert max(map(len, tokens)) == 2


def test_rare_pairs_are_not_merged() -> None:
    many = json.loads(trained(min_count=1)["tokenizer.json"])["model"]["vocab"]
    few = json.loads(trained(min_count=150)["tokenizer.json"])["model"]["vocab"]
    assert 256 < len(few) < len(many) == 400


def test_alphabet_of_the_sample_alone() -> None:
    vocabulary = json.loads(trained(alphabet="seen")["tokenizer.json"])["model"]["vocab"]
    assert "Q" not in vocabulary
    assert next(iter(vocabulary)) == "'"


@settings(max_examples=50, deadline=None)
@given(
    words=st.dictionaries(st.binary(min_size=1, max_size=8), st.integers(1, 4), max_size=8)
    | st.dictionaries(st.text("ab", max_size=8).map(str.encode), st.integers(1, 4), max_size=8),
    num_merges=st.integers(1, 12),
)
def test_merges_are_those_of_counting_anew(words: dict[bytes, int], num_merges: int) -> None:
    """The oracle counts all pairs before every merge; a pair that was merged is gone for good."""
    rows = [([*word], count) for word, count in words.items()]
    tokens = [bytes([byte]) for byte in range(256)]
    merges: list[tuple[bytes, bytes]] = []
    done = set()
    while len(tokens) < 256 + num_merges:
        counts: Counter[tuple[int, int]] = Counter()
        for row, count in rows:
            for pair in pairwise(row):
                counts[pair] += count
        left = {pair: count for pair, count in counts.items() if pair not in done}
        if not left:
            break
        best = min(left, key=lambda pair: (-left[pair], pair))
        done.add(best)
        token = tokens[best[0]] + tokens[best[1]]
        assume(token not in tokens)
        merges.append((tokens[best[0]], tokens[best[1]]))
        tokens.append(token)
        rows = [(merged(row, best, len(tokens) - 1), count) for row, count in rows]
    learnt = learn_merges(words, range(256), 256 + num_merges, quiet)
    assert learnt.merges == merges
    assert learnt.tokens == tokens


def merged(row: list[int], pair: tuple[int, int], new: int) -> list[int]:
    out: list[int] = []
    at = 0
    while at < len(row):
        is_pair = tuple(row[at : at + 2]) == pair
        out.append(new if is_pair else row[at])
        at += 2 if is_pair else 1
    return out


@pytest.mark.parametrize("pattern", [r"\w+", r"(\w)\w*", r"(?:a|b)+"])
@pytest.mark.parametrize("text", ["", "ab, cd!", "aab", "  ", "\nab\n"])
def test_pieces_that_are_kept_make_up_the_text(pattern: str, text: str) -> None:
    assert "".join(splitter(pattern, "keep")(text)) == text


def test_pieces_that_do_not_match_can_be_dropped() -> None:
    assert list(splitter(r"\w+", "drop")("ab, cd!")) == ["ab", "cd"]
    assert list(splitter(r"(\w)\w*", "drop")("ab, cd!")) == ["ab", "cd"]


def test_wrong_pattern() -> None:
    with pytest.raises(ContractError, match=r"pattern '\(a': missing \).*one of gpt2, gpt4"):
        trained(pattern="(a")


def test_pattern_that_matches_nothing() -> None:
    with pytest.raises(ContractError, match="matches nothing in the documents; set unmatched"):
        trained(pattern="QQQ", unmatched="drop")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"vocab_size": 256}, "greater than 256"),
        ({"max_token_length": 1}, "greater than or equal to 2"),
        ({"special_tokens": ["<s>", "<s>"]}, "'<s>'.* stand twice"),
        ({"patern": "gpt4"}, "Extra inputs"),
    ],
)
def test_wrong_settings(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        trained(**settings)


def test_transition_behind_the_end() -> None:
    with pytest.raises(ValidationError, match="transition_size=500 is more than vocab_size=420"):
        super_trained(transition_size=500)
