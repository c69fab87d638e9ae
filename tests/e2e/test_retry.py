"""``pipeline retry``: what was in the quarantine is tried again, and nothing else changes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from operators.text.byte_text import ByteText
from pipeline import maintenance
from pipeline import retry as again
from pipeline.loader import TokenDataset
from pipeline.storage import Storage
from pipeline.verify import verify
from tests.corpus import (
    commit_records,
    data_files,
    ledger_files,
    manifest,
    picture,
    picture_job,
    quarantined,
    samples,
    text_job,
    write_tar,
    write_texts,
)
from tests.e2e.command_line import CommandLine, pipeline

OLD = ("shards/", "quarantine/", "_job.json", "_plan.jsonl")


@pytest.fixture
def cli(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    return CommandLine(tmp_path, capsys, monkeypatch)


def run(cli: CommandLine, job: dict[str, Any]) -> None:
    (cli.folder / "job.yaml").write_text(json.dumps(job))
    assert cli("run", "job.yaml", "--engine", "inline") == 0, cli.err


def retry(cli: CommandLine, *options: str) -> None:
    assert cli("retry", "out", "--engine", "inline", *options) == 0, cli.err


def rows(out: Path) -> dict[str, list[int]]:
    """Return key -> tokens of all shards that the index names; a key stands there once."""
    found: dict[str, list[int]] = {}
    for path in pa.ipc.open_file(str(out / "index.arrow")).read_all()["path"].to_pylist():
        table = pa.ipc.open_file(str(out / path)).read_all()
        for key, ids in zip(
            table["key"].to_pylist(), table[table.schema.names[1]].to_pylist(), strict=True
        ):
            assert key not in found
            found[key] = ids
    return found


def check(out: Path, *, golden: bool = True) -> None:
    """Everything adds up, every digest is right, and nothing lies around.

    Golden samples can only be encoded again where their files are as they were.
    """
    totals = manifest(out)["totals"]
    parts = totals["samples"] + totals["filtered"] + totals["quarantined"]
    assert totals["input_samples"] == parts
    findings = list(verify(str(out), Storage(), golden=golden))
    assert [found for found in findings if found.problem or found.skipped] == []
    assert list(maintenance.unreferenced(str(out), Storage())) == []
    assert len(rows(out)) == totals["samples"]
    status = maintenance.status(str(out), Storage())
    assert status.sums.num_partitions == status.num_partitions
    assert status.sums.num_quarantined == totals["quarantined"]
    assert status.sums.num_input == totals["input_samples"]


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Any]:
    """Three tars in one partition, with a truncated picture in the second."""
    for tar in range(3):
        members = samples(tar, 6)
        if tar == 1:
            members[4] = (members[4][0], members[4][1][:300])
        write_tar(tmp_path / "in" / f"{tar:02d}.tar", members)
    job = picture_job(f"{tmp_path}/in/*.tar", tmp_path / "out", run={"max_bad_samples": 40})
    job["source"]["partition_bytes"] = 1 << 30
    job["shards"]["fields"] = ["image_tokens"]
    return job


def whole(cli: CommandLine, job: dict[str, Any]) -> dict[str, list[int]]:
    """Return the rows of a run over what the source holds now."""
    job = {**job, "output": str(cli.folder / "whole")}
    shutil.rmtree(cli.folder / "whole", ignore_errors=True)
    (cli.folder / "whole.yaml").write_text(json.dumps(job))
    assert cli("run", "whole.yaml", "--engine", "inline") == 0, cli.err
    return rows(cli.folder / "whole")


def test_a_mended_picture_is_added_and_nothing_else_changes(
    cli: CommandLine, pictures: dict[str, Any]
) -> None:
    run(cli, pictures)
    out = cli.folder / "out"
    before, was, log = data_files(out), manifest(out), ledger_files(out)
    assert (was["totals"]["quarantined"], len(rows(out))) == (1, 17)
    write_tar(cli.folder / "in" / "01.tar", samples(1, 6))
    retry(cli)
    assert "tried      1 samples" in cli.out
    assert "recovered  1" in cli.out
    check(out)
    assert rows(out) == whole(cli, pictures)
    after = data_files(out)
    for name, data in before.items():
        assert not name.startswith(OLD) or after[name] == data, name
    assert {name: ledger_files(out)[name] for name in log} == log
    now = manifest(out)
    assert (now["fingerprint"], now["recipe"]) == (was["fingerprint"], was["recipe"])
    (entry,) = now["retries"]
    assert (entry["retried"], entry["recovered"], entry["first_partition"]) == (1, 1, 1)
    assert now["totals"]["input_samples"] == 18
    assert now["quarantined"] == {}

    assert cli("run", "job.yaml", "--engine", "inline") == 0  # of the data set as it is: finished
    assert data_files(out) == after
    retry(cli)
    assert "nothing is in the quarantine" in cli.out
    assert data_files(out) == after
    data = TokenDataset(str(out), batch_size=4, fields=["image_tokens"], seed=0)
    assert sum(len(batch["image_tokens"]) for batch in data) == 18


def test_what_is_still_bad_stays_and_can_be_retried_again(
    cli: CommandLine, pictures: dict[str, Any]
) -> None:
    run(cli, pictures)
    out = cli.folder / "out"
    retry(cli)
    assert "still bad  1 decode_image: SampleError" in cli.out
    check(out)
    assert manifest(out)["totals"]["quarantined"] == 1
    write_tar(cli.folder / "in" / "01.tar", samples(1, 6))
    retry(cli)
    check(out)
    assert rows(out) == whole(cli, pictures)
    assert [entry["recovered"] for entry in manifest(out)["retries"]] == [0, 1]


def test_a_job_may_be_mended_in_its_operators(cli: CommandLine, pictures: dict[str, Any]) -> None:
    pictures["operators"][0]["max_pixels"] = 90 * 80  # some are larger
    run(cli, pictures)
    out = cli.folder / "out"
    assert manifest(out)["totals"]["quarantined"] > 3
    write_tar(cli.folder / "in" / "01.tar", samples(1, 6))
    del pictures["operators"][0]["max_pixels"]
    (cli.folder / "mended.yaml").write_text(json.dumps(pictures))
    retry(cli, "--job", "mended.yaml")
    assert manifest(out)["totals"] | {"shards": 0, "bytes": 0, "partitions": 0} == {
        **{"input_samples": 18, "samples": 18, "filtered": 0, "quarantined": 0},
        **{"shards": 0, "bytes": 0, "partitions": 0, "tokens": {"image_tokens": 18 * 16}},
    }
    assert rows(out) == whole(cli, pictures)
    totals = manifest(out)["totals"]
    assert totals["input_samples"] == totals["samples"]
    assert manifest(out)["retries"][0]["fingerprint"] != manifest(out)["fingerprint"]
    read = TokenDataset(str(out), batch_size=4, shuffle=False)  # shards of both fingerprints
    assert sum(len(batch["image_tokens"]) for batch in read) == 18
    other = {**pictures, "name": "others"}
    (cli.folder / "other.yaml").write_text(json.dumps(other))
    assert cli("retry", "out", "--job", "other.yaml") == 2
    assert 'name: "others", the data set was made with "pictures"' in cli.err
    fewer = json.loads(json.dumps(pictures).replace('"side": 64', '"side": 64, "patch": 32'))
    (cli.folder / "fewer.yaml").write_text(json.dumps(fewer))
    assert cli("retry", "out", "--job", "fewer.yaml") == 2
    assert "the operators write image_tokens" in cli.err


def test_all_that_a_damaged_file_hid_is_found(cli: CommandLine, pictures: dict[str, Any]) -> None:
    """The file in the middle ends early, and grows: rows of the file behind it move."""
    tar = cli.folder / "in" / "01.tar"
    write_tar(tar, samples(1, 6))
    tar.write_bytes(tar.read_bytes()[:9000])
    run(cli, pictures)
    out = cli.folder / "out"
    (line,) = quarantined(out)
    assert line["error"] == "CorruptTar"
    hidden = 18 - manifest(out)["totals"]["samples"]
    assert hidden > 1
    write_tar(tar, samples(1, 9))
    retry(cli)
    assert f"tried      1 samples, which were {hidden + 3}" in cli.out
    check(out)
    assert rows(out) == whole(cli, pictures)


def test_bad_lines_of_a_text_file(cli: CommandLine) -> None:
    urls = write_texts(cli.folder / "in", files=2)
    path = cli.folder / "in" / "0.jsonl"
    good = path.read_text()
    lines = good.split("\n")
    path.write_text("\n".join([*lines[:2], "{", lines[3], "[]", *lines[5:]]))
    run(cli, text_job(urls, cli.folder / "out", run={"max_bad_samples": 9}))
    out = cli.folder / "out"
    assert [line["file_row"] for line in quarantined(out)] == [2, 4]
    path.write_text(good)
    retry(cli)
    check(out, golden=False)
    assert sorted(rows(out)) == sorted(f"{n}.jsonl:{i}" for n in range(2) for i in range(1, 11))


def test_a_file_that_became_shorter_loses_nothing_unseen(cli: CommandLine, mended: Path) -> None:
    path = cli.folder / "in" / "1.jsonl"
    text = path.read_text()
    path.write_text("".join(text.splitlines(keepends=True)[:6]))
    assert cli("retry", "out", "--engine", "inline") == 5
    assert "(1.jsonl): 1 of 2 rows that are to be tried again are there" in cli.err
    assert manifest(mended)["retries"] == []
    assert cli("retry", "out", "--drop") == 0
    path.write_text(text)
    retry(cli)
    assert cli("gc", "out") == 0
    check(mended, golden=False)
    assert manifest(mended)["totals"]["samples"] == 30


def test_an_image_folder(cli: CommandLine) -> None:
    folder = cli.folder / "in" / "a"
    folder.mkdir(parents=True)
    for i in range(6):
        (folder / f"{i}.jpg").write_bytes(picture(i)[: 200 if i in (1, 4) else None])
    job = picture_job("", cli.folder / "out", run={"max_bad_samples": 9})
    job["source"] = {"type": "image_folder", "urls": str(cli.folder / "in")}
    job["operators"] = job["operators"][:4]
    job["operators"][0]["inputs"] = {"image_bytes": "image"}
    job["shards"] = {"fields": ["image_tokens"]}
    run(cli, job)
    out = cli.folder / "out"
    assert len(rows(out)) == 4
    (folder / "4.jpg").write_bytes(picture(4))
    retry(cli)
    check(out)
    assert sorted(rows(out)) == [f"a/{i}.jpg" for i in (0, 2, 3, 4, 5)]
    (folder / "1.jpg").unlink()
    assert cli("retry", "out", "--engine", "inline") == 5
    assert "a/1.jpg: no such object in the source any more" in cli.err


@pytest.fixture
def mended(cli: CommandLine) -> Path:
    """A data set with bad lines in each of three files, which are mended since."""
    urls = write_texts(cli.folder / "in", files=3)
    texts = {path: path.read_text() for path in sorted((cli.folder / "in").iterdir())}
    for path, text in texts.items():
        path.write_text(text.replace("line 4", 'line 4", "').replace("line 7", "\\"))
    run(cli, text_job(urls, cli.folder / "out", run={"max_bad_samples": 9}))
    assert len(quarantined(cli.folder / "out")) == 6
    for path, text in texts.items():
        path.write_text(text)
    return cli.folder / "out"


class Stop:
    def waiting(self, message: str) -> None:
        raise AssertionError(message)

    def decided(self, warning: str) -> None:
        raise AssertionError(warning)

    def begin(self, partitions: object, done: object, engine: object) -> None:
        pass

    def committed(self, result: object) -> None:
        raise KeyboardInterrupt


def test_a_retry_that_is_stopped_goes_on(cli: CommandLine, mended: Path) -> None:
    shutil.copytree(mended, cli.folder / "copy")
    stop_after_a_commit(mended)
    stopped = commit_records(mended)
    assert manifest(mended)["retries"] == []  # readers see the data set as it was
    assert cli("run", "job.yaml", "--engine", "inline") == 0  # which a run leaves as it is
    assert manifest(mended)["retries"] == []
    retry(cli)
    assert "recovered  6" in cli.out
    assert {index: commit_records(mended)[index] for index in stopped} == stopped
    check(mended, golden=False)
    assert cli("retry", "copy", "--engine", "inline") == 0
    assert data_files(cli.folder / "copy") == data_files(mended)


def test_ray_writes_what_inline_writes(cli: CommandLine, mended: Path) -> None:
    shutil.copytree(mended, cli.folder / "copy")
    retry(cli)
    done = pipeline("retry", "copy", "--workers", "2", cwd=cli.folder)
    assert done.returncode == 0, done.stderr
    assert data_files(cli.folder / "copy") == data_files(mended)


def stop_after_a_commit(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        again.retry(again.prepare(str(out), Storage()), engine="inline", listener=Stop())
    assert 3 < len(commit_records(out)) < 6


def test_operators_that_changed_meanwhile_are_refused(
    cli: CommandLine, mended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That retry can be given up; its numbers and its records are never taken for another's."""
    stop_after_a_commit(mended)
    with monkeypatch.context() as patch:
        patch.setattr(ByteText, "version", 7)
        assert cli("retry", "out", "--engine", "inline") == 5
        assert "retry 1 was begun with another recipe:\n  operators[0].version: 1 -> 7" in cli.err
        assert "pipeline retry out --drop" in " ".join(cli.err.split())
        assert cli("retry", "out", "--drop") == 0
        retry(cli)
        assert "recovered  6" in cli.out
    (entry,) = manifest(mended)["retries"]
    assert entry["operators"][0]["version"] == 7
    assert entry["first_partition"] == 6  # 3 to 5 were the other's
    assert manifest(mended)["operators"][0]["version"] == 1
    assert cli("gc", "out") == 0
    check(mended, golden=False)
    assert cli("retry", "out", "--drop") == 2
    assert "no retry of it is under way" in cli.err
    assert cli("run", "job.yaml", "--engine", "inline") == 0
    check(mended, golden=False)


