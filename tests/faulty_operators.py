"""Operators that fail on purpose, announced as packages outside the project announce theirs."""

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from operators.base import Batch, FieldSpec, Operator, OperatorConfig
from operators.errors import DecisionError, SetupError
from pipeline.errors import TransientError


class MisbehaveConfig(OperatorConfig):
    """When and how to fail."""

    name: Literal["misbehave"] = "misbehave"
    how: Literal["exit", "transient", "setup", "raise", "panic", "sleep"]
    at_key: Annotated[str, Field(description="The sample that sets it off.")] = ""
    marks: Annotated[str, Field(description="Folder where it counts how often it failed.")]
    times: Annotated[int, Field(ge=1, description="How often to fail.")] = 1
    in_company: Annotated[bool, Field(description="Only with another row beside it.")] = False


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
        elif (
            self.config.at_key in batch["key"].to_pylist()
            and len(batch["key"]) > self.config.in_company
            and take_turn(Path(self.config.marks), self.config.times)
        ):
            self._fail()
        return {"ones": np.ones(len(batch["key"]), np.uint8)}

    def _fail(self) -> None:
        if self.config.how == "exit":
            os._exit(9)
        if self.config.how == "transient":
            raise TransientError("misbehave: the store is away")
        if self.config.how == "panic":
            raise BaseException("misbehave: panicked")
        raise ValueError("misbehave: cannot")


class DoubtConfig(OperatorConfig):
    """Which way to count."""

    name: Literal["doubt"] = "doubt"
    backend: Literal["fast", "reference"] = "fast"
    wrong_in: Annotated[str, Field(description="Where it stands in a text, fast is wrong.")]
    repents: Annotated[bool, Field(description="The reference is right.")] = True


class Doubt(Operator[DoubtConfig]):
    """Adds texts' lengths, and one more to each by ``fast``; it looks at first rows alone."""

    Config = DoubtConfig
    first_rows = 2
    inputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}
    outputs: Mapping[str, FieldSpec] = {"lengths": FieldSpec("uint16", (1,), vocab_size=1 << 16)}

    def look_at_first(self, batch: Batch) -> None:
        (text,) = batch["text"].to_pylist()
        if "raise" in text:
            raise ValueError("doubt: cannot look at it")
        if self.config.wrong_in in text and (self._is_fast or not self.config.repents):
            raise DecisionError(
                "doubt: fast is wrong", found=repr(text), field="backend", value="reference"
            )

    def __call__(self, batch: Batch) -> Batch:
        lengths = np.array([len(text) for text in batch["text"].to_pylist()], np.uint16)
        return {"lengths": (lengths + self._is_fast).astype(np.uint16)[:, None]}

    @property
    def _is_fast(self) -> bool:
        return self.config.backend == "fast"


class SabotageConfig(OperatorConfig):
    """Where to look for orders."""

    name: Literal["sabotage"] = "sabotage"
    folder: Annotated[str, Field(description="Holds `fault.json` when something is to go wrong.")]


class Sabotage(Operator[SabotageConfig]):
    """Does what ``fault.json`` says, at most ``times`` times over all processes; adds ones.

    The orders are not in the recipe, so that disturbed and undisturbed runs have one fingerprint.
    ``where`` is ``read``, ``decode``, ``operator`` or ``write``; ``how`` is a name of ``HOWS``. An
    operator strikes at the sample ``key``, the others at partition ``partition``.
    """

    Config = SabotageConfig
    inputs: Mapping[str, FieldSpec] = {"key": FieldSpec("string")}
    outputs: Mapping[str, FieldSpec] = {"ones": FieldSpec("uint8")}

    def setup(self, device: str) -> None:
        from operators.image.decode_image import DecodeImage
        from pipeline.stages import Worker

        self._orders: dict[str, Any] = {}
        orders = Path(self.config.folder, "fault.json")
        if not orders.exists():
            return
        self._orders = json.loads(orders.read_text())
        where = self._orders["where"]
        read, decode, write = Worker._read, DecodeImage.__call__, Worker._write

        def strike_at(state: Any) -> None:
            if state.partition.index == self._orders["partition"]:
                self._strike()

        def read_badly(worker: Worker, state: Any) -> Any:
            strike_at(state)
            return read(worker, state)

        def decode_badly(step: DecodeImage, batch: Batch) -> Batch:
            self._strike()
            return decode(step, batch)

        def write_badly(worker: Worker, block: Any) -> None:
            strike_at(block.state)
            write(worker, block)

        if where == "read":
            Worker._read = read_badly  # type: ignore[method-assign,assignment]
        elif where == "decode":
            DecodeImage.__call__ = decode_badly  # type: ignore[method-assign,assignment]
        elif where == "write":
            Worker._write = write_badly  # type: ignore[method-assign,assignment]

    def __call__(self, batch: Batch) -> Batch:
        time.sleep(self._orders.get("sleep_s", 0.0) * len(batch["key"]))
        strikes = self._orders.get("where") == "operator"
        if strikes and self._orders["key"] in batch["key"].to_pylist():
            self._strike()
        return {"ones": np.ones(len(batch["key"]), np.uint8)}

    def _strike(self) -> None:
        if take_turn(Path(self.config.folder), self._orders["times"]):
            HOWS[self._orders["how"]]()


def _allocate() -> None:
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)) * 16)


def _be_slow() -> None:
    time.sleep(30)


def _hang() -> None:
    time.sleep(3600)


HOWS: Mapping[str, Callable[[], object]] = {
    "exit": lambda: os._exit(9),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "allocate": _allocate,
    "hang": _hang,
    "be_slow": _be_slow,
}


def take_turn(folder: Path, times: int) -> bool:
    """Say whether something was done fewer than ``times`` times by anybody, and count this one."""
    for number in range(times):
        try:
            os.close(os.open(folder / f"failed-{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return True
    return False


def announce(folder: Path) -> Path:
    """Make these operators known to every process that has ``folder`` on its path; return it."""
    info = folder / "faulty_operators-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-operators\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[tokenmill.operators]\nmisbehave = tests.faulty_operators:Misbehave\n"
        "sabotage = tests.faulty_operators:Sabotage\n"
        "doubt = tests.faulty_operators:Doubt\n"
    )
    return folder
