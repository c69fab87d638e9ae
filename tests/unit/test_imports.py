"""Imports of Megatron and MDS: read by the loader, verified, reported, and exported again."""

import gzip
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.base import FieldSpec, Ragged
from pipeline.errors import (
    ContractError,
    FingerprintMismatchError,
    IntegrityError,
    SpecError,
    TokenmillError,
)
from pipeline.export import ExportSettings, mds
from pipeline.exporting import export
from pipeline.flat_shards import documents_bytes
from pipeline.imports import ImportResult, ImportSettings, import_data_set
from pipeline.loader import TokenDataset, Windows
from pipeline.manifest import open_data_set
from pipeline.report.codebook import count_ids
from pipeline.storage import NotFoundError, Storage
from pipeline.verify import verify
from tests.loader_data import FIELDS, rows, write_data_set
from tests.unit.test_export import files_of

NUM = 50
VOCAB = 70_000


def write_megatron(
    prefix: Path,
    documents: Sequence[Sequence[Sequence[int]]],
    dtype: str = "int32",
    code: int = 4,
    **changes: Any,
) -> Path:
    """Write documents of sequences of ids, as Megatron's own builder does."""
    sequences = [sequence for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    bounds = np.cumsum([0, *(len(document) for document in documents)], dtype=np.int64)
    width = np.dtype(dtype).itemsize
    places = (np.cumsum(lengths, dtype=np.int64) - lengths) * width
    values: dict[str, Any] = {"lengths": lengths, "places": places, "bounds": bounds}
    values |= {"magic": b"MMIDIDX\0\0", "version": 1, "code": code, "extra": b"", **changes}
    head = struct.pack("<QBQQ", values["version"], values["code"], len(lengths), len(bounds))
    tables = b"".join(values[name].tobytes() for name in ("lengths", "places", "bounds"))
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_suffix(".idx").write_bytes(values["magic"] + head + tables + values["extra"])
    ids = np.concatenate([np.empty(0, dtype), *(np.array(each, dtype) for each in sequences)])
    prefix.with_suffix(".bin").write_bytes(ids.astype(dtype).tobytes())
    return prefix


def bring(source: Path, output: Path, kind: str = "megatron", **given: Any) -> ImportResult:
    told = ImportSettings(kind, **{"vocab_size": VOCAB, **given})
    return import_data_set(str(source), str(output), told)


def all_rows(folder: Path, fields: Sequence[str], **given: Any) -> dict[str, list[Any]]:
    """Return what the loader reads, in the order of the rows."""
    data = TokenDataset(folder, batch_size=7, fields=fields, shuffle=False, **given)
    found: dict[str, list[Any]] = {name: [] for name in fields}
    for batch in data:
        for name in fields:
            column = batch[name]
            found[name] += [row.tolist() if hasattr(row, "tolist") else row for row in column]
    return found


def problems(folder: Path) -> list[str]:
    return [f"{f.check}: {f.problem}" for f in verify(str(folder), Storage()) if f.problem]


def flat(columns: Mapping[str, Any]) -> list[list[int]]:
    column: Ragged = columns["text"]
    return [column[i].tolist() for i in range(len(column))]


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Two pairs of files that our own export wrote."""
    data = write_data_set(tmp_path / "data", rows(NUM), partitions=2)
    export(data, str(tmp_path / "meg"), ExportSettings("megatron", ["text"], 1))
    return tmp_path / "meg"


def test_megatron_is_used_where_it_lies(exported: Path, tmp_path: Path) -> None:
    done = bring(exported, tmp_path / "in", field="text")
    expected = rows(NUM)["text"]
    assert (done.num_samples, done.num_tokens) == (NUM, len(expected.values))
    assert not done.is_copied
    assert sum(path.stat().st_size for path in (tmp_path / "in").rglob("*")) < 40_000
    data = open_data_set(str(tmp_path / "in"))
    assert data.manifest.fields == {"text": FieldSpec("uint32", (None,), VOCAB)}
    assert data.shards["path"].to_pylist() == [str(exported / f"text_0000{i}.bin") for i in (0, 1)]
    assert problems(tmp_path / "in") == []
    found = all_rows(tmp_path / "in", ["text", "key"])
    assert found["text"] == flat(rows(NUM))
    assert found["key"] == [f"{i:010d}" for i in range(NUM)]


def test_a_shuffled_epoch_is_that_of_the_data_set_it_came_from(
    exported: Path, tmp_path: Path
) -> None:
    bring(exported, tmp_path / "in", field="text")
    epochs = []
    for folder in (tmp_path / "data", tmp_path / "in"):
        batches = TokenDataset(folder, batch_size=8, fields=["text"], seed=3)
        epochs.append([row.tolist() for batch in batches for row in batch["text"]])
    assert epochs[0] == epochs[1]


@pytest.mark.parametrize("batch_bytes", [40, 1 << 25])
def test_windows_of_a_mapped_file(
    batch_bytes: int, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.flat_shards.BATCH_BYTES", batch_bytes)
    bring(exported, tmp_path / "in", field="text")
    read = []
    for folder in (tmp_path / "data", tmp_path / "in"):
        view = Windows("text", 16, boundaries=True)
        batches = list(TokenDataset(folder, batch_size=4, view=view, seed=1))
        read.append(
            [{name: np.asarray(batch[name]).tolist() for name in batch} for batch in batches]
        )
    assert len(read[0]) > 2
    assert read[0] == read[1]


def test_megatron_there_and_back_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    bring(exported, tmp_path / "in", field="text")
    export(str(tmp_path / "in"), str(tmp_path / "out"), ExportSettings("megatron", ["text"], 1))
    before, after = files_of(exported), files_of(tmp_path / "out")
    names = [name for name in before if name.endswith((".bin", ".idx"))]
    assert len(names) == 4
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


def test_an_import_can_be_exported_and_reported(exported: Path, tmp_path: Path) -> None:
    bring(exported, tmp_path / "in", field="text")
    columns, fields = rows(NUM), {"text": FIELDS["text"]}
    keys = pa.array([f"{i:010d}" for i in range(NUM)], pa.large_string())
    plain = {"key": keys, "text": columns["text"]}
    write_data_set(tmp_path / "same", plain, fields, partitions=2)
    for folder in ("in", "same"):
        export(
            str(tmp_path / folder), str(tmp_path / f"{folder}-tar"), ExportSettings("webdataset")
        )
    tar = "00000-00000.tar"
    assert (tmp_path / "in-tar" / tar).read_bytes() == (tmp_path / "same-tar" / tar).read_bytes()
    reports = [count_ids(open_data_set(str(tmp_path / name))).fields for name in ("in", "same")]
    assert reports[0] == reports[1]


def test_a_folder_that_holds_source_and_import_can_be_moved(exported: Path, tmp_path: Path) -> None:
    bring(exported, exported, field="text")
    data = open_data_set(str(exported))
    assert data.shards["path"].to_pylist() == ["text_00000.bin", "text_00001.bin"]
    exported.rename(tmp_path / "moved")
    assert all_rows(tmp_path / "moved", ["text"])["text"] == flat(rows(NUM))
    assert problems(tmp_path / "moved") == []


documents = st.lists(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=3), max_size=9)


@settings(max_examples=25, deadline=None)
@given(documents=documents, kind=st.sampled_from([("uint8", 1), ("int16", 3), ("int64", 5)]))
def test_documents_of_several_sequences(
    documents: list[list[list[int]]],
    kind: tuple[str, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("documents")
    write_megatron(folder / "text", documents, *kind)
    done = bring(folder / "text.idx", folder / "in", vocab_size=100)
    expected = [[each for sequence in document for each in sequence] for document in documents]
    assert done.num_samples == len(documents)
    assert all_rows(folder / "in", ["ids"])["ids"] == expected
    assert problems(folder / "in") == []


def test_batches_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch ends with the document that brings it to its size; the ids are those of the file."""
    monkeypatch.setattr("pipeline.flat_shards.BATCH_BYTES", 12)
    lengths = [0, 2, 1, 0, 5, 0, 0, 1, 1, 1, 0]
    ids = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    write_megatron(tmp_path / "text", [[each.tolist()] for each in ids])
    bring(tmp_path / "text", tmp_path / "in")
    path = next((tmp_path / "in" / "documents").iterdir())
    reader = pa.ipc.open_file(str(path))
    found = [reader.get_batch(i)["offsets"].to_pylist() for i in range(reader.num_record_batches)]
    assert found == [[0, 0, 2, 3], [0, 0, 5], [0, 0, 0, 1, 2, 3], [0, 0]]
    assert all_rows(tmp_path / "in", ["ids"])["ids"] == [each.tolist() for each in ids]
    assert problems(tmp_path / "in") == []


def test_a_document_that_no_row_holds() -> None:
    with pytest.raises(ContractError, match="a document of 1,073,741,828 bytes"):
        documents_bytes(np.array([0, (1 << 28) + 1]), 4, "ab")


def test_the_same_import_again_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    bring(exported, tmp_path / "in", field="text")
    before = files_of(tmp_path / "in")
    (tmp_path / "in" / "documents" / ".0000001-000.arrow.x1y2.tmp").write_bytes(b"half")
    bring(exported, tmp_path / "in", field="text")
    assert files_of(tmp_path / "in") == before
    with pytest.raises(FingerprintMismatchError, match="holds another data set"):
        bring(exported, tmp_path / "in", field="words")
    with pytest.raises(FingerprintMismatchError, match="holds another data set"):
        bring(exported, tmp_path / "data", field="text")
    assert files_of(tmp_path / "in") == before


def test_provenance(exported: Path, tmp_path: Path) -> None:
    vocab = {"model": {"vocab": {"a": 0, "b": 69_998}}, "added_tokens": [{"id": 69_999}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocab))
    tokenizer = str(tmp_path / "tokenizer.json")
    bring(exported, tmp_path / "in", field="text", vocab_size=None, tokenizer=tokenizer)
    manifest = open_data_set(str(tmp_path / "in")).manifest
    about = manifest.recipe["import"]
    assert (about["from"], about["source"], about["vocab_size"]) == (
        "megatron",
        str(exported),
        VOCAB,
    )
    assert about["tokenizer"]["name"] == "tokenizer.json"
    listed = [
        json.loads(line) for line in (tmp_path / "in" / "_import.jsonl").read_text().splitlines()
    ]
    files = files_of(exported)
    assert {each["name"]: each["sha256"] for each in listed} == {
        name: digest for name, digest in files.items() if name.endswith((".bin", ".idx"))
    }
    assert manifest.totals["samples"] == NUM


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"magic": b"MMIDIDXXX"}, IntegrityError, "begins with b'MMIDIDXXX'"),
        ({"magic": b"TNTIDX\0\0\0"}, ContractError, "of the old kind"),
        ({"version": 2}, IntegrityError, "version 2, this program reads 1"),
        ({"code": 9}, IntegrityError, "type code 9, known are 1 uint8, 2 int8"),
        ({"code": 7}, ContractError, "holds float32, expected integers"),
        (
            {"code": 5, "places": np.array([0, 16, 24])},
            IntegrityError,
            r"text.bin: 24 bytes, .* says 48",
        ),
        ({"extra": b"\0\0\0"}, ContractError, "a mode for each of 3 sequences"),
        ({"extra": b"\0"}, IntegrityError, "95 bytes, its head speaks of 3 sequences and 3 .* 94"),
        ({"lengths": np.array([2, -1, 3], np.int32)}, IntegrityError, "has length -1"),
        ({"places": np.array([0, 8, 4], np.int64)}, ContractError, "sequence 2 begins at byte 4"),
        ({"bounds": np.array([0, 2, 4], np.int64)}, IntegrityError, "do not rise from 0 to its 3"),
        ({"bounds": np.array([0, 4, 3], np.int64)}, IntegrityError, "do not rise from 0 to its 3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_damaged_indexes(
    changes: dict[str, Any], error: type[TokenmillError], says: str, tmp_path: Path
) -> None:
    write_megatron(tmp_path / "text", [[[1, 2], [3]], [[4, 5, 6]]], **changes)
    with pytest.raises(error, match=says):
        bring(tmp_path / "text", tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_files_that_are_missing_or_cut(tmp_path: Path) -> None:
    prefix = write_megatron(tmp_path / "text", [[[1, 2, 3]]])
    whole = prefix.with_suffix(".bin").read_bytes()
    prefix.with_suffix(".bin").write_bytes(whole[:-1])
    with pytest.raises(IntegrityError, match=r"text.bin: 11 bytes, .*text.idx says 12 \(3 ids of"):
        bring(prefix, tmp_path / "in")
    prefix.with_suffix(".bin").unlink()
    with pytest.raises(NotFoundError, match=r"text.bin: no such object"):
        bring(prefix, tmp_path / "in")
    prefix.with_suffix(".idx").unlink()
    with pytest.raises(NotFoundError, match=r"text.idx: no such object, and no .idx below"):
        bring(prefix, tmp_path / "in")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"source": "mosaic"}, SpecError, "--from mosaic: no such format; choose of megatron, mds"),
        ({"field": "key"}, SpecError, "--field key: that is what a sample is called by"),
        ({"vocab_size": None}, SpecError, "do not say how large the vocabulary is"),
        ({"vocab_size": 5}, ContractError, "text.bin: id 5 at position 4, .* said to be 5"),
        ({"tokenizer": "{}"}, SpecError, "no vocabulary in it"),
        ({"tokenizer": '{"model": {"vocab": ["a", "b"]}}', "vocab_size": 1}, SpecError, "up to 1"),
    ],
    ids=["format", "key", "no vocabulary", "an id outside", "no tokenizer", "too small"],
)
def test_wrong_settings(
    changes: dict[str, Any], error: type[TokenmillError], says: str, tmp_path: Path
) -> None:
    write_megatron(tmp_path / "text", [[[1, 2], [3]], [[4, 5, 6]]])
    told = {"vocab_size": 7, "source": "megatron", **changes}
    if "tokenizer" in told:
        (tmp_path / "tokenizer.json").write_text(told["tokenizer"])
        told["tokenizer"] = str(tmp_path / "tokenizer.json")
    with pytest.raises(error, match=says):
        import_data_set(str(tmp_path / "text"), str(tmp_path / "in"), ImportSettings(**told))