def test_what_a_changed_operator_began_can_be_given_up(
    cli: CommandLine, mended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger holds segments of its fingerprint for ever."""
    with monkeypatch.context() as patch:
        patch.setattr(ByteText, "version", 7)
        stop_after_a_commit(mended)
    assert cli("retry", "out", "--engine", "inline") == 5
    assert cli("retry", "out", "--drop") == 0
    for command in (["status", "out"], ["gc", "out"], ["verify", "out", "--no-golden"]):
        assert cli(*command) == 0, cli.err
    assert manifest(mended)["retries"] == []
    retry(cli)
    check(mended, golden=False)


def test_killed_between_the_last_commit_and_the_manifest(
    cli: CommandLine, mended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(mended, cli.folder / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(again, "finish", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            again.retry(again.prepare(str(mended), Storage()), engine="inline")
    assert len(commit_records(mended)) == 6
    assert manifest(mended)["retries"] == []
    retry(cli)
    assert "recovered  6" in cli.out
    assert cli("retry", "copy", "--engine", "inline") == 0
    assert data_files(cli.folder / "copy") == data_files(mended)


def test_fresh_removes_retries_too(cli: CommandLine, mended: Path) -> None:
    retry(cli)
    assert (mended / "_retry").exists()
    assert cli("run", "job.yaml", "--engine", "inline", "--fresh") == 0
    assert not list(mended.glob("_retry/*"))
    assert manifest(mended)["retries"] == []


def test_an_unfinished_run_is_no_data_set(cli: CommandLine, pictures: dict[str, Any]) -> None:
    run(cli, pictures)
    (cli.folder / "out" / "manifest.json").unlink()
    assert cli("retry", "out", "--engine", "inline") == 5
    assert "the run is not finished" in cli.err
