"""A finished small data set, made once, and the command line in a copy of it."""

import shutil
from pathlib import Path

import pytest

from tests.e2e.command_line import CommandLine, pipeline
from tests.e2e.photo_job import write_corpus, write_job


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus, ``job.yaml`` and its finished output ``out``."""
    folder = tmp_path_factory.mktemp("finished")
    write_corpus(folder)
    write_job(folder)
    done = pipeline("run", "job.yaml", "--engine", "inline", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    """The command line in an empty folder."""
    return CommandLine(tmp_path, capsys, monkeypatch)


@pytest.fixture
def run(finished_run: Path, command: CommandLine) -> CommandLine:
    """The command line in a copy of the finished run, whose source is this copy's."""
    shutil.copytree(finished_run, command.folder, dirs_exist_ok=True)
    plan = command.folder / "out" / "_plan.jsonl"
    plan.write_text(plan.read_text().replace(str(finished_run), str(command.folder)))
    return command
