"""The driver ends at the very moment of a commit, before or after its record is there."""

import subprocess
from pathlib import Path

import pytest

from pipeline import maintenance
from pipeline.storage import Storage
from tests.corpus import (
    command,
    commit_records,
    data_files,
    environment,
    ledger_files,
    run_command,
    run_inline,
    text_job,
    write_texts,
)

pytestmark = pytest.mark.timeout(120)

FILES = 4
CRASH = """
import os, sys
from pipeline import committer
from pipeline.cli import main
from pipeline.storage import Storage
committer.MAX_RECORDS = 1  # a segment a record
create, left, moment = Storage.create_exclusive, [int(sys.argv.pop(1))], sys.argv.pop(1)

def crashing(self, uri, data):
    if uri.endswith(".jsonl"):
        left[0] -= 1
        if left[0] == 0:
            if moment == "after":
                create(self, uri, data)
            os._exit(9)
    create(self, uri, data)

Storage.create_exclusive = crashing
main()
"""


@pytest.mark.parametrize("segment", [1, 2])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_next_run_does_what_has_no_record(tmp_path: Path, moment: str, segment: int) -> None:
    urls = write_texts(tmp_path / "in", files=FILES)
    run_inline(text_job(urls, tmp_path / "undisturbed"))
    out = tmp_path / "out"
    job = text_job(urls, out)
    program, _, _, *arguments = command(job, tmp_path, "--engine", "inline")
    crashed = subprocess.run(
        [program, "-c", CRASH, str(segment), moment, *arguments],
        env=environment(),
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert crashed.returncode == 9
    segments, records = ledger_files(out), commit_records(out)
    assert len(segments) == (segment if moment == "after" else segment - 1)
    shards = {path.name for path in (out / "shards").glob("0*.arrow")}
    if moment == "before":
        assert len(shards) > len(records)  # written, and no record names them
    assert not (out / "manifest.json").exists()

    done = run_command(job, tmp_path, "--engine", "inline")
    assert done.returncode == 0, done.stderr
    assert ledger_files(out).items() >= segments.items()
    assert commit_records(out).items() >= records.items()
    assert len(commit_records(out)) == FILES
    list(maintenance.remove_unreferenced(str(out), Storage()))  # temporary files
    assert data_files(out) == data_files(tmp_path / "undisturbed")
