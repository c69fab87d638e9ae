"""numeric_tokens against the authors' code."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from operators.text.numeric_tokens import NumericTokens, NumericTokensConfig, published_shapes

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/text/finer/replace.json").read_text())
MODES = {mode["mode"]: mode["output"] for mode in GOLDEN["modes"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "sec-bert-num": {"form": "number"},
    "sec-bert-shape": {"form": "shape"},
    "replace_NUM": {"form": "number", "mostly_digits": True},
    "replace_SHAPE": {"form": "shape", "mostly_digits": True},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("space", [" ", "\n", "\u3000"])
def test_every_token_becomes_what_the_authors_make_of_it(mode: str, space: str) -> None:
    op = NumericTokens(NumericTokensConfig(**SETTINGS[mode]))
    texts = [space.join(GOLDEN["tokens"]), *GOLDEN["tokens"]]
    joined, *single = op({"text": pa.array(texts, pa.large_string())})["text"].to_pylist()
    assert joined.split(space) == MODES[mode]
    assert single == MODES[mode]


def test_the_shapes_are_those_of_the_published_models() -> None:
    assert sorted(GOLDEN["shapes"]) == list(published_shapes())
