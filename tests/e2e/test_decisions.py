"""An operator finds late that a setting cannot hold: the run takes the other one for everything."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from operators import registry
from pipeline import maintenance, runner
from pipeline import retry as again
from pipeline.decisions import Decision, read_decisions, write_decision
from pipeline.errors import ContractError, FingerprintMismatchError
from pipeline.runner import prepare, run
from pipeline.storage import Storage
from pipeline.verify import verify
from tests import faulty_operators
from tests.corpus import (
    command,
    data_files,
    environment,
    manifest,
    parse,
    run_command,
    run_inline,
    text_job,
    write_texts,
)
from tests.ray_runs import run_all

pytestmark = pytest.mark.timeout(200)

FILES = 4
WRONG = f"file {FILES - 1}, line 1"
CRASH = """
import os
from pipeline import runner
from pipeline.cli import main

write = runner.write_decision

def crashing(*arguments):
    write(*arguments)
    os._exit(9)

runner.write_decision = crashing
main()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that makes the operators of this test known; they are known here."""
    folder = faulty_operators.announce(tmp_path / "package")
    monkeypatch.syspath_prepend(str(folder))
    registry.all_classes.cache_clear()
    yield folder
    registry.all_classes.cache_clear()


def job(folder: Path, output: str, **options: Any) -> dict[str, Any]:
    if not (folder / "in").exists():
        write_texts(folder / "in", files=FILES)
    operator = {"name": "doubt", "wrong_in": WRONG, **options}
    shards = {"fields": ["lengths"]}
    return text_job(f"{folder}/in/*.jsonl", folder / output, operators=[operator], shards=shards)


def given(folder: Path) -> dict[str, bytes]:
    """Return the shards and the manifest, without warnings, of a job with the reference."""
    run_inline(job(folder, "given", backend="reference"))
    assert manifest(folder / "given")["warnings"] == []
    return made(folder / "given")


def made(output: Path) -> dict[str, bytes]:
    """Return shards, index and manifest, without its warnings."""
    files = {
        name: data
        for name, data in data_files(output).items()
        if not name.startswith("_") and name != "manifest.json"
    }
    about = {**manifest(output), "warnings": []}
    return {**files, "manifest": json.dumps(about).encode()}


def check(folder: Path, output: str, wanted: dict[str, bytes]) -> None:
    """Compare a decided data set with that of the reference, and look at it by every command."""
    out = folder / output
    assert made(out) == wanted
    warning = "doubt: fast is wrong: backend: reference is used for the whole run"
    assert manifest(out)["warnings"] == [warning]
    assert json.loads((out / "report.json").read_bytes())["warnings"] == [warning]
    findings = list(verify(str(out), Storage()))
    assert [found for found in findings if found.problem or found.skipped] == []
    status = maintenance.status(str(out), Storage())
    assert (status.finished, status.sums.num_partitions) == (True, FILES)
    assert list(maintenance.unreferenced(str(out), Storage())) == []


def test_inline_and_on_workers_the_bytes_are_those_of_the_reference(
    tmp_path: Path, package: Path
) -> None:
    wanted = given(tmp_path)
    shown = run_command(
        job(tmp_path, "inline"), tmp_path / "cli", "--engine", "inline", paths=[package]
    )
    assert shown.returncode == 0, shown.stderr
    assert "warning: doubt: fast is wrong: backend: reference is used" in shown.stdout
    check(tmp_path, "inline", wanted)
    outcomes = run_all(tmp_path, [(job(tmp_path, "ray"), 2)], package)
    assert [outcome["exit_code"] for outcome in outcomes] == [0], outcomes
    check(tmp_path, "ray", wanted)


def test_a_crash_right_after_the_decision_changes_nothing(tmp_path: Path, package: Path) -> None:
    wanted = given(tmp_path)
    out = tmp_path / "out"
    program, _, _, *arguments = command(job(tmp_path, "out"), tmp_path, "--engine", "inline")
    crashed = subprocess.run(
        [program, "-c", CRASH, *arguments],
        env=environment(package),
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert crashed.returncode == 9
    assert list((out / "_ledger").glob("*.jsonl")), "partitions of the fast way are committed"
    for _ in range(2):  # the second has nothing to do
        run_inline(job(tmp_path, "out"))
        check(tmp_path, "out", wanted)
    run_inline(job(tmp_path, "out", backend="reference"))  # it is the same recipe now
    assert again.retry(again.prepare(str(out), Storage()), engine="inline").tried == 0
    decided = again.prepare(str(out), Storage(), parse(job(tmp_path, "out")))
    assert decided.fingerprint == manifest(out)["fingerprint"]


@pytest.mark.usefixtures("package")
def test_a_driver_takes_the_decision_that_another_wrote_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = given(tmp_path)

    def write_after_another(storage: Storage, output: str, decision: Decision) -> None:
        write_decision(storage, output, replace(decision, found="by another driver"))
        write_decision(storage, output, decision)

    monkeypatch.setattr(runner, "write_decision", write_after_another)
    run_inline(job(tmp_path, "out"))
    check(tmp_path, "out", wanted)
    (written,) = read_decisions(Storage(), str(tmp_path / "out"))
    assert written.found == "by another driver"


@pytest.mark.usefixtures("package")
def test_another_recipe_is_refused_and_fresh_forgets_the_decision(tmp_path: Path) -> None:
    run_inline(job(tmp_path, "out"))
    with pytest.raises(FingerprintMismatchError, match="wrong_in"):
        run_inline(job(tmp_path, "out", wrong_in="nowhere"))
    run_inline(job(tmp_path, "out", wrong_in="nowhere"), fresh=True)
    assert manifest(tmp_path / "out")["recipe"]["operators"][0]["backend"] == "fast"
    assert manifest(tmp_path / "out")["warnings"] == []


@pytest.mark.usefixtures("package")
def test_rows_beyond_the_first_and_their_own_faults_decide_nothing(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", files=1)
    (tmp_path / "in" / "1.jsonl").write_text(json.dumps({"text": "raise"}) + "\n")
    run_inline(job(tmp_path, "out", wrong_in="line 2"))
    assert manifest(tmp_path / "out")["recipe"]["operators"][0]["backend"] == "fast"
    assert not (tmp_path / "out" / "_decisions").exists()


@pytest.mark.usefixtures("package")
def test_a_decision_that_does_not_help_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="does not mend what it is to mend"):
        run(prepare(parse(job(tmp_path, "out", repents=False))), engine="inline")