def test_negative_ids(tmp_path: Path) -> None:
    write_megatron(tmp_path / "text", [[[1, -2]]])
    with pytest.raises(ContractError, match="id -2 at position 1"):
        bring(tmp_path / "text", tmp_path / "in")


def test_ids_of_different_types(tmp_path: Path) -> None:
    write_megatron(tmp_path / "source" / "a", [[[1]]])
    write_megatron(tmp_path / "source" / "b", [[[1]]], "uint16", 8)
    with pytest.raises(ContractError, match=r"different types .*/a int32, .*/b uint16"):
        bring(tmp_path / "source", tmp_path / "in")


def test_what_changes_after_the_import(exported: Path, tmp_path: Path) -> None:
    bring(exported, tmp_path / "in", field="text")
    path = exported / "text_00001.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\xff\xff\0\0")
    assert [text.split(":")[0] for text in problems(tmp_path / "in")] == [str(path)]
    with pytest.raises(IntegrityError, match=r"text_00001.bin: sha256"):
        export(str(tmp_path / "in"), str(tmp_path / "out"), ExportSettings("nanogpt"))
    with pytest.raises(IntegrityError, match=r"text_00001.bin: sha256"):
        all_rows(tmp_path / "in", ["text"], verify=True)
    path.write_bytes(whole[:-4])
    with pytest.raises(IntegrityError, match=r"text_00001.bin: .* bytes, the index says"):
        all_rows(tmp_path / "in", ["text"])
    path.write_bytes(whole)
    documents = tmp_path / "in" / "documents" / "0000000-000.arrow"
    documents.write_bytes(documents.read_bytes()[:-1])
    assert "documents/0000000-000.arrow: bytes" in problems(tmp_path / "in")[0]
    with pytest.raises(IntegrityError, match=r"0000000-000.arrow: bytes \d+, expected"):
        all_rows(tmp_path / "in", ["text"])


