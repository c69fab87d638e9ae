"""``pipeline verify`` finds every kind of damage and names it; ``--repair`` mends what can be."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from operators import registry
from operators.text.byte_text import ByteText
from pipeline.errors import LeaseError
from pipeline.lease import Lease
from pipeline.storage import Storage
from pipeline.verify import CHUNK_BYTES, Finding, repair, verify
from tests.corpus import commit_records, ledger_files
from tests.e2e.command_line import CommandLine
from tests.e2e.photo_job import write_corpus, write_job

SHARD = "shards/0000001-000.arrow"
QUARANTINE = "quarantine/0000001.jsonl"


def test_finished_run_is_right(run: CommandLine) -> None:
    assert run("verify", "out") == 0
    assert run.out == "right    11 checks: 2 shards, 7 samples, 756 tokens\n"
    assert run("verify", "out/manifest.json", "--no-golden") == 0
    assert run.out == "right    9 checks: 2 shards, 7 samples, 756 tokens\n"


def flip_shard(out: Path) -> None:
    flip(out / SHARD)


def cut_shard(out: Path) -> None:
    (out / SHARD).write_bytes((out / SHARD).read_bytes()[:-8])


def remove_shard(out: Path) -> None:
    (out / SHARD).unlink()


def flip_quarantine(out: Path) -> None:
    flip(out / QUARANTINE)


def remove_quarantine(out: Path) -> None:
    (out / QUARANTINE).unlink()


def edit_total(out: Path) -> None:
    edit_manifest(out, lambda manifest: manifest["totals"].update(samples=8, quarantined=0))


def edit_filtered(out: Path) -> None:
    edit_manifest(out, lambda manifest: manifest.update(quarantined={}))


def edit_golden(out: Path) -> None:
    edit_manifest(
        out, lambda manifest: manifest["golden"][0]["fields"]["sequence"].update(sha256="0" * 64)
    )


def flip_index(out: Path) -> None:
    flip(out / "index.arrow")


def remove_index(out: Path) -> None:
    (out / "index.arrow").unlink()


def remove_record(out: Path) -> None:
    segment, line = record(out)
    head, *lines = segment.read_text().split("\n")
    lines.remove(line)
    about = {**json.loads(head), "lines": len(lines) - 1}  # the last is empty: the end of the file
    segment.write_text("\n".join([json.dumps(about), *lines]))


def remove_segment(out: Path) -> None:
    record(out)[0].unlink()


def cut_record(out: Path) -> None:
    replace_record(out, lambda line: line[:-9])


def cut_segment(out: Path) -> None:
    segment, line = record(out)
    text = segment.read_text()
    segment.write_text(text[: text.index(line) + 9])


def empty_segment(out: Path) -> None:
    segment, _ = record(out)
    segment.write_bytes(bytes(segment.stat().st_size))


def edit_record(out: Path) -> None:
    def other(line: str) -> str:
        found = json.loads(line)
        found["shards"][0]["sha256"] = "0" * 64
        return json.dumps(found)

    replace_record(out, other)


def record(out: Path, partition: int = 1) -> tuple[Path, str]:
    """Return the segment of a partition's commit record, and its line."""
    return next(
        (path, line)
        for path in sorted((out / "_ledger").glob("*.jsonl"))
        for line in path.read_text().split("\n")
        if json.loads(line or "{}").get("partition") == partition
    )


def replace_record(out: Path, change: Callable[[str], str]) -> None:
    segment, line = record(out)
    segment.write_text(segment.read_text().replace(line, change(line)))


def edit_ids(out: Path) -> None:
    """Put an id above the vocabulary into a shard, with hashes to match everywhere."""

    def above(table: pa.Table) -> pa.Table:
        ids = np.asarray(table["image_tokens"].combine_chunks().flatten()).copy()
        ids[5] = 64_000
        kind = table.schema.field("image_tokens").type
        column = pa.FixedSizeListArray.from_arrays(pa.array(ids), type=kind)
        return table.set_column(2, table.schema.field("image_tokens"), column)

    rewrite_shard(out, above)


