"""Operators are found by name: ours by their file, a stranger's by an entry point."""

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from operators import registry
from operators.errors import ContractError
from operators.testing import assert_operator_contract

STRANGER = '''
"""A tokenizer in one file."""
from typing import Literal
import numpy as np
import pyarrow as pa
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


TRAINER = '''
"""A trainer in one file."""
from typing import Literal
from operators.text.training import TokenizerTrainer, TrainerConfig


class CharactersConfig(TrainerConfig):
    """Nothing to set."""

    name: Literal["characters"] = "characters"


class Characters(TokenizerTrainer[CharactersConfig]):
    """Learn the characters of the documents."""

    Config = CharactersConfig

    def train(self, documents, progress):
        found = set()
        for num_done, texts in enumerate(documents(), start=1):
            found.update(*texts.to_pylist())
            progress("reading", num_done, 0)
        return {"vocab.txt": "\\n".join(sorted(found)).encode()}
'''


def test_a_stranger_adds_a_trainer_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger_trainer.py").write_text(TRAINER)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("characters", "stranger_trainer:Characters", "tokenmill.trainers")
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [entry] if group == entry.group else []
    )
    registry.trainers.cache_clear()
    told: list[tuple[str, int, int]] = []
    try:
        cls = registry.trainer("characters")
        trainer = cls(cls.Config.model_validate({"name": "characters"}))
        texts = [pa.array(["ba", ""], pa.large_string()), pa.array(["cab"], pa.large_string())]
        files = trainer.train(lambda: iter(texts), lambda *figures: told.append(figures))
    finally:
        registry.trainers.cache_clear()
    assert files == {"vocab.txt": b"a\nb\nc"}
    assert told == [("reading", 1, 0), ("reading", 2, 0)]


def test_unknown_trainer_names_what_there_is() -> None:
    with pytest.raises(ContractError, match="no trainer is named 'bpee'"):
        registry.trainer("bpee")


def test_every_trainer_is_described() -> None:
    for name, cls in registry.trainers().items():
        assert (cls.__doc__ or "").strip()
        for field, info in cls.Config.model_fields.items():
            assert field == "name" or info.description, f"{name}.{field} has no description"