# MDS


@pytest.fixture
def streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Several MDS shards that our own export wrote."""
    monkeypatch.setattr(mds, "SHARD_BYTES", 2_000)
    data = write_data_set(tmp_path / "data", rows(NUM))
    export(data, str(tmp_path / "mds"), ExportSettings("mds"))
    return tmp_path / "mds"


def compressed(folder: Path, kind: str) -> None:
    """Compress the shards of a folder, as mosaicml-streaming's own writer does."""
    index = json.loads((folder / "index.json").read_text())
    for shard in index["shards"]:
        path = folder / shard["raw_data"]["basename"]
        data = path.read_bytes()
        small = zstandard.compress(data) if kind == "zstd:3" else gzip.compress(data)
        name = f"{path.name}.{kind.split(':', maxsplit=1)[0]}"
        (folder / name).write_bytes(small)
        path.unlink()
        digests = {"sha1": hashlib.sha1(small, usedforsecurity=False).hexdigest(), "xxh64": "ab"}
        shard["zip_data"] = {"basename": name, "bytes": len(small), "hashes": digests}
        shard["compression"] = kind
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("compression", [None, "zstd:3", "gz"])
def test_mds_is_copied(compression: str | None, streamed: Path, tmp_path: Path) -> None:
    if compression:
        compressed(streamed, compression)
    done = bring(streamed, tmp_path / "in", "mds", field="text")
    assert (done.num_samples, done.is_copied) == (NUM, True)
    assert done.num_files == 2
    manifest = open_data_set(str(tmp_path / "in")).manifest
    assert manifest.fields["text"] == FieldSpec("uint32", (None,), VOCAB)
    assert manifest.fields["codes"] == FieldSpec("uint8", (4, 2))
    assert problems(tmp_path / "in") == []
    expected = rows(NUM)
    found = all_rows(tmp_path / "in", ["key", "caption", "text", "image", "codes"])
    assert found["text"] == flat(expected)
    assert found["key"] == expected["key"].to_pylist()
    assert found["caption"] == expected["caption"].to_pylist()
    for name in ("image", "codes"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_mds_there_and_back(streamed: Path, tmp_path: Path) -> None:
    bring(streamed, tmp_path / "in", "mds", field="text")
    export(str(tmp_path / "in"), str(tmp_path / "out"), ExportSettings("mds"))
    before, after = files_of(streamed), files_of(tmp_path / "out")
    names = [name for name in before if name.endswith(".mds") or name == "index.json"]
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


def test_mds_of_other_types_and_without_keys(tmp_path: Path) -> None:
    columns = {
        "key": pa.array(["a", "b", "c"]),
        "number": np.array([-7, 9, 0], np.int64),
        "half": np.array([[1.5], [2.5], [0]], np.float16),
        "raw": pa.array([b"\0\1", b"", b"x"], pa.large_binary()),
        "pairs": Ragged(np.arange(6, dtype=np.uint8).reshape(3, 2), np.array([0, 0, 2, 3])),
        "long": Ragged(np.arange(70_300), np.array([0, 300, 70_300, 70_300])),
    }
    fields = {
        "number": FieldSpec("int64"),
        "half": FieldSpec("float16", (1,)),
        "raw": FieldSpec("binary"),
        "pairs": FieldSpec("uint8", (None, 2)),
        "long": FieldSpec("int64", (None,)),
    }
    data = write_data_set(tmp_path / "data", columns, fields, partitions=1)
    export(data, str(tmp_path / "mds"), ExportSettings("mds", list(fields)))
    bring(tmp_path / "mds", tmp_path / "in", "mds", vocab_size=70_300)
    specs = open_data_set(str(tmp_path / "in")).manifest.fields
    assert specs == {**fields, "long": FieldSpec("uint32", (None,), 70_300)}
    found = all_rows(tmp_path / "in", ["key", *fields])
    assert found["key"] == ["0000000000", "0000000001", "0000000002"]
    assert found["number"] == [-7, 9, 0]
    assert found["raw"] == [b"\0\1", b"", b"x"]
    assert found["pairs"] == [[], [[0, 1], [2, 3]], [[4, 5]]]
    assert found["half"] == [[1.5], [2.5], [0.0]]
    assert [len(row) for row in found["long"]] == [300, 70_000, 0]
    assert found["long"][1] == list(range(300, 70_300))


def change_index(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["shards"][1] |= changes
    (folder / "index.json").write_text(json.dumps(index))


def test_wrong_mds(streamed: Path, tmp_path: Path) -> None:
    def check(error: type[TokenmillError], says: str, **told: Any) -> None:
        with pytest.raises(error, match=says):
            bring(streamed, tmp_path / "in", "mds", **told)
        assert not (tmp_path / "in" / "manifest.json").exists()

    check(SpecError, r"2 columns may hold ids \(image, text\)")
    check(SpecError, "--field words: no such column; choose of", field="words")
    check(SpecError, "--field caption: is string, expected integers", field="caption")
    says = "field 'text' holds id .*, the vocabulary is said"
    check(ContractError, says, field="text", vocab_size=9)
    whole = (streamed / "index.json").read_text()
    change_index(streamed, column_names=["a"], column_encodings=["pkl"])
    check(ContractError, "has columns a .pkl., shard.00000.00000.mds has caption")
    (streamed / "index.json").write_text(whole.replace('"str"', '"pkl"'))
    check(ContractError, "column 'caption' is encoded as pkl", field="text")
    (streamed / "index.json").write_text("{}")
    check(IntegrityError, "not an index of MDS shards")
    (streamed / "index.json").write_text(whole)
    shard = streamed / "shard.00000.00001.mds"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + b"x")
    check(IntegrityError, r"shard.00000.00001.mds: sha256 .* index.json says", field="text")
    shard.write_bytes(data[:-1])
    check(IntegrityError, r"shard.00000.00001.mds: .* bytes, index.json says", field="text")
    shard.unlink()
    check(NotFoundError, "shard.00000.00001.mds", field="text")