def edit_dtype(out: Path) -> None:
    def wider(table: pa.Table) -> pa.Table:
        return table.set_column(
            3, "caption_tokens", table["caption_tokens"].cast(pa.list_(pa.uint16()))
        )

    rewrite_shard(out, wider)


def remove_row(out: Path) -> None:
    rewrite_shard(out, lambda table: table.slice(1))


def foreign_shard(out: Path) -> None:
    rewrite_shard(out, lambda table: table.replace_schema_metadata({"tokenmill": "{}"}))


def not_a_shard(out: Path) -> None:
    (out / SHARD).write_bytes(b"ARROW?")
    match_hashes(out)


DAMAGE: dict[Callable[[Path], None], str] = {
    flip_shard: f"wrong    {SHARD}: sha256 ",
    cut_shard: f"wrong    {SHARD}: 2,",
    remove_shard: f"wrong    {SHARD}: out/{SHARD}: no such object",
    flip_quarantine: f"wrong    {QUARANTINE}: sha256 ",
    remove_quarantine: f"wrong    {QUARANTINE}: out/{QUARANTINE}: no such object",
    edit_total: "wrong    counts add up: the shards have 7 samples, the manifest says 8",
    edit_filtered: "wrong    manifest and ledger agree: quarantined: the manifest says {}, the",
    edit_golden: "wrong    manifest and ledger agree: golden: the manifest says {'0-0'",
    flip_index: "wrong    manifest and index belong together: out/index.arrow: sha256 ",
    remove_index: "wrong    manifest and index belong together: out/index.arrow: no such object",
    remove_record: "wrong    commit record of partition 1: there is none",
    remove_segment: "wrong    commit record of partition 1: there is none",
    cut_record: ": not a commit record (",
    cut_segment: ": the line is cut",
    empty_segment: "line 1: not the head of a segment (",
    edit_record: "wrong    commit record of partition 1: names other shards than the index",
    edit_ids: f"wrong    {SHARD}: field 'image_tokens' holds id 64,000, the vocabulary is 64,000",
    edit_dtype: f"wrong    {SHARD}: field 'caption_tokens' is list<item: uint16>, expected list",
    remove_row: f"wrong    {SHARD}: 2 rows, the index says 3",
    foreign_shard: f"wrong    {SHARD}: carries another fingerprint than the manifest",
    not_a_shard: f"wrong    {SHARD}: not a shard: ",
}


