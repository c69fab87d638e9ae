"""sage: greedy against its definition, pairs against a slow count, the trainer, the errors."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import FieldSpec, HasPieces, Invertible, Ragged
from operators.errors import ContractError, SetupError
from operators.testing import assert_operator_contract
from operators.text.algorithms.sage_training import Lines, ablate, log_likelihoods
from operators.text.algorithms.word2vec import SkipGram
from operators.text.sage import Sage, SageConfig, SageTrainer, SageTrainerConfig

BYTES = [bytes([byte]) for byte in range(256)]
WORDS = [b"th", b"the", b" the", b" mill", b"l\nt", b"ll", b"\xc3\xbc"]
TEXTS = ["the mill\nthe mühle", "", " 1234 mills", "x" * 40, "\n\n"]
TOKENS = st.sets(st.text("ab", min_size=2, max_size=5).map(str.encode), max_size=8)


def column(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def vocabulary(folder: Path, tokens: list[bytes]) -> str:
    path = folder / "vocab.txt"
    path.write_text("".join(f"{token.hex()}\n" for token in tokens))
    return str(path)


def ready(path: str, **options: Any) -> Sage:
    op = Sage(SageConfig(tokenizer=path, **options))
    op.setup("cpu")
    return op


def rows(tokens: Ragged) -> list[list[int]]:
    return [tokens[i].tolist() for i in range(len(tokens))]


def greedy(text: bytes, tokens: list[bytes], longest: int) -> list[bytes]:
    found = []
    while text:
        size = next(n for n in range(min(longest, len(text)), 0, -1) if text[:n] in tokens)
        found.append(text[:size])
        text = text[size:]
    return found


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.text("the mil\nü", max_size=14), min_size=1, max_size=4),
    longest=st.integers(1, 5),
    split=st.booleans(),
)
def test_every_token_is_the_longest_that_comes_next(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], longest: int, split: bool
) -> None:
    tokens = [*BYTES, *WORDS]
    path = vocabulary(tmp_path_factory.mktemp("sage"), tokens)
    op = ready(path, max_token_bytes=longest, split_lines=split)
    found = rows(op({"text": column(texts)})["tokens"])
    for text, ids in zip(texts, found, strict=True):
        lines = text.encode().splitlines(keepends=True) if split else [text.encode()]
        want = [token for line in lines for token in greedy(line, tokens, longest)]
        assert [tokens[i] for i in ids] == want


@pytest.mark.parametrize("split_lines", [False, True])
def test_contract_and_round_trip(tmp_path: Path, split_lines: bool) -> None:
    path = vocabulary(tmp_path, [*BYTES, *WORDS])
    op = ready(path, split_lines=split_lines, add_bos=True, add_eos=True)
    out = assert_operator_contract(op, {"text": column(TEXTS)})
    assert isinstance(op, Invertible)
    assert op.decode(out)["text"].to_pylist() == TEXTS
    assert op.outputs == {"tokens": FieldSpec("uint16", (None,), 265)}
    assert op.metadata() == {
        "vocab_size": 265,
        "special_ids": {"<bos>": 263, "<eos>": 264},
        "bos_id": 263,
        "eos_id": 264,
    }


def test_ids_are_frozen(tmp_path: Path) -> None:
    """Published shards hold these ids: other ones need a new version."""
    out = ready(vocabulary(tmp_path, [*BYTES, *WORDS]))({"text": column(TEXTS)})["tokens"]
    digest = hashlib.sha256(out.values.tobytes() + out.offsets.tobytes()).hexdigest()
    assert digest == "1d5b1cbbff5952b6007fd5e68a386fb4ca187eba990928578a4dc1cd257c4cdf"


def test_pieces_are_the_bytes_of_the_file(tmp_path: Path) -> None:
    op = Sage(SageConfig(tokenizer=vocabulary(tmp_path, [*BYTES, *WORDS]), add_eos=True))
    assert isinstance(op, HasPieces)
    assert op.pieces().texts.to_pylist() == [*BYTES, *WORDS, None]


def test_a_vocabulary_without_some_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="255 of the 256 single bytes are in it"):
        ready(vocabulary(tmp_path, BYTES[:-1]))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("the\n")
    with pytest.raises(SetupError, match="line 1 is b'the'"):
        ready(str(path))


def slow_pairs(line: bytes, tokens: list[bytes], longest: int) -> Counter[tuple[bytes, ...]]:
    """Count, by its description, what leaving out each token changes."""
    base = greedy(line, tokens, longest)
    starts = np.cumsum([0, *map(len, base)]).tolist()
    pairs: Counter[tuple[bytes, ...]] = Counter()
    for place, token in enumerate(base):
        if len(token) == 1:
            continue
        text = line[starts[place] :]
        changed = greedy(text, tokens, len(token) - 1)[:1]
        at = starts[place] + len(changed[0])
        while len(changed) < 2 or (at not in starts and at < len(line)):
            changed += greedy(line[at:], tokens, longest)[:1]
            at += len(changed[-1])
        beyond = starts.index(at)
        left, right = base[max(0, place - 2) : place], base[beyond : beyond + 2]
        for sign, middle in ((1, changed), (-1, base[place:beyond])):
            window = [*left, *middle, *right]
            inside = range(len(left), len(left) + len(middle))
            for i, first in enumerate(window):
                for j, second in enumerate(window):
                    if i != j and abs(i - j) <= 2 and (i in inside or j in inside):
                        pairs[token, first, second] += sign
    return pairs


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.text("ab", min_size=1, max_size=14).map(str.encode), min_size=1, max_size=3),
    words=TOKENS,
)
def test_pairs_are_those_of_the_description(texts: list[bytes], words: set[bytes]) -> None:
    tokens = [*BYTES, *sorted(words)]
    want: Counter[tuple[bytes, ...]] = Counter()
    for text in texts:
        for triple, count in slow_pairs(text, tokens, 4).items():
            want[triple] += count
    lines = Lines(np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)]))
    found = ablate(tokens, lines, 4)
    assert {
        tuple(tokens[i] for i in triple): count
        for triple, count in zip(found.triples.tolist(), found.counts.tolist(), strict=True)
    } == dict(want)
    vectors = np.random.default_rng(0).normal(size=(len(tokens), 3))
    sums = np.zeros(len(tokens))
    for (left_out, first, second), count in want.items():
        product = vectors[tokens.index(first)] @ vectors[tokens.index(second)]
        sums[tokens.index(left_out)] -= count * np.log1p(np.exp(-product))
    np.testing.assert_allclose(log_likelihoods(found, vectors), sums, atol=1e-9)


def test_vectors_bring_neighbours_together() -> None:
    """Tokens 0 to 3 stand together, and 4 to 7 do; never across."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 2, 2000)
    ids = (rng.integers(0, 4, (2000, 8)) + 4 * groups[:, None]).ravel()
    learner = SkipGram(size=8, window=3, negative=5, rate=0.1, epochs=15, seed=1)
    vectors = learner.learn(ids, np.arange(2001) * 8, 10)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = unit @ unit.T
    assert alike[:4, :4].min() > 0.5 > alike[:4, 4:8].max()
    assert np.abs(vectors[8:]).max() <= 0.5 / 8
    again = learner.learn(ids, np.arange(2001) * 8, 10)
    assert vectors.tobytes() == again.tobytes()


