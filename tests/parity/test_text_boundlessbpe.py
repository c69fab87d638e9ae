"""boundlessbpe learns the models of its authors' program, and gives its ids."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from operators.errors import SetupError
from operators.text.boundlessbpe import (
    BoundlessBPE,
    BoundlessBPEConfig,
    BoundlessBPETrainer,
    BoundlessBPETrainerConfig,
)
from tests.text_documents import documents, quiet

FOLDER = Path(__file__).parents[1] / "golden" / "text" / "boundlessbpe"
GOLDEN = json.loads((FOLDER / "train.json").read_text())
ONE_PASS = json.loads((FOLDER / "one_pass.json").read_text())
MODES = {
    "simple": {"pattern": "gpt4o"},
    "word_script": {"pattern": "word_level", "script_pattern": "word_level_characters"},
}


@pytest.mark.parametrize("kind", ["word", "boundless", "superbpe"])
@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda case: f"{case['mode']}-{case['tau']}-{case['vocab_size']}"
)
def test_models_and_ids(case: dict[str, Any], kind: str, tmp_path: Path) -> None:
    options = ("tau", "blowup", "vocab_size", "greedy_split", "min_count")
    config = BoundlessBPETrainerConfig.model_validate(
        {
            "kind": kind,
            "num_supers": case["num_supers"] if kind == "superbpe" else None,
            "special_tokens": ["<|endoftext|>"],
            **{name: case[name] for name in options},
            **MODES[case["mode"]],
        }
    )
    files = BoundlessBPETrainer(config).train(documents(GOLDEN["documents"]), quiet)
    golden = case["models"][kind]
    assert hashlib.sha256(files["tokenizer.model"]).hexdigest() == golden["sha256"]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(files["tokenizer.model"])
    operator = BoundlessBPE(BoundlessBPEConfig(tokenizer=str(path)))
    operator.setup("cpu")
    texts = [encoding["text"] for encoding in golden["encodings"]]
    out = operator({"text": pa.array(texts, pa.large_string())})
    for row, encoding in enumerate(golden["encodings"]):
        if encoding["ids"] is not None:
            assert out["tokens"][row].tolist() == encoding["ids"]
    assert operator.decode(out)["text"].to_pylist() == texts


@pytest.mark.parametrize("case", ONE_PASS["models"], ids=lambda case: f"blowup-{case['blowup']}")
def test_ids_of_the_older_program(case: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text(case["model"])
    operator = BoundlessBPE(BoundlessBPEConfig(tokenizer=str(path), blowup=case["blowup"]))
    operator.setup("cpu")
    texts = [encoding["text"] for encoding in case["encodings"]]
    out = operator({"text": pa.array(texts, pa.large_string())})
    for row, encoding in enumerate(case["encodings"]):
        assert out["tokens"][row].tolist() == encoding["ids"]
    assert operator.decode(out)["text"].to_pylist() == texts


def test_a_gap_in_the_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text(ONE_PASS["refused"][0])
    operator = BoundlessBPE(BoundlessBPEConfig(tokenizer=str(path)))
    with pytest.raises(SetupError, match="operation 0 has the number 350"):
        operator.setup("cpu")
