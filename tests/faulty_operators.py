"""An operator that fails on purpose, announced as packages outside the project announce theirs."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from operators.base import Batch, FieldSpec, Operator, OperatorConfig
from operators.errors import SetupError
from pipeline.errors import TransientError


class MisbehaveConfig(OperatorConfig):
    """When and how to fail."""

    name: Literal["misbehave"] = "misbehave"
    how: Literal["exit", "transient", "setup", "raise", "panic", "sleep"]
    at_key: Annotated[str, Field(description="The sample that sets it off.")] = ""
    marks: Annotated[str, Field(description="Folder where it counts how often it failed.")]
    times: Annotated[int, Field(ge=1, description="How often to fail.")] = 1


class Misbehave(Operator[MisbehaveConfig]):
    """Fails ``times`` times at one sample, over all processes; otherwise adds ones."""

    Config = MisbehaveConfig
    inputs: Mapping[str, FieldSpec] = {"key": FieldSpec("string")}
    outputs: Mapping[str, FieldSpec] = {"ones": FieldSpec("uint8")}

    def setup(self, device: str) -> None:
        if self.config.how == "setup":
            raise SetupError("misbehave: the weights are gone", hint="bring them back")

    def __call__(self, batch: Batch) -> Batch:
        if self.config.how == "sleep":
            time.sleep(0.03 * len(batch["key"]))
        elif self.config.at_key in batch["key"].to_pylist() and self._is_due():
            self._fail()
        return {"ones": np.ones(len(batch["key"]), np.uint8)}

    def _is_due(self) -> bool:
        for number in range(self.config.times):
            try:
                path = Path(self.config.marks, f"failed-{number}")
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return True
        return False

    def _fail(self) -> None:
        if self.config.how == "exit":
            os._exit(9)
        if self.config.how == "transient":
            raise TransientError("misbehave: the store is away")
        if self.config.how == "panic":
            raise BaseException("misbehave: panicked")
        raise ValueError("misbehave: cannot")


def announce(folder: Path) -> Path:
    """Make ``misbehave`` known to every process that has ``folder`` on its path; return it."""
    info = folder / "faulty_operators-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-operators\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[tokenmill.operators]\nmisbehave = tests.faulty_operators:Misbehave\n"
    )
    return folder
