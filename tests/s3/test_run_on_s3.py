"""A whole job from S3 to S3 gives the bytes of the same job on disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import runner
from pipeline.cli import main
from pipeline.manifest import open_data_set
from pipeline.storage import Storage
from pipeline.verify import verify
from tests.e2e.command_line import environment
from tests.s3 import text_job


@pytest.fixture
def options(s3_endpoint: str) -> dict[str, str]:
    return {"key": "AKIAEXAMPLE", "secret": "any", "endpoint_url": s3_endpoint}


@pytest.fixture
def output(s3: Storage, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An output folder; the corpus is uploaded."""
    text_job.upload(s3, f"{bucket}/in")
    monkeypatch.setenv("CORPUS", f"{bucket}/in")
    return f"{bucket}/out"


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    with monkeypatch.context() as patch:
        patch.setenv("CORPUS", str(tmp_path / "in"))
        return text_job.undisturbed(tmp_path)


def test_same_bytes_as_on_disk(
    s3: Storage, output: str, options: dict[str, str], expected: dict[str, bytes]
) -> None:
    job = text_job.job(output, options)
    summary = runner.run(runner.prepare(job), engine="inline")

    assert summary.input_samples == text_job.NUM_SAMPLES
    assert summary.filtered > 0
    assert text_job.data_of(output, s3) == expected
    again = runner.run(runner.prepare(job), engine="inline")
    assert again.num_resumed == again.num_partitions
    findings = list(verify(output, s3))
    assert any(finding.check.startswith("golden") for finding in findings)
    assert [finding for finding in findings if finding.skipped] == []
    assert [finding for finding in findings if finding.problem] == []
    assert open_data_set(output, s3).manifest.totals["samples"] == summary.samples


def test_commands_reach_the_output_with_the_storage_options_of_a_job(
    s3: Storage,
    output: str,
    options: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job_file = tmp_path / "job.yaml"
    job_file.write_text(json.dumps(text_job.settings(output, options)))
    of_job = ["--job", str(job_file)]
    for arguments in (
        ["run", str(job_file), "--engine", "inline"],
        ["status", output, *of_job],
        ["verify", output, *of_job],
        ["report", output, *of_job],
        ["gc", output, *of_job],
    ):
        monkeypatch.setattr("sys.argv", ["pipeline", *arguments])
        main()
    printed = capsys.readouterr().out
    assert f"{text_job.NUM_SAMPLES} samples" in printed
    assert "finished" in printed
    assert "perplexity" in printed
    [stream] = json.loads(s3.read(f"{output}/codebook.json"))["fields"]["tokens"]["streams"]
    assert stream["all"]["ids"] == open_data_set(output, s3).manifest.totals["tokens"]["tokens"]


WITHOUT_DISK = """
import resource, sys
from pipeline.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
run = ["run", "job.yaml", "--engine", "inline"]
verify = ["verify", sys.argv[1], "--no-golden", "--job", "job.yaml"]
for command in (run, verify):
    sys.argv = ["pipeline", *command]
    main()
"""


def test_a_worker_needs_no_disk(
    s3: Storage,
    output: str,
    options: dict[str, str],
    tmp_path: Path,
    expected: dict[str, bytes],
) -> None:
    """The limit is 0 bytes for every file: a run and its check leave nothing on the disk."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "job.yaml").write_text(json.dumps(text_job.settings(output, options)))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DISK, output],
        cwd=folder,
        env=environment(TMPDIR=str(folder)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert text_job.data_of(output, s3) == expected
    assert [path.name for path in folder.iterdir()] == ["job.yaml"]
