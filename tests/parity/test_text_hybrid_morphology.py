"""hybrid_morphology against the authors' code, with small dictionaries."""

from pathlib import Path

import numpy as np
import pytest

from operators.base import Ragged
from operators.text.hybrid_morphology import HybridMorphology, HybridMorphologyConfig
from tests.method_files import golden, hybrid_folder, id_rows, texts

TINY = golden("turkish_hybrid/tokenize")["tiny"]
ITEMS = TINY["items"]


@pytest.fixture
def op(tmp_path: Path) -> HybridMorphology:
    config = HybridMorphologyConfig(dictionaries=hybrid_folder(tmp_path), lossless=False)
    found = HybridMorphology(config)
    found.setup("cpu")
    return found


def test_ids_and_their_text(op: HybridMorphology) -> None:
    out = op({"text": texts([item["text"] for item in ITEMS])})
    assert id_rows(out["tokens"]) == [item["ids"] for item in ITEMS]
    assert op.decode(out)["text"].to_pylist() == [item["decoded"] for item in ITEMS]


def test_text_of_any_ids(op: HybridMorphology) -> None:
    rows = [item["ids"] for item in TINY["decode"]]
    offsets = np.cumsum([0, *map(len, rows)])
    tokens = Ragged(np.array([i for row in rows for i in row], np.uint16), offsets)
    found = op.decode({"tokens": tokens})["text"].to_pylist()
    assert found == [item["decoded"] for item in TINY["decode"]]
