"""visual_bpe: training and merging spelled out, decoding, files that are none."""

import hashlib
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import FieldSpec
from operators.errors import ContractError, RowErrors, SetupError
from operators.sequence.ids_as_text import text_of_ids
from operators.sequence.visual_bpe import (
    FILE_NAME,
    VisualBPE,
    VisualBPEConfig,
    VisualBPETrainer,
    VisualBPETrainerConfig,
)
from tests.operators.test_bpe import merged
from tests.operators.test_ids_as_text import ragged
from tests.text_documents import quiet

SHA256 = "d869c0e1a3709fc9ce7405e41894cfd71e033741c73f4c4a63563f3636a02191"


def grids(num: int, side: int = 6, codes: int = 9, seed: int = 0) -> list[list[int]]:
    """Ids that often repeat their neighbour."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, codes, (num, side * side))
    again = random.random(rows.shape) < 0.6
    for at in range(1, side * side):
        rows[:, at] = np.where(again[:, at], (rows[:, at - 1] + at % 2) % codes, rows[:, at])
    found: list[list[int]] = rows.tolist()
    return found


def trained(rows: list[list[int]], codes: int = 9, **options: Any) -> bytes:
    config = VisualBPETrainerConfig.model_validate(
        {"codebook_size": codes, "vocab_size": codes + 20, **options}
    )
    texts = text_of_ids(ragged(rows))
    parts = [texts[: len(rows) // 2], texts[len(rows) // 2 :]]
    return VisualBPETrainer(config).train(lambda: iter(parts), quiet)[FILE_NAME]


def operator(data: bytes, folder: Path, length: int | None = None) -> VisualBPE:
    path = folder / FILE_NAME
    path.write_bytes(data)
    op = VisualBPE(VisualBPEConfig(tokenizer=str(path)))
    op.bind({"tokens": FieldSpec("uint16", (length,))})
    op.setup("cpu")
    return op


def learnt(
    rows: list[list[int]], codes: int, num: int, min_count: int, max_length: int | None
) -> list[list[int]]:
    """Count anew before every merge."""
    rows, lengths = [list(row) for row in rows], dict.fromkeys(range(codes), 1)
    merges: list[list[int]] = []
    while len(merges) < num:
        counts: Counter[tuple[int, int]] = Counter()
        for row in rows:
            counts.update(pairwise(row))
        fits = {
            pair: count
            for pair, count in counts.items()
            if max_length is None or lengths[pair[0]] + lengths[pair[1]] <= max_length
        }
        if not fits:
            break
        pair = min(fits, key=lambda pair: (-fits[pair], pair))
        if fits[pair] < min_count:
            break
        new = codes + len(merges)
        lengths[new] = lengths[pair[0]] + lengths[pair[1]]
        merges.append(list(pair))
        rows = [merged(row, pair, new) for row in rows]
    return merges


def test_file_is_frozen() -> None:
    """Data sets are made with such files: a new digest needs a new version of the trainer."""
    assert hashlib.sha256(trained(grids(30))).hexdigest() == SHA256


@pytest.mark.parametrize("max_length", [None, 3])
@pytest.mark.parametrize("min_count", [1, 12])
def test_training_counts_anew_before_every_merge(min_count: int, max_length: int | None) -> None:
    for seed in range(4):
        rows = grids(20, seed=seed)
        found = json.loads(trained(rows, min_count=min_count, max_length=max_length))
        assert found["alphabet"] == 9
        assert found["merges"] == learnt(rows, 9, 20, min_count, max_length)


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.lists(st.integers(0, 4), max_size=30), max_size=5))
def test_merging_is_one_merge_after_the_other(
    rows: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = trained(grids(30, codes=5), codes=5)
    op = operator(data, tmp_path_factory.mktemp("bpe"))
    found = op({"tokens": ragged(rows, "uint16")})["tokens"]
    for at, row in enumerate(rows):
        wanted = row
        for i, pair in enumerate(json.loads(data)["merges"]):
            wanted = merged(wanted, tuple(pair), 5 + i)
        assert found[at].tolist() == wanted
    again = op.decode({"tokens": found})["tokens"]
    assert [again[at].tolist() for at in range(len(rows))] == rows


def test_grids_come_back_as_they_were(tmp_path: Path) -> None:
    rows = np.array(grids(10, seed=7), np.uint16)
    op = operator(trained(grids(30)), tmp_path, length=36)
    found = op({"tokens": rows})["tokens"]
    assert len(found.values) < rows.size * 0.8
    assert np.array_equal(op.decode({"tokens": found})["tokens"], rows)
    assert op.outputs["tokens"] == FieldSpec("uint8", (None,), 29)
    assert op.metadata() == {"vocab_size": 29, "alphabet": 9}


def test_ids_of_another_codebook(tmp_path: Path) -> None:
    op = operator(trained(grids(30)), tmp_path)
    with pytest.raises(RowErrors) as caught:
        op({"tokens": ragged([[1, 2], [3, 9]])})
    assert "id 9 is not of the codebook (0 to 8)" in str(caught.value.errors[1])
    assert len(caught.value.good["tokens"]) == 1
    with pytest.raises(ContractError, match="document 1 holds id 9, expected 0 to 8"):
        trained([[1, 2], [3, 9]])
    with pytest.raises(ContractError, match="leaves no merges"):
        trained([[1]], vocab_size=9)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{}", "KeyError"),
        ("[]", "TypeError"),
        ('{"alphabet": 0, "merges": []}', "alphabet is 0"),
        ('{"alphabet": 3, "merges": [[0, 3]]}', "merge 0 is of ids that are not there yet"),
        ('{"alphabet": 3, "merges": [[0, 1, 2]]}', "ValueError"),
    ],
)
def test_files_that_are_none(text: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=what):
        operator(text.encode(), tmp_path)


def test_wrong_settings() -> None:
    with pytest.raises(ValidationError):
        VisualBPETrainerConfig(codebook_size=0, vocab_size=9)
    with pytest.raises(ValidationError):
        VisualBPEConfig(tokenizer="some/other/where.txt")
