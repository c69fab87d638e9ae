"""The example trains: its loss falls on data that can be learnt."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from examples.train_tiny import train
from operators.base import FieldSpec, Ragged
from tests.loader_data import write_data_set

NUM, VOCAB_SIZE = 64, 16


@pytest.fixture
def data_set(tmp_path: Path) -> str:
    """Return a data set in which every id is followed by the next one."""
    random = np.random.default_rng(0)
    lengths, first = random.integers(4, 20, NUM), random.integers(0, VOCAB_SIZE, NUM)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    steps = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - first, lengths)
    columns = {
        "key": pa.array([str(i) for i in range(NUM)], pa.large_string()),
        "sequence": Ragged((steps % VOCAB_SIZE).astype(np.uint16), offsets),
    }
    fields = {"sequence": FieldSpec("uint16", (None,), VOCAB_SIZE)}
    return write_data_set(tmp_path / "data", columns, fields)


def test_loss_falls(data_set: str) -> None:
    losses = train(data_set, steps=30, context=16, log_every=0)
    assert len(losses) == 30
    assert abs(losses[0] - np.log(VOCAB_SIZE)) < 0.5
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_command_prints_first_and_last_loss(data_set: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.train_tiny", data_set, "--steps", "20", "--context", "16"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("step    20   loss")
    assert lines[1].startswith("mean loss of the first 10 steps")
