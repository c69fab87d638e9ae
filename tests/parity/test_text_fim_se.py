"""fim_text against the authors' code of FIM-SE: training texts, and the prompts of inference."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from operators.sequence.fim_text import Cuts, FimText, FimTextConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "text" / "fim_se" / "layout.json"
CASES: dict[str, list[dict[str, Any]]] = json.loads(GOLDEN.read_text())
SENTINELS = {
    "codellama": {},
    "starcoder": {
        "prefix": "<fim_prefix>",
        "suffix": "<fim_suffix>",
        "middle": "<fim_middle>",
        "end_of_text": "<|endoftext|>",
    },
}


def operator(**options: Any) -> FimText:
    return FimText(FimTextConfig.model_validate({"layout": "fim_se", **options}))


def rearranged(op: FimText, texts: list[str]) -> list[str]:
    keys = pa.array([str(i) for i in range(len(texts))], pa.large_string())
    found: list[str] = op({"text": pa.array(texts, pa.large_string()), "key": keys})[
        "text"
    ].to_pylist()
    return found


@pytest.mark.parametrize("tokens", SENTINELS)
def test_training_texts_are_the_authors(tokens: str) -> None:
    cases = [case for case in CASES["training"] if case["tokens"] == tokens]
    assert sum(case["fim"] for case in cases) >= 20
    op = operator(draws="length", authors_end=True, sentinels=SENTINELS[tokens])
    found = rearranged(op, [case["text"] for case in cases])
    assert found == [case["output"] for case in cases]


class CutWhereTold(FimText):
    """Cuts every text at given places and shows both constraints."""

    places: tuple[int, int]

    def _cuts(self, lengths: np.ndarray, keys: pa.Array) -> Cuts:
        return Cuts(np.array([True]), np.array([self.places]), np.array([0.9]))


def test_prompts_of_inference_are_the_authors() -> None:
    cases = [case for case in CASES["inference"] if case["task"] == "RandomSpanInfilling"]
    assert any("\n" not in case["prefix"] for case in cases)
    assert any("\n" not in case["suffix"] for case in cases)
    for case in cases:
        prefix, suffix, result = case["prefix"], case["suffix"], case["result"]
        line, rest = prefix.rpartition("\n")[2], suffix.partition("\n")[0] + "\n"
        text = prefix + result[len(line) : len(result) - len(rest)] + suffix
        op = CutWhereTold(operator().config)
        op.places = (len(prefix), len(text) - len(suffix))
        assert rearranged(op, [text]) == [case["prompt"] + result + "<EOT>"]
