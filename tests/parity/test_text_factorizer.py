"""factorizer against the authors' code: ids, decoded text, the records of the dictionary."""

from typing import Any

import numpy as np
import pytest

from operators.text.algorithms.factorized_subwords import list_records
from operators.text.factorizer import Factorizer, FactorizerConfig
from tests.method_files import FACTORIZER_FILE, golden, id_rows, texts

GOLDEN = golden("factorizer/encode")
OPTIONS = sorted({(item["alpha"], item["merge_unks"]) for item in GOLDEN["items"]})


@pytest.mark.parametrize(("alpha", "merge"), OPTIONS)
def test_ids_and_their_text(alpha: float, merge: bool) -> None:
    items: list[Any] = [
        item for item in GOLDEN["items"] if (item["alpha"], item["merge_unks"]) == (alpha, merge)
    ]
    config = FactorizerConfig(tokenizer=FACTORIZER_FILE, alpha=alpha, merge_unknown=merge)
    op = Factorizer(config)
    op.setup("cpu")
    out = op({"text": texts([item["text"] for item in items])})
    assert id_rows(out["tokens"]) == [item["ids"] for item in items]
    assert op.decode(out)["text"].to_pylist() == [item["decoded"] or "" for item in items]


def test_records_of_a_key_stand_in_the_authors_order() -> None:
    op = Factorizer(FactorizerConfig(tokenizer=FACTORIZER_FILE))
    keys, ends, indices = list_records(*op._dictionary)
    starts = np.concatenate(([0], ends[:-1]))
    found: dict[str, list[int]] = {}
    for start, end, value in zip(starts, ends, indices.tolist(), strict=True):
        found.setdefault(keys[start:end].tobytes().decode(), []).append(value)
    want: dict[str, list[int]] = {}
    for key, _, first, second, third in GOLDEN["records"]:
        want.setdefault(key, []).append(first << 16 | second << 8 | third)
    assert found == want
