"""The smaller commands: what they say, how they end when something is wrong, and ``gc``."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import SetupError
from pipeline.lease import Lease
from pipeline.storage import Storage
from tests.e2e.command_line import CommandLine, pipeline
from tests.e2e.photo_job import write_corpus, write_job


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["run", "job.yaml", "--engine", "slurm"], 2, "--engine slurm: unknown engine\n"),
        (["run", "job.yaml", "--workers", "0"], 2, "--workers 0: expected a number from 1, or"),
        (["run", "job.yaml", "--limit", "0"], 2, "'--limit': Input should be greater than or"),
        (["run"], 2, "Missing argument 'job_file'."),
        (["run", "job.yaml", "--outptu", "x"], 2, "No such option: --outptu"),
        (["rum"], 2, "No such command 'rum'."),
        (["run", "job.yaml", "--engine", "inline", "--output", "job.yaml"], 3, "not a directory"),
        (["operators", "resise"], 2, "do: did you mean 'resize'?"),
        (["status", "none"], 5, "error: none: no run wrote here\n"),
        (["gc", "none"], 5, "error: none: no run wrote here\n"),
        (["report", "none"], 5, "error: none: no report\n"),
        (["verify", "none"], 5, "error: none/manifest.json: no such object\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use(args: list[str], code: int, says: str, command: CommandLine) -> None:
    write_corpus(command.folder)
    write_job(command.folder)
    assert command(*args) == code
    assert says in command.err
    assert "Traceback" not in command.err
    assert not (command.folder / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_closed_folders_and_files(command: CommandLine) -> None:
    write_corpus(command.folder)
    job = write_job(command.folder)
    (command.folder / "closed").mkdir(mode=0o500)
    assert command("run", "job.yaml", "--engine", "inline", "--output", "closed/out") == 3
    assert "permission denied" in command.err
    job.chmod(0)
    assert command("run", "job.yaml") == 2
    assert command.err.startswith("error: job.yaml: permission denied\n")


def test_source_that_is_not_there(command: CommandLine) -> None:
    write_job(command.folder)
    assert command("run", "job.yaml", "--engine", "inline") == 3
    assert "photos-*.tar" in command.err
    assert not (command.folder / "out").exists()


def test_piped_output_is_plain_text(run: CommandLine) -> None:
    done = pipeline("status", "out", cwd=run.folder, TERM="xterm-256color")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[0].split() == ["job", "photos", "(finished)"]
    assert "\nquarantined  1" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_report_repeats_the_figures_of_the_run(run: CommandLine) -> None:
    assert run("report", "out") == 0
    assert "7 samples in 2 shards" in run.out
    assert "1 (decode_image: SampleError 1)" in run.out
    assert "385 sequence" in run.out


def test_report_counts_the_ids_once(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run.folder / "out"
    data = {path: path.read_bytes() for path in files(out)}
    assert run("report", "out") == 0
    first = run.out
    rows = {line.split()[0]: line.split()[1:] for line in first.splitlines() if line.strip()}
    image_ids = [
        each
        for path in sorted(out.glob("shards/*.arrow"))
        for row in pa.ipc.open_file(path.read_bytes()).read_all()["image_tokens"].to_pylist()
        for each in row
    ]
    (most, times), *_ = Counter(sorted(image_ids)).most_common(1)
    assert f"image_tokens    {most} ({times})" in first
    used = len(set(image_ids)) / 64_000
    assert rows["input"] == ["8", "samples"]
    line = next(line for line in first.splitlines() if line.startswith("image_tokens"))
    assert line.split()[1:4] == ["28", "64,000", f"{used:.0e}"]
    assert "note  fewer than 10 ids for each entry of the codebook" in first

    kept = json.loads((out / "codebook.json").read_bytes())
    assert list(kept["fields"]) == ["sequence", "image_tokens", "caption_tokens"]
    assert kept["fields"]["image_tokens"]["streams"][0]["all"]["ids"] == 28
    assert {path: path.read_bytes() for path in files(out) if path.name != "codebook.json"} == data

    monkeypatch.setattr("pipeline.report.codebook.count_ids", None)
    assert run("report", "out/manifest.json") == 0
    assert run.out == first
    assert run("verify", "out") == 0
    assert run("gc", "out") == 0
    assert (out / "codebook.json").exists()


def test_report_without_the_ids(run: CommandLine) -> None:
    assert run("report", "out", "--no-codebook") == 0
    assert "385 sequence" in run.out
    assert "perplexity" not in run.out
    assert not (run.folder / "out/codebook.json").exists()


def test_report_names_a_damaged_shard(run: CommandLine) -> None:
    shard = run.folder / "out/shards/0000001-000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run("report", "out") == 5
    assert "385 sequence" in run.out
    assert "out/shards/0000001-000.arrow: " in run.err
    assert "bytes, the index says" in run.err


def test_report_of_a_data_set_that_nothing_can_be_written_to(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SetupError("out: permission denied")

    monkeypatch.setattr(Storage, "write", refuse)
    assert run("report", "out") == 0
    assert "perplexity" in run.out
    assert run.err == "warning: these figures are not kept: out: permission denied\n"


def test_fresh_removes_the_figures_too(run: CommandLine) -> None:
    assert run("report", "out") == 0
    assert run("run", "job.yaml", "--engine", "inline", "--fresh") == 0
    assert not (run.folder / "out/codebook.json").exists()


def test_validate_reads_no_data(command: CommandLine) -> None:
    write_job(command.folder)
    assert command("validate", "job.yaml") == 0
    assert command.out == "job.yaml: valid (5 operators)\n"


def test_plan_shows_the_chain_and_writes_nothing(command: CommandLine) -> None:
    write_corpus(command.folder)
    write_job(command.folder)
    assert command("plan", "job.yaml") == 0
    lines = [line.split() for line in command.out.splitlines()]
    assert ["cpu", "dct_fsq", "1", "0", "image_tokens:", "uint16[4]", "<", "64,000"] in lines
    assert ["partitions", "2,"] in [line[:2] for line in lines]
    assert ["samples", "about", "8"] in lines
    assert not (command.folder / "out").exists()


def test_operators_are_listed_and_described(command: CommandLine) -> None:
    assert command("operators") == 0
    listed = [" ".join(line.split()) for line in command.out.splitlines()]
    assert "image tokenizers runs on codebook tokens what it does" in listed
    assert any(line.startswith("dct_fsq cpu 64,000 256 Map") for line in listed)
    assert any(line.startswith("length_filter cpu, filter Keep") for line in listed)
    assert command("operators", "resize") == 0
    lines = [" ".join(line.split()) for line in command.out.splitlines()]
    assert lines[0] == "Resize RGB images."
    assert "reads image: pillow[*, *, 3]" in lines
    assert "adds image: pillow[*, *, 3]" in lines
    assert "stage cpu (1 core)" in lines
    assert "size whole number, 1 to 16,384 256 Pixels." in lines
    assert command("operators", "llamagen_vq") == 0
    lines = [" ".join(line.split()) for line in command.out.splitlines()]
    assert "peizesun/llamagen_t2i ds16_t2i 16,384 256 256" in lines
    assert "paper arXiv:2406.06525" in lines
    assert "licence MIT" in lines
    agreement = "float32 1, compiled 1, bfloat16 0.93: ids as the authors', at least, on golden"
    assert any(line.startswith(f"agrees {agreement}") for line in lines)
    settings = [line.split(" ")[0] for line in lines[lines.index("setting type default meaning") :]]
    assert settings.index("weights") < settings.index("device") < settings.index("inputs")
    assert command("operators", "topk") == 0
    lines = [" ".join(line.split()) for line in command.out.splitlines()]
    assert "sizes: int16|int32[*], where it is there" in lines
    assert any(line.startswith("when asked cls_attention [L, H, N]: what") for line in lines)
    assert command("operators", "sequence") == 0
    lines = [" ".join(line.split()) for line in command.out.splitlines()]
    assert "fields depend on the settings" in lines


def test_gc_removes_what_no_commit_names(run: CommandLine) -> None:
    out = run.folder / "out"
    left = [
        out / "shards/0000001-001.arrow",
        out / "shards/.0000000-000.arrow.x.tmp",
        out / "quarantine/0000000.jsonl",
        out / "_ledger/.0000002.jsonl.x.tmp",
    ]
    before = {path: path.read_bytes() for path in files(out)}
    for path in left:
        path.write_bytes(b"half")

    assert run("gc", "./out/", "--dry-run") == 0
    assert run.out.splitlines()[-1] == "4 files, 16 B would be freed"
    assert all(path.exists() for path in left)

    assert run("gc", "out") == 0
    assert sorted(run.out.splitlines()[:-1]) == sorted(
        f"removed {path.relative_to(run.folder)}" for path in left
    )
    assert run.out.splitlines()[-1] == "4 files, 16 B freed"
    assert {path: path.read_bytes() for path in files(out)} == before
    assert run("gc", "out") == 0
    assert run.out == "0 files, 0 B freed\n"


def test_gc_of_an_unfinished_run_must_be_asked_for(run: CommandLine) -> None:
    out = run.folder / "out"
    (out / "manifest.json").unlink()
    (out / "shards/0000001-001.arrow").write_bytes(b"half")
    assert run("gc", "out") == 2
    assert "the run is not finished" in run.err
    assert (out / "shards/0000001-001.arrow").exists()
    assert run("gc", "out", "--unfinished") == 0
    assert not (out / "shards/0000001-001.arrow").exists()
    assert run("run", "job.yaml", "--engine", "inline") == 0
    assert run("verify", "out") == 0


def test_status_names_the_run_that_holds_the_output(run: CommandLine) -> None:
    out = run.folder / "out"
    with Lease(Storage(), str(out)) as held:
        assert run("status", "out") == 0
        assert f"\nheld by      {held.holder()}\n" in run.out
        lease = next((out / "_lease").iterdir())
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        lease.write_text(json.dumps({**json.loads(lease.read_text()), "pid": ended.pid}))
        assert run("status", "out") == 0
        assert f"\nheld by      process {ended.pid} on " in run.out
        assert "UTC (it has ended)\n" in run.out
    assert run("status", "out") == 0
    assert "held by" not in run.out


def test_gc_leaves_a_run_at_work_alone(run: CommandLine) -> None:
    out = run.folder / "out"
    (out / "shards/0000001-001.arrow").write_bytes(b"half")
    with Lease(Storage(), str(out), ttl_s=0.4):
        assert run("gc", "out") == 8
        assert "out: another run is at work on it: process " in run.err
        assert (out / "shards/0000001-001.arrow").exists()
        assert run("gc", "out", "--dry-run") == 0


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
