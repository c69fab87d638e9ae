"""lib: the contract, a slow reading, text -> ids -> text, the trainer, every mistake."""

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.base import FieldSpec, Invertible
from operators.errors import ContractError, RowErrors, SetupError
from operators.testing import assert_operator_contract
from operators.text.algorithms.lexicon_learning import Habits, Reader
from operators.text.lib import LiB, LiBConfig, LiBTrainer, LiBTrainerConfig
from tests.method_files import golden, id_rows, lib_file, texts, undecodable

LEXICON = ["the", "a", " ", "thea", "e", "é", "日本", "日", "ther", "t", "h", "th"]
TEXTS = st.text(st.sampled_from("theaérn日本語 😀\n\u2003"), max_size=20)

FROZEN = [[227, 83, 4, 41, 216, 125, 41], [], [568, 542], [0, 405, 33]]


def ready(
    folder: Path, lexicon: list[str] | None = None, spaces: str = "keep", **options: Any
) -> LiB:
    op = LiB(LiBConfig(tokenizer=lib_file(folder, lexicon, spaces), **options))
    op.setup("cpu")
    return op


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> LiB:
    return ready(tmp_path_factory.mktemp("lib"), LEXICON)


def slow_reading(text: str, lexicon: list[str], max_len: int = 12) -> list[int]:
    found = []
    while text:
        fits = [chunk for chunk in lexicon if text.startswith(chunk) and len(chunk) <= max_len]
        chunk = max(fits, key=len, default=text[0])
        if chunk in lexicon:
            found.append(lexicon.index(chunk))
        else:
            found += [len(lexicon) + byte for byte in chunk.encode()]
        text = text[len(chunk) :]
    return found


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(TEXTS, min_size=1, max_size=4))
def test_any_text_is_read_as_defined_and_comes_back(small: LiB, rows: list[str]) -> None:
    out = small({"text": texts(rows)})
    assert id_rows(out["tokens"]) == [slow_reading(row, LEXICON) for row in rows]
    assert small.decode(out)["text"].to_pylist() == rows


@pytest.mark.parametrize("seed", range(5))
def test_every_short_text_by_every_kind_of_lexicon(tmp_path: Path, seed: int) -> None:
    chunks = ["".join(p) for n in (1, 2, 3, 4) for p in itertools.product("ab", repeat=n)]
    lexicon = random.Random(seed).sample(chunks, 9)
    rows = ["".join(p) for n in range(8) for p in itertools.product("ab", repeat=n)]
    out = ready(tmp_path, lexicon, max_len=3)({"text": texts(rows)})["tokens"]
    assert id_rows(out) == [slow_reading(row, lexicon, 3) for row in rows]


def slow_halves(chunk: str, lexicon: list[str]) -> list[str]:
    pairs = [
        (lexicon.index(a), lexicon.index(b))
        for a, b in itertools.product(lexicon, repeat=2)
        if a + b == chunk
    ]
    best = min(pairs, default=None)
    if best is None or max(best) >= lexicon.index(chunk):
        return [chunk]
    return [lexicon[best[0]], lexicon[best[1]]]


@pytest.mark.parametrize("seed", range(5))
def test_chunks_are_decomposed_twice(tmp_path: Path, seed: int) -> None:
    chunks = ["".join(p) for n in (1, 2, 3, 4) for p in itertools.product("ab", repeat=n)]
    lexicon = random.Random(seed).sample(chunks, 20)
    out = ready(tmp_path, lexicon, decompose=True)({"text": texts(lexicon)})["tokens"]
    for chunk, ids in zip(lexicon, id_rows(out), strict=True):
        halves = slow_halves(chunk, lexicon)
        quarters = [part for half in halves for part in slow_halves(half, lexicon)]
        assert [lexicon[i] for i in ids] == quarters


def test_contract_and_frozen_ids(tmp_path: Path) -> None:
    """Published shards hold these ids: other ones need a new version."""
    op = ready(tmp_path)
    rows = ["writessumargs", "", "é", "the file"]
    out = assert_operator_contract(op, {"text": texts(rows)})
    assert op.outputs == {"tokens": FieldSpec("uint16", (None,), 373 + 256)}
    assert id_rows(out["tokens"]) == FROZEN
    assert isinstance(op, Invertible)
    assert op.metadata()["first_byte_id"] == 373


