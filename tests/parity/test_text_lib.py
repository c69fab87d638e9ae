"""lib against the authors' code: the lexicon after each article, readings, decomposing."""

import random
from pathlib import Path

import pytest

from operators.text.algorithms.lexicon_learning import Habits, Reader
from operators.text.lib import LiB, LiBConfig
from tests.method_files import golden, id_rows, lib_file, texts

GOLDEN = golden("lib/train")
RUNS = GOLDEN["runs"]
SETTINGS = ("life", "max_len", "memory_in", "memory_out", "update_rate", "mini_gap")


@pytest.mark.parametrize("run", range(len(RUNS)))
def test_lexicon_after_each_article_and_random_numbers(run: int) -> None:
    found, sentences = RUNS[run], GOLDEN["sentences"]
    rng, num_draws = random.Random(found["seed"]), 0

    def draw() -> float:
        nonlocal num_draws
        num_draws += 1
        return rng.random()

    reader = Reader(Habits(**{name: found[name] for name in SETTINGS}), draw)
    reader.begin(found["initial"])
    snapshots = {item["epoch"]: item for item in found["snapshots"]}
    for epoch in range(found["epochs"]):
        reader.read([sentences[(20 * epoch + k) % len(sentences)] for k in range(20)])
        if epoch in snapshots:
            want = snapshots.pop(epoch)
            assert reader.lexicon == want["lexicon"]
            assert num_draws == want["draws"]
    assert not snapshots
    assert reader.lexicon == found["final"]
    for text, second, longest in found["match_two"]:
        assert reader.longest_two(text, 0) == (second, longest)


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("run", range(len(RUNS)))
def test_readings(run: int, decompose: bool, tmp_path: Path) -> None:
    found = RUNS[run]
    config = LiBConfig(
        tokenizer=lib_file(tmp_path, found["final"]), max_len=found["max_len"], decompose=decompose
    )
    op = LiB(config)
    op.setup("cpu")
    out = op({"text": texts(GOLDEN["sentences"][:30])})
    want = found["decomposed" if decompose else "segments"]
    # Unknown characters stand in the authors' output as themselves; these are ASCII: one byte.
    names = [*found["final"], *map(chr, range(256))]
    assert [[names[i] for i in row] for row in id_rows(out["tokens"])] == want
