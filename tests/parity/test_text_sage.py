"""sage: segmentation, pairs, sums and every round of the authors' code."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from operators.text.algorithms.sage_training import Lines, ablate, log_likelihoods, shrink
from operators.text.sage import Sage, SageConfig

GOLDEN = Path("tests/golden/text/sage")
ABLATION = json.loads((GOLDEN / "ablation.json").read_text())
TRAIN = json.loads((GOLDEN / "train.json").read_text())
TOKENS = [bytes.fromhex(token) for token in ABLATION["vocab_hex"]]


def lines_of(texts: list[str]) -> Lines:
    encoded = [text.encode() for text in texts]
    values = np.frombuffer(b"".join(encoded), np.uint8)
    return Lines(values, np.cumsum([0, *map(len, encoded)]))


@pytest.mark.parametrize("as_one", [False, True])
def test_ids_are_those_of_the_authors(as_one: bool, tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(ABLATION["vocab_hex"]))
    config = SageConfig(
        tokenizer=str(path), max_token_bytes=ABLATION["max_len"], split_lines=as_one
    )
    op = Sage(config)
    op.setup("cpu")
    texts, want = ABLATION["lines"], ABLATION["tokens"]
    if as_one:
        texts, want = ["".join(texts)], [[i for line in want for i in line]]
    found = op({"text": pa.array(texts, pa.large_string())})["tokens"]
    assert [found[i].tolist() for i in range(len(found))] == want


def test_pairs_and_sums_are_those_of_the_authors() -> None:
    found = ablate(TOKENS, lines_of(ABLATION["lines"]), ABLATION["max_len"])
    assert found.num_tokens == ABLATION["total_tokens"]
    assert len(found.counts) == ABLATION["triples_count"]
    sizes = {str(size): int(num) for size, num in enumerate(found.sizes) if num}
    assert sizes == ABLATION["ablated_sizes"]
    sums = log_likelihoods(found, np.array(ABLATION["embeddings"]))
    losses = {int(token): loss for token, loss in ABLATION["losses"].items()}
    assert sorted(losses) == sorted(set(found.triples[:, 0].tolist()))
    np.testing.assert_allclose([-sums[i] for i in losses], list(losses.values()), rtol=1e-12)


def test_every_pair_of_one_line_is_there() -> None:
    golden = ABLATION["one_line"]
    lines = lines_of([ABLATION["lines"][golden["line"]]])
    found = ablate(TOKENS, lines, ABLATION["max_len"])
    assert np.column_stack([found.triples, found.counts]).tolist() == golden["triples"]
    sums = log_likelihoods(found, np.array(ABLATION["embeddings"]))
    for token, want in golden["log_sigmoid_sums"].items():
        assert sums[int(token)] == pytest.approx(want, rel=1e-12)


def test_every_round_drops_what_the_authors_drop() -> None:
    rounds = shrink(
        TOKENS,
        lines_of(TRAIN["partial_corpus"]),
        schedule=TRAIN["schedule"],
        embedding_sizes=TRAIN["embeddings_schedule"],
        max_bytes=TRAIN["max_len"],
        embed=lambda size, *_: np.array(TRAIN["embeddings"][f"embeddings_{size}"]),
        moves_vectors=False,
        progress=lambda *_: None,
    )
    assert len(rounds) == len(TRAIN["rounds"]) == 3
    for found, want in zip(rounds, TRAIN["rounds"], strict=True):
        assert found.target == want["target"] == len(found.active)
        assert [token.hex() for token in found.kept] == want["vocab_hex"]
        assert sorted(token.hex() for token in found.dropped) == sorted(want["deleted_hex"])