def test_unknown_characters_of_one_id(tmp_path: Path) -> None:
    op = ready(tmp_path, ["a"], unknown="one_id")
    out = op({"text": texts(["a語b"])})
    assert id_rows(out["tokens"]) == [[0, 1, 1]]
    assert op.decode(out)["text"].to_pylist() == ["a\ufffd\ufffd"]
    assert op.metadata()["special_ids"] == {"<unknown>": 1}


def test_a_lexicon_without_spaces_reads_without_them(tmp_path: Path) -> None:
    op = ready(tmp_path, ["ab"], spaces="remove")
    spaces = [chr(i) for i in range(0x3001) if chr(i).isspace()]
    out = op({"text": texts([f"a{space}b" for space in spaces])})
    assert id_rows(out["tokens"]) == [[0]] * len(spaces)


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "[]",
        '{"lexicon": ["a"]}',
        '{"lexicon": [], "spaces": "keep"}',
        '{"lexicon": ["a", "a"], "spaces": "keep"}',
        '{"lexicon": ["a", ""], "spaces": "keep"}',
        '{"lexicon": ["a", 1], "spaces": "keep"}',
        '{"lexicon": ["a"], "spaces": "some"}',
    ],
)
def test_a_file_that_is_no_lexicon(tmp_path: Path, content: str) -> None:
    (tmp_path / "lib.json").write_text(content)
    op = LiB(LiBConfig(tokenizer=str(tmp_path / "lib.json")))
    with pytest.raises(SetupError, match=r"lib.json' is no lexicon of this method; expected JSON"):
        op.setup("cpu")


def test_a_missing_file(tmp_path: Path) -> None:
    op = LiB(LiBConfig(tokenizer=str(tmp_path / "lib.json")))
    with pytest.raises(SetupError, match=r"lib: tokenizer .* has no file lib.json"):
        op.identity()


def test_text_that_is_no_text_goes_to_the_quarantine(small: LiB) -> None:
    with pytest.raises(RowErrors) as caught:
        small({"text": undecodable([b"\xff", b"a"])})
    assert list(caught.value.errors) == [0]
    assert id_rows(caught.value.good["tokens"]) == [[1]]


def trained(rows: list[str], **options: Any) -> bytes:
    def documents() -> Iterator[pa.Array]:
        for start in range(0, len(rows), 7):
            yield texts(rows[start : start + 7])

    config = LiBTrainerConfig.model_validate(options)
    return LiBTrainer(config).train(documents, lambda *_: None)["lib.json"]


def test_training_reads_articles_across_documents() -> None:
    """As the reader that is checked against the authors' code, which begins with all characters."""
    sentences = golden("lib/train")["sentences"]
    reader = Reader(Habits(), random.Random(1).random)
    reader.begin(sorted(set("".join(sentences[:20]))))
    for start in range(0, len(sentences), 20):
        reader.read(sentences[start : start + 20])

    lines = ["\n".join(sentences[:3]), "\n\n", *sentences[3:]]
    file = trained(lines, article_sentences=20, seed=1)
    assert json.loads(file) == {"spaces": "keep", "lexicon": reader.lexicon}
    assert file == trained(lines, article_sentences=20, seed=1)
    spaced = [line.replace("a", " a\u3000") for line in lines]
    removed = json.loads(trained(spaced, article_sentences=20, seed=1, spaces="remove"))
    assert removed == {"spaces": "remove", "lexicon": reader.lexicon}


def test_passes_and_seeds_change_the_lexicon() -> None:
    lines = golden("lib/train")["sentences"]
    one = trained(lines, article_sentences=10)
    assert one != trained(lines, article_sentences=10, passes=2)
    assert one != trained(lines, article_sentences=10, seed=1)


def test_a_long_line_is_cut(tmp_path: Path) -> None:
    lexicon = json.loads(trained(["ab" * 2500], passes=5))["lexicon"]
    assert all(len(chunk) <= 12 for chunk in lexicon)
    assert any(len(chunk) > 1 for chunk in lexicon)


def test_no_text_to_learn_from() -> None:
    with pytest.raises(ContractError, match=r"lib: there is no text to learn from"):
        trained(["", "\n"])
