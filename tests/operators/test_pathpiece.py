"""pathpiece: against every segmentation of short strings, frozen ids, its trainer, its errors."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import FieldSpec, HasPieces, Invertible, Ragged
from operators.errors import ContractError, RowErrors, SetupError
from operators.testing import assert_operator_contract
from operators.text.algorithms.byte_segments import fewest_tokens, longest_prefixes
from operators.text.algorithms.pathpiece_training import (
    Pieces,
    frequent_strings,
    merged_strings,
    omissions,
)
from operators.text.algorithms.trie import build_trie
from operators.text.pathpiece import (
    PathPiece,
    PathPieceConfig,
    PathPieceTrainer,
    PathPieceTrainerConfig,
)

BYTES = [bytes([byte]) for byte in range(256)]
WORDS = [b"th", b"the", b" the", b"mi", b"ill", b"mill", b" m", b"l w", b"12", b"\xc3\xbc"]
TEXTS = ["the mill, the mühle", "", " 1234 mills", "x" * 40, "a <|endoftext|> b"]
SHORT = st.text("ab", max_size=9).map(str.encode)
TOKENS = st.sets(st.text("ab", min_size=1, max_size=5).map(str.encode), min_size=1, max_size=9)


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def vocabulary(folder: Path, tokens: list[bytes]) -> str:
    path = folder / "vocab.txt"
    path.write_text("".join(f"{token.hex()}\n" for token in tokens))
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return vocabulary(tmp_path, [*BYTES, *WORDS])


def ready(path: str, **options: Any) -> PathPiece:
    op = PathPiece(PathPieceConfig(tokenizer=path, **options))
    op.setup("cpu")
    return op


def spelled(op: PathPiece, text: str) -> list[str]:
    ids = op({"text": column([text])})["tokens"].values.tolist()
    names = ["<|endoftext|>", *[token.decode("latin-1") for token in [*BYTES, *WORDS]]]
    return [names[i] for i in ids]


def ways(text: bytes, tokens: set[bytes]) -> Iterator[list[bytes]]:
    """Yield every segmentation."""
    if not text:
        yield []
    for end in range(1, len(text) + 1):
        if text[:end] in tokens:
            for rest in ways(text[end:], tokens):
                yield [text[:end], *rest]


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(SHORT, min_size=1, max_size=4), tokens=TOKENS, seed=st.integers(0, 2**64 - 1))
def test_no_segmentation_is_shorter(texts: list[bytes], tokens: set[bytes], seed: int) -> None:
    names = sorted(tokens)
    ids = {token: i for i, token in enumerate(names)}
    widths = np.array([len(token) for token in names], np.int32)
    values = np.frombuffer(b"".join(texts), np.uint8)
    cuts = np.cumsum([0, *map(len, texts)])
    backwards, forwards = build_trie(ids, is_reversed=True), build_trie(ids)
    longest = fewest_tokens(values, cuts, backwards, widths, "uint8", None)
    drawn = fewest_tokens(values, cuts, backwards, widths, "uint8", seed)
    greedy = longest_prefixes(values, cuts, forwards, forwards.longest, "uint8")
    for i, text in enumerate(texts):
        every = list(ways(text, tokens))
        found = [
            [names[t] for t in Ragged(result.ids, result.firsts)[i]]
            for result in (longest, drawn, greedy)
        ]
        if not every:
            assert found == [[], [], []]
            assert all(result.stuck_at[i] >= cuts[i] for result in (longest, drawn, greedy))
            continue
        fewest = min(map(len, every))
        shortest = [way for way in every if len(way) == fewest]
        # The last token is the longest, then the one before it, and so on.
        assert found[0] == max(shortest, key=lambda way: [len(token) for token in way[::-1]])
        assert found[1] in shortest
        if greedy.stuck_at[i] < 0:
            assert found[2] == max(every, key=lambda way: [len(token) for token in way])


def test_draws_reach_every_shortest_way() -> None:
    tokens = [b"a", b"aa", b"aaa"]
    backwards = build_trie({token: i for i, token in enumerate(tokens)}, is_reversed=True)
    values, cuts = np.frombuffer(b"aaaa", np.uint8), np.array([0, 4])
    widths = np.array([1, 2, 3], np.int32)
    found = {
        tuple(fewest_tokens(values, cuts, backwards, widths, "uint8", seed).ids.tolist())
        for seed in range(40)
    }
    assert found == {(0, 2), (1, 1), (2, 0)}


@pytest.mark.parametrize("segmentation", ["longest", "random", "greedy"])
@pytest.mark.parametrize("pretokenization", ["none", "first_space", "space"])
def test_contract_and_round_trip(path: str, segmentation: str, pretokenization: str) -> None:
    op = ready(path, segmentation=segmentation, pretokenization=pretokenization, split_digits=True)
    out = assert_operator_contract(op, {"text": column(TEXTS)})
    assert isinstance(op, Invertible)
    assert op.decode(out)["text"].to_pylist() == TEXTS


def test_ids_are_frozen(path: str) -> None:
    """Published shards hold these ids: other ones need a new version."""
    out = ready(path, segmentation="random", add_eos=True)({"text": column(TEXTS)})["tokens"]
    assert out.values.dtype == np.uint16
    digest = hashlib.sha256(out.values.tobytes() + out.offsets.tobytes()).hexdigest()
    assert digest == "3ad40b439f4a763fa5951da3c844ab14816b37150edc6da30dbebc59cac6ea1e"


def test_pieces_are_the_bytes_of_the_file(path: str) -> None:
    op = PathPiece(PathPieceConfig(tokenizer=path))
    assert isinstance(op, HasPieces)
    assert op.pieces().texts.to_pylist() == [None, *BYTES, *WORDS]


def test_tokens_stay_inside_pieces(path: str) -> None:
    text = "mill will 123"
    assert spelled(ready(path), text) == ["mi", "l", "l w", "ill", " ", "12", "3"]
    first = ready(path, pretokenization="first_space")
    assert spelled(first, text) == ["mill", " ", "w", "ill", " ", "12", "3"]
    space = ready(path, pretokenization="space", split_digits=True)
    assert spelled(space, "the the1") == ["the", " ", "the", "1"]
    assert spelled(first, "the the") == ["the", " the"]
    assert spelled(ready(path, split_digits=True), "123") == ["1", "2", "3"]


def test_the_special_token_in_a_text_is_text_unless_asked_for(path: str) -> None:
    text = column(["a<|endoftext|>"])
    escaped = ready(path, add_bos=True, add_eos=True)
    out = escaped({"text": text})["tokens"]
    assert [out.values[0], out.values[-1], (out.values == 0).sum()] == [0, 0, 2]
    assert escaped.decode({"tokens": out})["text"].to_pylist() == ["a<|endoftext|>"]
    parsed = ready(path, special_tokens_in_text="parse")
    out = parsed({"text": text})["tokens"]
    assert out.values.tolist() == [98, 0]
    assert parsed.decode({"tokens": out})["text"].to_pylist() == ["a<|endoftext|>"]
    assert escaped.metadata() == {
        "vocab_size": 267,
        "special_ids": {"<|endoftext|>": 0},
        "bos_id": 0,
        "eos_id": 0,
    }
    assert escaped.outputs == {"tokens": FieldSpec("uint16", (None,), 267)}


def test_a_text_that_cannot_be_spelled_is_told_apart(tmp_path: Path) -> None:
    op = ready(vocabulary(tmp_path, [b"a", b"ab", b"c"]))
    with pytest.raises(RowErrors) as caught:
        op({"text": column(["abc", "cabb", "a", "b"])})
    assert sorted(caught.value.errors) == [1, 3]
    assert "from byte 3 of the text" in caught.value.errors[1].message
    assert "from byte 0 of the text" in caught.value.errors[3].message
    assert caught.value.good["tokens"].values.tolist() == [2, 3, 1]
    assert caught.value.good["tokens"].offsets.tolist() == [0, 2, 3]


def test_no_utf8_is_told_apart(path: str) -> None:
    buffers = [None, pa.py_buffer(np.array([0, 1, 3])), pa.py_buffer(b"a\xc3(")]
    texts = pa.Array.from_buffers(pa.large_string(), 2, buffers)
    with pytest.raises(RowErrors) as caught:
        ready(path)({"text": texts})
    assert "no UTF-8" in caught.value.errors[1].message
    assert caught.value.good["tokens"].values.tolist() == [98]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"61\nxy\n", "line 2 is b'xy'"),
        (b"61\n\n62\n", "line 2 is b''"),
        (b"", "the file is empty"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(SetupError, match=found):
        ready(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"vocab\.txt"):
        ready(str(tmp_path / "vocab.txt"))


def test_a_seed_without_draws_is_refused() -> None:
    with pytest.raises(ValidationError, match="seed=3 has no use"):
        PathPieceConfig(tokenizer="vocab.txt", seed=3)


def test_frequent_strings_are_those_of_counting_all() -> None:
    texts, weights = [b"abab", b"abc", b"c"], [2, 3, 9]
    values, cuts = np.frombuffer(b"".join(texts), np.uint8), np.array([0, 4, 7, 8])
    pieces = Pieces(values, cuts, np.array(weights))
    counts: dict[bytes, int] = {}
    for text, weight in zip(texts, weights, strict=True):
        for begin in range(len(text)):
            for end in range(begin + 2, min(len(text), begin + 3) + 1):
                counts[text[begin:end]] = counts.get(text[begin:end], 0) + weight
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    found = frequent_strings(pieces, size=4, max_bytes=3)
    assert found == ranked[:4]


@settings(max_examples=200, deadline=None)
@given(text=SHORT.filter(bool), tokens=TOKENS)
def test_costs_are_those_of_segmenting_without_one_occurrence(
    text: bytes, tokens: set[bytes]
) -> None:
    names = sorted({*BYTES, *tokens})
    pieces = Pieces(np.frombuffer(text, np.uint8), np.array([0, len(text)]), np.array([3]))
    costs, counts = omissions(pieces, names, None)
    every = list(ways(text, set(names)))
    fewest = min(map(len, every))
    assert counts.sum() == 3 * fewest
    best = max(
        (way for way in every if len(way) == fewest),
        key=lambda way: [len(token) for token in way[::-1]],
    )
    want = dict.fromkeys(names, 0)
    at = 0
    for token in best:
        if len(token) > 1:
            others = [way for way in every if (at, token) not in placed(way)]
            want[token] += 3 * (min(map(len, others)) - fewest)
        at += len(token)
    assert dict(zip(names, costs.tolist(), strict=True)) == want


def placed(way: list[bytes]) -> set[tuple[int, bytes]]:
    starts = np.cumsum([0, *map(len, way)]).tolist()
    return set(zip(starts, way, strict=False))


def train(texts: list[str], **options: Any) -> tuple[bytes, list[tuple[str, int, int]]]:
    told: list[tuple[str, int, int]] = []
    trainer = PathPieceTrainer(PathPieceTrainerConfig(**options))
    files = trainer.train(lambda: iter([column(texts[:2]), column(texts[2:])]), told_to(told))
    assert set(files) == {"vocab.txt"}
    return files["vocab.txt"], told


def told_to(told: list[tuple[str, int, int]]) -> Any:
    return lambda *step: told.append(step)


def test_training_keeps_what_saves_most_tokens(tmp_path: Path) -> None:
    texts = ["the mill the mill"] * 3 + ["the wheel of the mill"] * 2
    options: dict[str, Any] = {"vocab_size": 262, "initial_size": 400, "drop_share": 0.2}
    data, told = train(texts, **options, pretokenization="first_space")
    assert (data, told) == train(texts, **options, pretokenization="first_space")
    tokens = [bytes.fromhex(line) for line in data.decode().split()]
    assert tokens[:256] == BYTES
    assert len(tokens) == 261
    assert {b" the", b" mill"} <= set(tokens[256:])
    assert all(b" " not in token[1:] for token in tokens)
    assert told[0] == ("read documents, bytes", 34, 0)
    assert told[-1][1] == told[-1][2]
    (tmp_path / "vocab.txt").write_bytes(data)
    op = ready(str(tmp_path / "vocab.txt"), pretokenization="first_space")
    assert op.decode(op({"text": column(texts)}))["text"].to_pylist() == texts
    assert train(texts, **options, ties="random") == train(texts, **options, ties="random")


def test_a_sample_that_is_too_small_is_refused() -> None:
    with pytest.raises(ContractError, match=r"gives 1 tokens of two bytes .* 43 are wanted"):
        train(["abab", "ab", ""], vocab_size=300, initial_size=300)
    with pytest.raises(ContractError, match="holds no text"):
        train(["", "", ""], vocab_size=300, initial_size=300)


def test_tokens_are_only_dropped() -> None:
    with pytest.raises(ValidationError, match=r"initial_size=300 is below vocab_size=400"):
        PathPieceTrainerConfig(initial_size=300, vocab_size=400)


@pytest.mark.parametrize(("initial_tokens", "size"), [("bpe", 262), ("unigram", 258)])
def test_training_may_begin_with_the_tokens_of_another_model(
    initial_tokens: str, size: int
) -> None:
    texts = ["the mill the mill by the wheel"] * 3 + ["the wheel of the old mill"] * 2
    options: dict[str, Any] = {
        "vocab_size": size,
        "initial_size": 275,
        "max_token_bytes": 5,
        "initial_tokens": initial_tokens,
        "pretokenization": "first_space",
    }
    data, _ = train(texts, **options)
    assert data == train(texts, **options)[0]
    tokens = [bytes.fromhex(line) for line in data.decode().split()]
    assert tokens[:256] == BYTES
    assert len(tokens) == size - 1
    assert all(2 <= len(token) <= 5 for token in tokens[256:])
    assert all(any(token in f" {text}".encode() for text in texts) for token in tokens[256:])


def test_tokens_of_a_bpe_are_those_of_its_merges() -> None:
    values, cuts = np.frombuffer(b"abcabcab" + b"xy", np.uint8), np.array([0, 8, 10])
    pieces = Pieces(values, cuts, np.array([2, 1]))
    found = merged_strings(pieces, size=9, max_bytes=3, progress=told_to([]))
    assert found[:2] == [b"ab", b"cab"]  # as frequent as "ab" and "c", with the smaller left id
    assert b"xy" not in found  # once is too rare
    assert max(map(len, found)) == 3


def test_a_unigram_model_that_is_too_large_names_the_option() -> None:
    with pytest.raises(ContractError, match=r"initial_tokens: unigram: .*too high"):
        train(["the mill"] * 3, vocab_size=300, initial_size=9000, initial_tokens="unigram")


def test_identity_names_what_learns_the_first_tokens() -> None:
    named = PathPieceTrainer(PathPieceTrainerConfig(initial_tokens="unigram")).identity()
    assert set(named) == {"sentencepiece_version", "tokenizers_version"}
    assert PathPieceTrainer(PathPieceTrainerConfig()).identity() == {}