SMALL: dict[str, Any] = {
    "schedule": (290, 280, 270),
    "embedding_sizes": (280,),
    "vector_size": 4,
    "epochs": 1,
}


def train(texts: list[str], **options: Any) -> dict[str, bytes]:
    trainer = SageTrainer(SageTrainerConfig(**SMALL, **options))
    batches = [column(texts[:2]), column(texts[2:])]
    return dict(trainer.train(lambda: iter(batches), lambda *_: None))


SAMPLE = [
    f"the mill {word} of the old wheel\nturns the {word} stone\nin {word} and storm\n"
    for word in ("water", "wind", "grain", "autumn")
]


def test_training_keeps_as_many_as_are_asked_for(tmp_path: Path) -> None:
    files = train(SAMPLE)
    assert files == train(SAMPLE)
    assert set(SageTrainer(SageTrainerConfig(**SMALL)).identity()) == {"regex_version"}
    tokens = [bytes.fromhex(line) for line in files["vocab.txt"].decode().split()]
    more = [bytes.fromhex(line) for line in files["vocab_with_unused.txt"].decode().split()]
    assert len(tokens) == 270
    assert tokens[:256] == BYTES
    assert [token for token in more if token in tokens] == tokens
    (tmp_path / "vocab.txt").write_bytes(files["vocab.txt"])
    op = ready(str(tmp_path / "vocab.txt"))
    assert op.decode(op({"text": column(SAMPLE)}))["text"].to_pylist() == SAMPLE
    assert set(train(SAMPLE, moves_vectors=True)) == set(files)
    assert train(SAMPLE, max_lines=3) == train(SAMPLE, max_lines=3) != files


def test_a_sample_that_is_too_small_is_refused() -> None:
    with pytest.raises(ContractError, match=r"a BPE of 258 tokens, .* begins with 290"):
        train(["abab", "ab", ""])
    with pytest.raises(ContractError, match="a BPE of 256 tokens"):
        train(["", "", ""])


def test_a_sample_that_uses_too_few_tokens_is_refused() -> None:
    with pytest.raises(ContractError, match=r"the sample uses \d+ tokens .* 270 are wanted"):
        train(["incomprehensibilities uncharacteristically", "", ""])


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"schedule": (300, 300)}, "expected falling sizes"),
        ({"schedule": (300, 256)}, "above 256"),
        ({"schedule": (2**21, 300)}, "begins with 2,097,152"),
        ({"schedule": (400, 300), "embedding_sizes": (300,)}, r"embedding_sizes \[300\]"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ValidationError, match=found):
        SageTrainerConfig(**options)
