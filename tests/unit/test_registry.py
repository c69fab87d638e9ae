"""Operators are found by name: ours by their file, a stranger's by an entry point."""

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from operators import registry
from operators.errors import ContractError
from operators.testing import assert_operator_contract

STRANGER = '''
"""A tokenizer in one file."""
from typing import Literal
import numpy as np
from operators.base import FieldSpec, Operator, OperatorConfig


class MeanConfig(OperatorConfig):
    """Nothing to set."""

    name: Literal["mean_grey"] = "mean_grey"


class MeanGrey(Operator[MeanConfig]):
    """Map an image to its mean grey value: one token."""

    Config = MeanConfig

    @property
    def inputs(self):
        return {"image": FieldSpec("uint8", (4, 4, 3))}

    @property
    def outputs(self):
        return {"tokens": FieldSpec("uint8", (1,), vocab_size=256)}

    def __call__(self, batch):
        means = batch["image"].reshape(len(batch["image"]), -1).mean(axis=1, keepdims=True)
        return {"tokens": means.astype(np.uint8)}
'''


def test_unknown_operator_names_the_nearest() -> None:
    with pytest.raises(ContractError, match=r"named 'flextock'.*did you mean 'flextok'"):
        registry.get("flextock")


def test_finding_one_operator_imports_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "all_classes", lambda: pytest.fail("imported everything"))
    assert registry.get("byte_text").Config.model_fields["name"].default == "byte_text"


def test_a_stranger_adds_a_tokenizer_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger_package.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("mean_grey", "stranger_package:MeanGrey", "tokenmill.operators")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    registry.all_classes.cache_clear()
    try:
        cls = registry.get("mean_grey")
        operator = registry.build(cls.Config.model_validate({"name": "mean_grey"}))
        image = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
        assert_operator_contract(operator, {"image": image})  # type: ignore[arg-type]
    finally:
        registry.all_classes.cache_clear()
