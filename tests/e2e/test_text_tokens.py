"""text_tokenizer in a run: one backend a run, the fastest or not, and text that is none."""

import io
import json
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.text.backends import choose as choosing
from pipeline.errors import FingerprintMismatchError, SpecError
from pipeline.manifest import open_data_set
from pipeline.runner import prepare
from pipeline.spec import load_job
from tests.corpus import (
    ROOT,
    data_files,
    manifest,
    parse,
    quarantined,
    run_inline,
    text_job,
    write_texts,
)
from tests.e2e.command_line import pipeline
from tests.operators.test_text_backends import corrupt
from tests.ray_runs import run_all

TOKENIZER = ROOT / "tests" / "golden" / "text" / "bytelevel_bpe.json"
OPERATOR = {"name": "text_tokenizer", "tokenizer": str(TOKENIZER), "add_eos": "<|endoftext|>"}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(choosing, "_compared", {})


def job(folder: Path, output: str, **options: Any) -> dict[str, Any]:
    """Return a job over texts that are written once: the plan holds when."""
    if not (folder / "in").exists():
        write_texts(folder / "in")
    operators = [{**OPERATOR, **options}]
    return text_job(f"{folder}/in/*.jsonl", folder / output, operators=operators)


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    run_inline(job(tmp_path, "inline"))
    runs = [(job(tmp_path, f"ray{count}"), count) for count in (1, 2)]
    outcomes = run_all(tmp_path, runs)
    assert [outcome["exit_code"] for outcome in outcomes] == [0, 0], outcomes
    whole = data_files(tmp_path / "inline")
    assert data_files(tmp_path / "ray1") == data_files(tmp_path / "ray2") == whole
    (operator,) = manifest(tmp_path / "inline")["operators"]
    assert operator["backend"] == operator["metadata"]["backend"] == "fast"
    assert operator["library"] == f"fastokens {version('fastokens')}"
    assert manifest(tmp_path / "inline")["warnings"] == []


def test_a_difference_falls_back_for_the_whole_run_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_inline(job(tmp_path, "right"))
    monkeypatch.setattr(choosing, "_compared", {})
    corrupt(monkeypatch, "'ll")
    prepared = prepare(parse(job(tmp_path, "fallen")))
    (warning,) = prepared.warnings
    assert f"fastokens {version('fastokens')} gives other ids" in warning
    run_inline(job(tmp_path, "fallen"))
    assert manifest(tmp_path / "fallen")["warnings"] == [warning]
    assert json.loads((tmp_path / "fallen" / "report.json").read_text())["warnings"] == [warning]
    tokens = [tokens_of(tmp_path / name) for name in ("right", "fallen")]
    assert tokens[0] == tokens[1]


def tokens_of(output: Path) -> list[list[int]]:
    rows = []
    for path in sorted((output / "shards").glob("*.arrow")):
        with pa.memory_map(str(path)) as file:
            rows += pa.ipc.open_file(file).read_all()["tokens"].to_pylist()
    return rows


def test_a_difference_in_the_last_partition_makes_the_reference_that_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt(monkeypatch, "file 2, line 3")
    run_inline(job(tmp_path, "given", backend="reference"))
    run_inline(job(tmp_path, "out"))
    given, out = manifest(tmp_path / "given"), manifest(tmp_path / "out")
    (warning,) = out.pop("warnings")
    assert given.pop("warnings") == []
    assert out == given
    assert f"fastokens {version('fastokens')} gives other ids for " in warning
    assert warning.endswith("backend: reference is used for the whole run")
    shards = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "shards").iterdir()}
        for name in ("given", "out")
    ]
    assert shards[0] == shards[1]


def test_a_resume_with_another_backend_is_refused(tmp_path: Path) -> None:
    run_inline(job(tmp_path, "out"))
    with pytest.raises(FingerprintMismatchError, match=r'backend: "fast" -> "reference"'):
        run_inline(job(tmp_path, "out", backend="reference"))


def test_text_that_is_no_utf8_goes_to_the_quarantine(tmp_path: Path) -> None:
    """Of a tar, and of a binary column that is declared to be text."""
    texts = {"a": b"good", "b": b"b\xffd", "c": "schön".encode()}
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key, data in texts.items():
            info = tarfile.TarInfo(f"{key}.txt")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    column = pa.array(list(texts.values()), pa.binary())
    pq.write_table(pa.table({"body": column}), tmp_path / "0.parquet")
    sources = {
        "tar": {"type": "webdataset", "fields": {"text": "txt"}},
        "parquet": {
            "type": "parquet",
            "fields": {"text": {"column": "body", "dtype": "string"}},
        },
    }
    for kind, source in sources.items():
        made = text_job(f"{tmp_path}/0.{kind}", tmp_path / kind, operators=[OPERATOR])
        made["source"] = {**source, "urls": f"{tmp_path}/0.{kind}"}
        made["run"] = {"max_bad_samples": 1}
        assert run_inline(made).samples == 2
        (bad,) = quarantined(tmp_path / kind)
        assert "InvalidUtf8" in json.dumps(bad)
    assert tokens_of(tmp_path / "tar") == tokens_of(tmp_path / "parquet")


def test_binary_is_not_taken_for_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([b"a"], pa.binary())}), tmp_path / "0.parquet")
    made = text_job(f"{tmp_path}/*.parquet", tmp_path / "out", operators=[OPERATOR])
    made["source"] = {"type": "parquet", "fields": ["text"], "urls": f"{tmp_path}/*.parquet"}
    with pytest.raises(SpecError, match="reads 'text' as string, but it is binary"):
        prepare(parse(made))


def test_the_fineweb_job_runs_on_files_of_its_layout(tmp_path: Path) -> None:
    table = pa.table({"id": ["<urn:1>", "<urn:2>"], "text": ["The mill", "a <|endoftext|> b"]})
    pq.write_table(table, tmp_path / "000_00000.parquet")
    text = (ROOT / "jobs" / "fineweb_bpe.yaml").read_text()
    assert load_job(ROOT / "jobs" / "fineweb_bpe.yaml").name == "fineweb_bpe"
    job_file = tmp_path / "job.yaml"
    job_file.write_text(
        text.replace("tokenizer: HuggingFaceTB/SmolLM2-135M", f"tokenizer: {TOKENIZER}")
    )
    done = pipeline(
        *("run", job_file, "--engine", "inline"),
        cwd=tmp_path,
        FINEWEB=f"{tmp_path}/*.parquet",
        OUTPUT=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    data = open_data_set(str(tmp_path / "fineweb_bpe"))
    assert data.manifest.operators[0]["metadata"]["eos_id"] == 2
    rows = tokens_of(tmp_path / "fineweb_bpe")
    assert [row[-1] for row in rows] == [2, 2]
    assert [row.count(2) for row in rows] == [1, 1]