@pytest.mark.parametrize(
    ("damage", "says"), DAMAGE.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_damage_is_named_and_repaired(
    damage: Callable[[Path], None], says: str, run: CommandLine
) -> None:
    before = contents(run.folder / "out")
    damage(run.folder / "out")
    assert run("verify", "out") == 5
    assert says in run.out
    assert "do: `pipeline verify out --repair` takes back what is damaged" in run.err

    assert run("verify", "out", "--repair") == 5
    assert "do: run the job again" in run.err
    assert run("verify", "out") == 5
    assert "the run is not finished" in run.err
    assert run("run", "job.yaml", "--engine", "inline") == 0
    assert run("verify", "out") == 0
    assert contents(run.folder / "out") == before


def test_edited_golden_sample_is_encoded_again(run: CommandLine) -> None:
    edit_golden(run.folder / "out")
    run("verify", "out")
    assert "wrong    golden sample 0-0: sequence: 55 ids [0, 85, " in run.out


def test_repair_touches_only_what_is_damaged(run: CommandLine) -> None:
    flip_shard(run.folder / "out")
    out = run.folder / "out"
    segments, records = ledger_files(out), commit_records(out)
    assert run("verify", "out", "--repair") == 5
    assert "took back the manifest and 1 commit records" in run.err
    assert commit_records(out) == {0: records[0]}
    assert ledger_files(out).items() > segments.items()


def test_ledger_of_an_unfinished_run_is_mended(run: CommandLine) -> None:
    out = run.folder / "out"
    before, records = contents(out), commit_records(out)
    (out / "manifest.json").unlink()
    cut_record(out)
    assert run("run", "job.yaml", "--engine", "inline") == 5
    assert ": not a commit record (" in run.err
    assert "do: `pipeline verify out --repair` keeps what can be read of the ledger" in run.err
    assert run("verify", "out", "--repair") == 5
    assert "do: run the job again: it does anew what is missing" in run.err
    assert commit_records(out) == {0: records[0]}
    assert run("verify", "out", "--repair") == 5
    assert "the run is not finished" in run.err
    assert run("run", "job.yaml", "--engine", "inline") == 0
    assert "1 of 2 partitions are done already" in run.out
    assert contents(out) == before


def test_repair_waits_for_no_run_at_work(run: CommandLine) -> None:
    out = run.folder / "out"
    flip_shard(out)
    before, records = contents(out), ledger_files(out)
    with Lease(Storage(), str(out), ttl_s=0.4), pytest.raises(LeaseError, match="at work on it"):
        repair(str(out), Storage(), [Finding(SHARD, "damaged", redo=(1,))], ttl_s=0.4)
    assert (contents(out), ledger_files(out)) == (before, records)


def test_repair_of_a_right_data_set_changes_nothing(run: CommandLine) -> None:
    before = contents(run.folder / "out")
    assert run("verify", "out", "--repair") == 0
    assert contents(run.folder / "out") == before


def test_repair_leaves_alone_what_it_cannot_mend(run: CommandLine) -> None:
    found = [Finding("golden sample", "other ids"), Finding("x", skipped="y", redo=(1,))]
    assert repair(str(run.folder / "out"), Storage(), found) == []
    assert (run.folder / "out/manifest.json").exists()


def test_edited_plan_is_named(run: CommandLine) -> None:
    plan = run.folder / "out/_plan.jsonl"
    plan.write_text(plan.read_text().replace("photos-1.tar", "photos-2.tar"))
    assert run("verify", "out", "--no-golden") == 5
    assert "wrong    plan: the plan is not the one that the manifest names" in run.out
    assert "do: nothing that a repair could mend" in run.err


def test_source_that_is_gone_skips_the_golden_samples(run: CommandLine) -> None:
    (run.folder / "photos-0.tar").unlink()
    assert run("verify", "out") == 0
    assert "skipped  2 golden samples give the same ids: " in run.out
    assert "photos-0.tar: no such object" in run.out
    assert "right    10 checks" in run.out


def test_operator_that_is_gone_skips_the_golden_samples(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = registry.get
    monkeypatch.setattr(registry, "get", lambda name: known(name.replace("byte_text", "gone")))
    assert run("verify", "out") == 0
    assert "skipped  2 golden samples give the same ids: " in run.out
    assert "no operator is named 'gone'" in run.out


def test_other_version_of_an_operator_is_named(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ByteText, "version", 99)
    assert run("verify", "out") == 5
    assert "the operators here are not those that wrote it: byte_text differ" in run.out
    assert "do: nothing that a repair could mend" in run.err


def test_operator_that_gives_other_ids_is_named(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ByteText.__call__

    def reversed_bytes(self: ByteText, batch: Any) -> Any:
        out = original(self, batch)
        return {"tokens": replace(out["tokens"], values=out["tokens"].values[::-1].copy())}

    monkeypatch.setattr(ByteText, "__call__", reversed_bytes)
    assert run("verify", "out") == 5
    assert "wrong    golden sample 0-0: " in run.out
    assert "wrong    golden sample 1-0: " in run.out


def test_warning_of_random_weights_is_repeated(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"random_weights": True, "warning": "byte_text: the weights are random"}
    monkeypatch.setattr(ByteText, "identity", lambda self: said)
    write_corpus(command.folder)
    write_job(command.folder)
    assert command("run", "job.yaml", "--engine", "inline") == 0
    assert "warning: byte_text: the weights are random" in command.err
    assert command("plan", "job.yaml") == 0
    assert "byte_text: the weights are random" in command.out
    assert command("verify", "out") == 0
    assert "warning  byte_text: the weights are random\n" in command.out
    assert command("report", "out") == 0
    assert "byte_text: the weights are random" in command.out


def test_unfinished_run_has_nothing_to_verify(run: CommandLine) -> None:
    (run.folder / "out/manifest.json").unlink()
    assert run("verify", "out") == 5
    assert run.err.startswith("error: out/manifest.json: no such object\n")


def test_manifest_of_another_version_is_refused_and_kept(run: CommandLine) -> None:
    edit_manifest(run.folder / "out", lambda manifest: manifest.update(format_version=99))
    assert run("verify", "out", "--repair") == 5
    assert "format version 99, this program reads 1" in run.err
    assert (run.folder / "out/manifest.json").exists()


def test_shards_are_not_read_as_a_whole(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Storage, "read", without_shards(Storage.read))
    assert CHUNK_BYTES <= 64 << 20
    assert [f for f in verify(str(run.folder / "out"), Storage()) if f.problem] == []


def test_remote_data_set_is_verified(run: CommandLine) -> None:
    storage = Storage()
    for path in sorted((run.folder / "out").rglob("*")):
        if path.is_file():
            name = path.relative_to(run.folder)
            storage.write(f"memory://verify/{name}", path.read_bytes())
    found = list(verify("memory://verify/out", storage))
    assert [f for f in found if f.problem or f.skipped] == []
    storage.write(f"memory://verify/out/{SHARD}", b"ARROW")
    found = [f for f in verify("memory://verify/out", storage) if f.problem]
    assert [(f.check, f.redo) for f in found] == [(SHARD, (1,))]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def edit_manifest(out: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    edit(manifest)
    (out / "manifest.json").write_text(json.dumps(manifest))


def rewrite_shard(out: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = change(pa.ipc.open_file(io.BytesIO((out / SHARD).read_bytes())).read_all())
    with pa.OSFile(str(out / SHARD), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    match_hashes(out)


def match_hashes(out: Path) -> None:
    """Make the record, the index and the manifest name the shard as it is now."""
    data = (out / SHARD).read_bytes()

    def match(line: str) -> str:
        found = json.loads(line)
        found["shards"][0].update(num_bytes=len(data), sha256=sha256(data))
        return json.dumps(found)

    replace_record(out, match)

    index = pa.ipc.open_file(io.BytesIO((out / "index.arrow").read_bytes())).read_all()
    rows = index.to_pylist()
    rows[1].update(num_bytes=len(data), sha256=sha256(data))
    table = pa.Table.from_pylist(rows, schema=index.schema)
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    (out / "index.arrow").write_bytes(buffer.getvalue())
    edit_manifest(out, lambda manifest: manifest.update(index_sha256=sha256(buffer.getvalue())))
    total = sum(row["num_bytes"] for row in rows)
    edit_manifest(out, lambda manifest: manifest["totals"].update(bytes=total))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def contents(out: Path) -> dict[str, bytes]:
    """Return the files that a repair must give back, byte by byte."""
    names = ("shards/*", "quarantine/*", "index.arrow", "manifest.json")
    return {
        str(path.relative_to(out)): path.read_bytes() for name in names for path in out.glob(name)
    }


def without_shards(read: Callable[[Storage, str], bytes]) -> Callable[[Storage, str], bytes]:
    def checked(self: Storage, uri: str) -> bytes:
        assert not uri.endswith(".arrow") or uri.endswith("index.arrow")
        return read(self, uri)

    return checked
