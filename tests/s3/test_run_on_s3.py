"""A whole job from S3 to S3 gives the bytes of the same job on disk."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import runner
from pipeline.cli import main
from pipeline.manifest import open_data_set
from pipeline.spec import JobSpec, parse_job
from pipeline.storage import Storage
from pipeline.verify import verify

JOB = """
name: on_s3
source:
  type: parquet
  urls: ${{CORPUS}}/*.parquet
  fields: {{text: text}}
  partition_bytes: 1000
operators:
  - name: byte_text
  - name: length_filter
    min_length: 9
shards: {{fields: [tokens]}}
output: {output}
storage: {storage}
"""


def job(output: str, storage: str = "{}") -> JobSpec:
    return parse_job(JOB.format(output=output, storage=storage), "job.yaml")


def corpus() -> dict[str, bytes]:
    files = {}
    for part in range(3):
        buffer = io.BytesIO()
        pq.write_table(
            pa.table({"text": [f"text {part} {n}" * (n % 5) for n in range(80)]}), buffer
        )
        files[f"part-{part}.parquet"] = buffer.getvalue()
    return files


def shards_of(uri: str, storage: Storage) -> dict[str, bytes]:
    names = ("manifest.json", "index.arrow", "shards/", "quarantine/")
    found = {entry.uri.removeprefix(f"{uri}/"): entry.uri for entry in storage.walk(uri)}
    return {path: storage.read(full) for path, full in found.items() if path.startswith(names)}


def test_same_bytes_as_on_disk(
    s3: Storage, s3_endpoint: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in corpus().items():
        s3.write(f"{bucket}/in/{name}", data)
        (tmp_path / name).write_bytes(data)
    options = f"{{s3: {{key: AKIAEXAMPLE, secret: any, endpoint_url: '{s3_endpoint}'}}}}"
    local = tmp_path / "out"

    monkeypatch.setenv("CORPUS", str(tmp_path))
    runner.run(runner.prepare(job(str(local))), engine="inline")
    monkeypatch.setenv("CORPUS", f"{bucket}/in")
    remote = job(f"{bucket}/out", options)
    summary = runner.run(runner.prepare(remote), engine="inline")

    assert summary.input_samples == 240
    assert summary.filtered > 0
    assert shards_of(f"{bucket}/out", s3) == shards_of(str(local), Storage())
    again = runner.run(runner.prepare(remote), engine="inline")
    assert again.num_resumed == again.num_partitions
    findings = list(verify(f"{bucket}/out", s3))
    assert any(finding.check.startswith("golden") for finding in findings)
    assert [finding for finding in findings if finding.skipped] == []
    assert [finding for finding in findings if finding.problem] == []
    assert open_data_set(f"{bucket}/out", s3).manifest.totals["samples"] == summary.samples


def test_no_credential_is_written(
    s3: Storage, s3_endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in corpus().items():
        s3.write(f"{bucket}/in/{name}", data)
    monkeypatch.setenv("CORPUS", f"{bucket}/in")
    options = f"{{s3: {{key: AKIAEXAMPLE, secret: sesame, endpoint_url: '{s3_endpoint}'}}}}"
    runner.run(runner.prepare(job(f"{bucket}/out", options)), engine="inline")
    written = list(s3.walk(f"{bucket}/out"))
    assert len(written) > 8
    for entry in written:
        content = s3.read(entry.uri)
        assert b"sesame" not in content
        assert b"AKIAEXAMPLE" not in content


def test_commands_reach_the_output_with_the_storage_options_of_a_job(
    s3: Storage,
    s3_endpoint: str,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, data in corpus().items():
        s3.write(f"{bucket}/in/{name}", data)
    monkeypatch.setenv("CORPUS", f"{bucket}/in")
    options = f"{{s3: {{key: AKIAEXAMPLE, secret: any, endpoint_url: '{s3_endpoint}'}}}}"
    job_file = tmp_path / "job.yaml"
    job_file.write_text(JOB.format(output=f"{bucket}/out", storage=options))
    of_job = ["--job", str(job_file)]
    for arguments in (
        ["run", str(job_file), "--engine", "inline"],
        ["status", f"{bucket}/out", *of_job],
        ["verify", f"{bucket}/out", *of_job],
        ["report", f"{bucket}/out", *of_job],
        ["gc", f"{bucket}/out", *of_job],
    ):
        monkeypatch.setattr("sys.argv", ["pipeline", *arguments])
        main()
    printed = capsys.readouterr().out
    assert "240 samples" in printed
    assert "finished" in printed
