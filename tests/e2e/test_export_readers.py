"""Exports read by the formats' own libraries, in a process of their own.

datatrove is among the development packages. litdata and mosaicml-streaming are not: they ask for
torchvision, which fails to import beside a CPU torch, and for packages under the LGPL. Where they
are installed (``pip install --no-deps``, see ``benchmarks/loader.py``) they are tried as well.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from operators.base import FieldSpec, Ragged
from pipeline.export import ExportSettings
from pipeline.exporting import export
from tests.loader_data import write_data_set

ROOT = Path(__file__).parents[2]
LENGTHS = (7, 0, 1, 30, 12, 3, 9, 64, 2)

READERS = {
    "datatrove": (
        "datatrove",
        """
import sys
from datatrove.utils.dataset import DatatroveFolderDataset
data = DatatroveFolderDataset(sys.argv[1], seq_len=7)
print([row for i in range(len(data)) for row in data[i]["input_ids"].tolist()])
""",
    ),
    "litdata": (
        "litdata",
        """
import sys
from litdata import StreamingDataset, TokensLoader
data = StreamingDataset(sys.argv[1], item_loader=TokensLoader(block_size=8))
print([each for row in data for each in row.tolist()])
""",
    ),
    "mds": (
        "streaming",
        """
import sys
from benchmarks.peers import stand_in_torchvision
stand_in_torchvision()
from streaming import StreamingDataset
data = StreamingDataset(local=sys.argv[1], batch_size=1, shuffle=False, num_canonical_nodes=1)
print([each for row in data for each in row["ids"].tolist()])
""",
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_the_formats_own_reader_finds_every_id(name: str, tmp_path: Path) -> None:
    package, code = READERS[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    offsets = np.concatenate(([0], np.cumsum(LENGTHS)))
    ids = np.random.default_rng(0).integers(0, 1_000, offsets[-1]).astype(np.uint16)
    columns = {
        "key": pa.array([f"{i}" for i in range(len(LENGTHS))], pa.large_string()),
        "ids": Ragged(ids, offsets),
    }
    url = write_data_set(tmp_path / "data", columns, {"ids": FieldSpec("uint16", (None,), 1_000)})
    export(url, str(tmp_path / "out"), ExportSettings(name, ["ids"]))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    whole = len(ids) if name == "mds" else len(ids) // 8 * 8  # the others give whole blocks alone
    assert found == ids[:whole].tolist()
