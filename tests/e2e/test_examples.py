"""The examples train, and a run that goes on from a checkpoint ends like one without a break."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from operators.base import FieldSpec, Ragged
from tests.loader_data import write_data_set

ROOT = Path(__file__).parents[2]
NUM, VOCAB_SIZE = 400, 32
STEPS, SAVED = 24, 13  # an epoch is 9 steps
LOSS = re.compile(r"(untrained|step \d+): evaluation loss (\d+\.\d+)")


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a data set in which every id is followed by the next one."""
    random = np.random.default_rng(0)
    lengths, first = random.integers(8, 40, NUM), random.integers(0, VOCAB_SIZE, NUM)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    steps = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - first, lengths)
    columns = {
        "key": pa.array([str(i) for i in range(NUM)], pa.large_string()),
        "caption_tokens": Ragged((steps % VOCAB_SIZE).astype(np.uint8), offsets),
    }
    fields = {"caption_tokens": FieldSpec("uint8", (None,), VOCAB_SIZE)}
    return write_data_set(tmp_path_factory.mktemp("data"), columns, fields)


def train(script: str, *arguments: object) -> list[tuple[str, str]]:
    """Run an example and return its evaluations: when, and the loss as it is printed."""
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return LOSS.findall(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "package"),
    [
        ("train_pytorch.py", "torch"),
        ("train_lightning.py", "lightning"),
        ("train_hf_trainer.py", "accelerate"),
    ],
)
def test_an_example_trains_and_resumes_exactly(
    data_set: str, tmp_path: Path, script: str, package: str
) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{script} needs {package}, of the extra 'examples'")
    options = ["--steps", STEPS, "--save-every", SAVED, "--checkpoints", tmp_path]
    first, last = train(script, data_set, *options)
    assert last[0] == f"step {STEPS}"
    assert float(last[1]) < 0.8 * float(first[1])
    for path in tmp_path.glob(f"*{STEPS}*"):  # as if the run had died before its end
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before, again = train(script, data_set, *options)
    assert again == last
    if script == "train_pytorch.py":  # the others evaluate first and load then
        assert before[0] == f"step {SAVED}"
