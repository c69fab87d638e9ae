"""``pipeline export``: what it says and writes, how it ends, and that it goes on after a kill."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.manifest import open_data_set
from tests.e2e.command_line import PIPELINE, CommandLine, environment, pipeline
from tests.loader_data import rows, write_data_set
from tests.unit.test_export import files_of, read_litdata, read_mds, read_megatron, read_tars

INLINE = ("--engine", "inline")


def stored(folder: Path, field: str) -> list[list[int]]:
    """Return the ids of every row, as the shards have them."""
    data = open_data_set(str(folder))
    tables = [
        pa.ipc.open_file(data.shard_uri(path)).read_all()
        for path in data.shards["path"].to_pylist()
    ]
    found: list[list[int]] = pa.concat_tables(tables)[field].to_pylist()
    return found


def test_a_finished_run_in_every_format(run: CommandLine) -> None:
    out = run.folder / "out"
    ids = stored(out, "sequence")
    assert len(ids) > 5
    flat = [each for row in ids for each in row]
    for name in ("megatron", "nanogpt", "datatrove", "litdata"):
        assert run("export", "out", "--to", name, "--field", "sequence", *INLINE) == 0, run.err
        assert f"out-{name}: {len(ids)} samples, " in run.out
    for name in ("parquet", "hf-datasets", "webdataset", "mds"):
        assert run("export", "out", "--to", name, *INLINE) == 0, run.err
    assert [row.tolist() for row in read_megatron(run.folder / "out-megatron/sequence")] == ids
    assert np.fromfile(run.folder / "out-nanogpt/train.bin", "<u2").tolist() == flat
    path = run.folder / "out-datatrove/00000_sequence.ds"
    assert np.fromfile(path, "<u2").tolist() == flat
    assert Path(f"{path}.metadata").read_text().startswith(f"sequence|2\n{len(flat)}\n")
    assert [row.tolist() for row in read_litdata(run.folder / "out-litdata")] == ids
    assert [row["sequence"].tolist() for row in read_mds(run.folder / "out-mds")] == ids
    tars = sorted((run.folder / "out-webdataset").glob("*.tar"))
    assert [row["sequence.npy"].tolist() for row in read_tars(tars)] == ids
    check_with_datasets(run.folder, ids)


def check_with_datasets(folder: Path, ids: list[list[int]]) -> None:
    import datasets

    on_disk = datasets.load_from_disk(str(folder / "out-hf-datasets"))
    assert on_disk["sequence"][:] == ids
    files = str(folder / "out-parquet/data/*.parquet")
    cache = str(folder / "cache")
    parquet = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert parquet["sequence"][:] == ids
    card = (folder / "out-parquet/README.md").read_text()
    assert "| `image_tokens` | uint16 [4] | 64,000 | `dct_fsq` |" in card


def test_sizes_and_names(run: CommandLine) -> None:
    size = ("--file-size", "1e-9")
    args = ("--to", "megatron", "--field", "sequence", "--output", "there", *size, *INLINE)
    assert run("export", "out/manifest.json", *args) == 0, run.err
    prefixes = sorted(path.stem for path in (run.folder / "there").glob("*.idx"))
    assert prefixes == ["sequence_00000", "sequence_00001"]
    assert run("export", "out", *args) == 0
    assert "2 of 2 parts were there" in run.out


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["out"], 2, "Missing option '--to'"),
        (["out", "--to", "megatorn"], 2, "do: did you mean 'megatron'?"),
        (["none", "--to", "mds"], 5, "error: none/manifest.json: no such object"),
        (["out", "--to", "nanogpt"], 2, "has 3 of shape [T] (sequence, image_tokens, caption_tok"),
        (["out", "--to", "mds", "--field", "x"], 2, "--field x: the data set has no such field"),
        (["out", "--to", "mds", "--output", "out"], 2, "files in it that are no export"),
        (["out", "--to", "mds", "--output", "job.yaml"], 3, "not a directory"),
        (["out", "--to", "mds", "--workers", "0"], 2, "--workers 0"),
        (["out", "--to", "mds", "--engine", "spark"], 2, "use ray or inline"),
        (["out", "--to", "mds", "--file-size", "-1"], 2, "'--file-size'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use(args: list[str], code: int, says: str, run: CommandLine) -> None:
    assert run("export", *args) == code
    assert says in run.err
    assert "Traceback" not in run.err
    assert not (run.folder / "out-mds").exists()


def test_another_export_is_not_written_over(run: CommandLine) -> None:
    assert run("export", "out", "--to", "mds", *INLINE) == 0
    before = files_of(run.folder / "out-mds")
    assert run("export", "out", "--to", "webdataset", "--output", "out-mds") == 5
    assert 'holds another export: format "mds", now "webdataset"' in run.err
    assert files_of(run.folder / "out-mds") == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_killed_export_goes_on(tmp_path: Path, number: int, code: int) -> None:
    write_data_set(tmp_path / "data", rows(6_000), partitions=12)
    args = ["export", "data", "--to", "webdataset", "--file-size", "0.0000001", *INLINE]
    process = subprocess.Popen(
        [*PIPELINE, *args, "--output", "out"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has told their children to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    records = tmp_path / "out" / "_export"
    while process.poll() is None and not list(records.glob("0*.json")):
        time.sleep(0.002)
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    if number == signal.SIGINT:
        assert told == "stopped; run the same command again to go on\n"
    assert not (tmp_path / "out" / "export.json").exists()
    assert 1 <= len(list(records.glob("0*.json"))) < 12

    again = pipeline(*args, "--output", "out", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "of 12 parts were there" in again.stdout
    whole = pipeline(*args, "--output", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (about["samples"], len(about["files"])) == (6_000, 12)
