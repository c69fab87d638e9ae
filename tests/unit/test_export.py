"""Exports: read back, resumed, refused. Readers that are not installed stand here in short.

``datasets`` and ``webdataset`` read what is theirs. Megatron's, mosaicml-streaming's, litdata's
and datatrove's files are read by what their formats say, since those packages bring a torchvision
or a CUDA of their own.
"""

import hashlib
import itertools
import json
import pickle
import struct
import tarfile
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from operators.base import FieldSpec, Ragged
from pipeline.errors import (
    ContractError,
    FingerprintMismatchError,
    IntegrityError,
    LeaseError,
    SetupError,
    SpecError,
    TokenmillError,
    TransientError,
)
from pipeline.export import FORMATS, ExportSettings, litdata, mds, webdataset
from pipeline.export.parts import ExportParts, ExportTask, PartWorker, _cut
from pipeline.exporting import export
from pipeline.lease import Lease
from pipeline.manifest import open_data_set
from pipeline.protocols import Engine, Partition, PartitionResult
from pipeline.storage import NotFoundError, Storage
from tests.loader_data import FIELDS, FINGERPRINT, rows, write_data_set

NUM = 50
TOKEN_FORMATS = ("megatron", "nanogpt", "datatrove", "litdata")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_data_set(tmp_path / "data", rows(NUM))


def settings(name: str, **more: Any) -> ExportSettings:
    fields = ["text"] if name in TOKEN_FORMATS else None
    return ExportSettings(**{"format": name, "fields": fields, **more})


def files_of(folder: Path) -> dict[str, str]:
    """Return the files of an export, with their hashes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class StopsAfter:
    """A listener that ends an export when some parts are done."""

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self.before: set[int] = set()
        self.results: list[PartitionResult] = []

    def waiting(self, message: str) -> None:
        pass

    def decided(self, warning: str) -> None:
        pass

    def begin(self, partitions: Sequence[Partition], done: Set[int], engine: Engine) -> None:
        self.before = set(done)

    def committed(self, result: PartitionResult) -> None:
        self.results.append(result)
        if len(self.results) == self._parts and len(self.before) + self._parts < 3:
            raise KeyboardInterrupt


# What a format's own reader would find: per sample the ids.


def read_megatron(prefix: Path) -> list[np.ndarray]:
    index = prefix.with_suffix(".idx").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0"
    version, code, num, bounds = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1
    kind = {1: "u1", 4: "<i4", 5: "<i8", 8: "<u2"}[code]
    lengths = np.frombuffer(index, "<i4", num, 34)
    places = np.frombuffer(index, "<i8", num, 34 + 4 * num)
    documents = np.frombuffer(index, "<i8", bounds, 34 + 12 * num)
    assert 34 + 12 * num + 8 * bounds == len(index)
    assert documents.tolist() == list(range(num + 1))
    data = prefix.with_suffix(".bin").read_bytes()
    assert len(data) == int(lengths.sum()) * np.dtype(kind).itemsize
    return [np.frombuffer(data, kind, n, at) for n, at in zip(lengths, places, strict=True)]


def read_datatrove(path: Path) -> list[np.ndarray]:
    name, count, _ = Path(f"{path}.metadata").read_text().split("\n")
    ids = np.frombuffer(path.read_bytes(), {"2": "<u2", "4": "<u4"}[name.split("|")[1]])
    assert len(ids) == int(count)
    ends = np.frombuffer(Path(f"{path}.index").read_bytes(), "<u8").astype(int)
    return [ids[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def read_litdata(folder: Path) -> list[np.ndarray]:
    index = json.loads((folder / "index.json").read_text())
    config, found = index["config"], []
    name, code = config["data_format"][0].split(":")
    assert (name, config["item_loader"]) == ("no_header_tensor", "TokensLoader")
    kind = {"11": "u1", "15": "<i4", "17": "<i8", "20": "<u2"}[code]
    for chunk in index["chunks"]:
        data = (folder / chunk["filename"]).read_bytes()
        (num,) = struct.unpack_from("<I", data)
        offsets = np.frombuffer(data, "<u4", num + 1, 4)
        assert (num, len(data)) == (chunk["chunk_size"], chunk["chunk_bytes"])
        assert (offsets[0], offsets[-1]) == (4 + 4 * (num + 1), len(data))
        sample = [np.frombuffer(data[a:b], kind) for a, b in itertools.pairwise(offsets)]
        assert chunk["dim"] == sum(map(len, sample))
        found += sample
    return found


def read_mds(folder: Path) -> Iterator[dict[str, Any]]:
    index = json.loads((folder / "index.json").read_text())
    assert index["version"] == 2
    for shard in index["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        assert hashlib.sha256(data).hexdigest() == shard["raw_data"]["hashes"]["sha256"]
        (num,) = struct.unpack_from("<I", data)
        assert num == shard["samples"]
        offsets = np.frombuffer(data, "<u4", num + 1, 4).tolist()
        described = json.loads(data[4 + 4 * (num + 1) : offsets[0]])
        assert described == {key: shard[key] for key in described}
        for start, stop in itertools.pairwise(offsets):
            yield mds_sample(shard, data[start:stop])


def mds_sample(shard: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    varying = sum(size is None for size in shard["column_sizes"])
    sizes = list(struct.unpack_from(f"<{varying}I", data))
    place = 4 * varying
    found: dict[str, Any] = {}
    columns = zip(
        shard["column_names"], shard["column_encodings"], shard["column_sizes"], strict=True
    )
    for name, encoding, fixed in columns:
        size = sizes.pop(0) if fixed is None else fixed
        value, place = data[place : place + size], place + size
        kind, *about = encoding.split(":")
        if kind == "str":
            found[name] = value.decode()
        elif kind == "bytes":
            found[name] = value
        elif kind == "ndarray" and len(about) == 2:
            found[name] = np.frombuffer(value, about[0]).reshape(*map(int, about[1].split(",")))
        elif kind == "ndarray":
            num, width = value[0] >> 2, 1 << (value[0] & 3)
            shape = np.frombuffer(value[1 : 1 + num * width], f"<u{width}")
            found[name] = np.frombuffer(value[1 + num * width :], about[0]).reshape(shape)
        else:
            found[name] = np.frombuffer(value, kind)[0]
    assert place == len(data)
    return found


def read_tars(paths: list[Path]) -> list[dict[str, Any]]:
    """Read with webdataset's own steps; those that open files leave them open."""
    from webdataset.autodecode import Decoder, basichandlers
    from webdataset.tariterators import group_by_keys, tar_file_expander

    decode, found = Decoder([basichandlers]), []
    for path in paths:
        with path.open("rb") as stream:
            members = tar_file_expander([{"url": str(path), "stream": stream}])
            found += [decode(sample) for sample in group_by_keys(members)]
    return found


def check_rows(found: list[Any], expected: Mapping[str, Any]) -> None:
    """Compare samples, as mappings, with what was written."""
    assert len(found) == len(expected["key"])
    for i, sample in enumerate(found):
        assert sample["key"] == expected["key"][i].as_py()
        assert sample["caption"] == expected["caption"][i].as_py()
        for name in ("image", "text", "codes"):
            np.testing.assert_array_equal(np.asarray(sample[name]), expected[name][i], name)


def check_ids(found: list[np.ndarray], expected: Ragged) -> None:
    assert [len(ids) for ids in found] == expected.lengths.tolist()
    np.testing.assert_array_equal(np.concatenate(found), expected.values)


def test_megatron(data: str, tmp_path: Path) -> None:
    done = export(data, str(tmp_path / "out"), settings("megatron"))
    assert [file.path for file in done.files] == ["text.bin", "text.idx"]
    found = read_megatron(tmp_path / "out" / "text")
    check_ids(found, rows(NUM)["text"])
    assert found[0].dtype == np.int32  # the format has no uint32


def test_megatron_with_several_files(data: str, tmp_path: Path) -> None:
    done = export(data, str(tmp_path / "out"), settings("megatron", part_bytes=1))
    assert done.parts == 3
    found = [ids for i in range(3) for ids in read_megatron(tmp_path / "out" / f"text_{i:05d}")]
    check_ids(found, rows(NUM)["text"])


@pytest.mark.parametrize(
    ("stored", "vocab_size", "expected"),
    [
        ("uint8", 256, "uint8"),
        ("uint16", 65_536, "uint16"),
        ("uint32", 65_537, "int32"),
        ("uint32", 1 << 31, "int32"),
        ("uint32", (1 << 31) + 1, "int64"),
        ("uint64", 1 << 63, "int64"),
    ],
)
def test_megatron_types_hold_the_largest_id(
    stored: str, vocab_size: int, expected: str, tmp_path: Path
) -> None:
    ids = np.array([0, vocab_size - 1], stored)
    columns = {"key": pa.array(["a", "b"]), "ids": Ragged(ids, np.array([0, 1, 2]))}
    fields = {"ids": FieldSpec(stored, (None,), vocab_size)}
    data = write_data_set(tmp_path / "data", columns, fields)
    export(data, str(tmp_path / "out"), ExportSettings("megatron"))
    found = read_megatron(tmp_path / "out" / "ids")
    assert [int(row[0]) for row in found] == [0, vocab_size - 1]
    assert found[0].dtype == expected


def test_ids_that_no_signed_type_holds(tmp_path: Path) -> None:
    columns = {"key": pa.array(["a"]), "ids": np.array([[5]], np.uint64)}
    fields = {"ids": FieldSpec("uint64", (1,), (1 << 63) + 1)}
    data = write_data_set(tmp_path / "data", columns, fields)
    for name, most in (("megatron", "9,223,372,036,854,775,807"), ("nanogpt", "4,294,967,295")):
        with pytest.raises(ContractError, match=f"{name} holds ids up to {most}"):
            export(data, str(tmp_path / name), ExportSettings(name))


def test_nanogpt(data: str, tmp_path: Path) -> None:
    export(data, str(tmp_path / "text"), settings("nanogpt"))
    found = np.fromfile(tmp_path / "text" / "train.bin", "<u4")  # 70,000 ids
    np.testing.assert_array_equal(found, rows(NUM)["text"].values)
    export(data, str(tmp_path / "image"), settings("nanogpt", fields=["image"]))
    found = np.memmap(tmp_path / "image" / "train.bin", np.uint16, "r")
    np.testing.assert_array_equal(found, rows(NUM)["image"].reshape(-1))


def test_nanogpt_with_several_files(data: str, tmp_path: Path) -> None:
    done = export(data, str(tmp_path / "out"), settings("nanogpt", part_bytes=1))
    paths = [file.path for file in done.files]
    assert paths == ["train_00000.bin", "train_00001.bin", "train_00002.bin"]
    found = np.concatenate([np.fromfile(tmp_path / "out" / path, "<u4") for path in paths])
    np.testing.assert_array_equal(found, rows(NUM)["text"].values)


def test_datatrove(data: str, tmp_path: Path) -> None:
    export(data, str(tmp_path / "out"), settings("datatrove"))
    check_ids(read_datatrove(tmp_path / "out" / "00000_text.ds"), rows(NUM)["text"])


def test_datatrove_of_small_vocabulary_names_its_tokenizer(tmp_path: Path) -> None:
    maker = {"label": "tiny_tokenizer", "version": 1, "outputs": {"image": "uint16[6] < 1,000"}}
    data = write_data_set(tmp_path / "data", rows(NUM), operators=[maker])
    export(data, str(tmp_path / "out"), settings("datatrove", fields=["image"], part_bytes=1))
    about = (tmp_path / "out" / "00001_image.ds.metadata").read_text()
    assert about == "tiny_tokenizer|2\n102\n102 T"
    found = [
        row for i in range(3) for row in read_datatrove(tmp_path / "out" / f"{i:05d}_image.ds")
    ]
    np.testing.assert_array_equal(found, rows(NUM)["image"])


@pytest.mark.parametrize("chunk_bytes", [1, 100, 1 << 26])
def test_litdata(
    data: str, tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litdata, "CHUNK_BYTES", chunk_bytes)
    done = export(data, str(tmp_path / "out"), settings("litdata"))
    check_ids(read_litdata(tmp_path / "out"), rows(NUM)["text"])
    sizes = [file.num_bytes for file in done.files if file.path != "index.json"]
    assert len(sizes) == {1: NUM, 100: len(sizes), 1 << 26: 1}[chunk_bytes]
    if chunk_bytes == 100:
        assert max(sizes) <= 100
        assert len(sizes) < NUM


@pytest.mark.parametrize("shard_bytes", [1, 2000, 1 << 26])
def test_mds(data: str, tmp_path: Path, shard_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mds, "SHARD_BYTES", shard_bytes)
    done = export(data, str(tmp_path / "out"), settings("mds"))
    check_rows(list(read_mds(tmp_path / "out")), rows(NUM))
    sizes = [file.num_bytes for file in done.files if file.path != "index.json"]
    assert len(sizes) == {1: NUM, 2000: len(sizes), 1 << 26: 1}[shard_bytes]
    if shard_bytes == 2000:
        assert max(sizes) <= 2000
        assert len(sizes) < NUM


def test_mds_of_other_types(tmp_path: Path) -> None:
    long = np.arange(300, dtype=np.float32)
    columns = {
        "key": pa.array(["a", "b"]),
        "number": np.array([-7, 9], np.int64),
        "half": np.array([[1.5], [2.5]], np.float16),
        "mask": np.array([[True, False], [False, True]]),
        "raw": pa.array([b"\0\1", b""], pa.large_binary()),
        "pairs": Ragged(np.arange(6, dtype=np.uint8).reshape(3, 2), np.array([0, 0, 3])),
        "long": Ragged(long, np.array([0, 300, 300])),
    }
    fields = {
        "number": FieldSpec("int64"),
        "half": FieldSpec("float16", (1,)),
        "mask": FieldSpec("bool", (2,)),
        "raw": FieldSpec("binary"),
        "pairs": FieldSpec("uint8", (None, 2)),
        "long": FieldSpec("float32", (None,)),
    }
    data = write_data_set(tmp_path / "data", columns, fields, partitions=1)
    export(data, str(tmp_path / "out"), ExportSettings("mds"))
    first, second = read_mds(tmp_path / "out")
    assert (first["number"], second["number"]) == (-7, 9)
    assert second["half"].tolist() == [2.5]
    assert (first["mask"].tolist(), first["mask"].dtype) == ([1, 0], np.uint8)
    assert (first["raw"], second["raw"]) == (b"\0\1", b"")
    assert first["pairs"].shape == (0, 2)
    assert second["pairs"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert first["long"].tolist() == long.tolist()


@pytest.mark.parametrize("part_bytes", [None, 1])
def test_webdataset(data: str, tmp_path: Path, part_bytes: int | None) -> None:
    done = export(data, str(tmp_path / "out"), settings("webdataset", part_bytes=part_bytes))
    assert len(done.files) == (1 if part_bytes is None else 3)
    found = read_tars([tmp_path / "out" / file.path for file in done.files])
    assert [sample["__key__"] for sample in found] == [f"{i:010d}" for i in range(NUM)]
    names = {"key": "key.txt", "caption": "caption.txt"}
    names |= {name: f"{name}.npy" for name in ("image", "text", "codes")}
    check_rows(
        [{name: sample[file] for name, file in names.items()} for sample in found], rows(NUM)
    )


def test_tars_are_whole_and_the_same_everywhere(data: str, tmp_path: Path) -> None:
    export(data, str(tmp_path / "out"), settings("webdataset"))
    path = tmp_path / "out" / "00000-00000.tar"
    with tarfile.open(path, errorlevel=2) as tar:
        members = tar.getmembers()
    assert {(one.mtime, one.uid, one.gid, one.mode) for one in members} == {(0, 0, 0, 0o644)}
    assert len(members) == NUM * (1 + len(FIELDS))
    assert path.stat().st_size % tarfile.RECORDSIZE == 0
    assert path.read_bytes()[-1024:] == bytes(1024)


def test_webdataset_ends_a_tar_before_it_is_too_large(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "TAR_BYTES", 20_000)
    done = export(data, str(tmp_path / "out"), settings("webdataset"))
    paths = [file.path for file in done.files]
    assert paths == [f"00000-{i:05d}.tar" for i in range(len(paths))]
    assert len(paths) > 5
    found = read_tars([tmp_path / "out" / path for path in paths])
    assert [sample["key.txt"] for sample in found] == rows(NUM)["key"].to_pylist()


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("part_bytes", [None, 1])
def test_hf_datasets(tmp_path: Path, compression: str, part_bytes: int | None) -> None:
    import datasets

    data = write_data_set(tmp_path / "data", rows(NUM), compression=compression)
    export(data, str(tmp_path / "out"), settings("hf-datasets", part_bytes=part_bytes))
    found = datasets.load_from_disk(str(tmp_path / "out"))
    assert list(found.features) == ["key", *FIELDS]
    assert found.features["text"].feature.dtype == "uint32"
    assert found.features["image"].length == 6
    check_rows(list(found), rows(NUM))


def test_parquet_with_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    maker = {
        "label": "tiny_tokenizer",
        "version": 3,
        "outputs": {"image": "uint16[6] < 1,000"},
        "metadata": {"special_ids": {"<eos>": 2}},
    }
    data = write_data_set(tmp_path / "data", rows(NUM), operators=[maker])
    out = tmp_path / "out"
    export(data, str(out), settings("parquet", part_bytes=1))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    found = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    check_rows(list(found), rows(NUM))
    card = (out / "README.md").read_text()
    assert "- n<1K" in card
    assert "| `image` | uint16 [6] | 1,000 | `tiny_tokenizer` |" in card
    assert "| `text` | uint32 [*] | 70,000 | the source |" in card
    assert '"<eos>": 2' in card
    assert FINGERPRINT in card


def test_parquet_of_chosen_fields_in_their_order(data: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    export(data, str(tmp_path / "out"), settings("parquet", fields=["text", "image"]))
    found = pq.read_table(tmp_path / "out" / "data" / "train-00000-of-00001.parquet")
    assert found.column_names == ["text", "image"]
    assert found["image"].to_pylist() == rows(NUM)["image"].tolist()
    assert b"tokenmill" not in (found.schema.metadata or {})


def test_card_says_that_weights_were_random(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data", rows(NUM), random_weights=True)
    with pytest.raises(SetupError, match="random weights"):
        export(data, str(tmp_path / "out"), settings("parquet"))
    assert not (tmp_path / "out").exists()
    export(data, str(tmp_path / "out"), settings("parquet", allow_random_weights=True))
    assert "these ids mean nothing" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "export.json").read_text())["random_weights"] is True


@pytest.mark.parametrize("name", FORMATS)
def test_provenance_names_every_file(name: str, data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(data, str(out), settings(name))
    about = json.loads((out / "export.json").read_text())
    assert about["data_set"]["fingerprint"] == FINGERPRINT
    assert about["samples"] == NUM
    found = files_of(out)
    named = {file["path"]: file["sha256"] for file in about["files"]}
    assert named == {
        path: digest
        for path, digest in found.items()
        if path != "export.json" and not path.startswith("_export/")
    }
    assert all((out / file["path"]).stat().st_size == file["num_bytes"] for file in about["files"])


@pytest.mark.parametrize("name", FORMATS)
def test_a_data_set_without_samples(name: str, tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "data", rows(0))
    done = export(data, str(tmp_path / "out"), settings(name))
    assert done.num_samples == 0
    assert (tmp_path / "out" / "export.json").is_file()


def test_hf_datasets_without_samples_load(tmp_path: Path) -> None:
    import datasets

    data = write_data_set(tmp_path / "data", rows(0))
    export(data, str(tmp_path / "out"), settings("hf-datasets"))
    assert len(datasets.load_from_disk(str(tmp_path / "out"))) == 0


@pytest.mark.parametrize("name", FORMATS)
def test_interrupted_export_goes_on(
    name: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(name, part_bytes=1)
    export(data, str(tmp_path / "whole"), given)
    out = tmp_path / "out"

    with pytest.raises(KeyboardInterrupt):
        export(data, str(out), given, listener=StopsAfter(1))
    assert not (out / "export.json").exists()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*0*") if path.is_file()}
    kept = json.loads((out / "_export" / "0000000.json").read_text())["files"]
    assert kept
    listener = StopsAfter(3)
    done = export(data, str(out), given, listener=listener)
    assert (done.parts, done.skipped) == (3, len(listener.before))
    assert 1 <= done.skipped < 3
    assert [result.partition for result in listener.results] == list(range(done.skipped, 3))
    for file in kept:
        path = out / file["path"]
        assert path.stat().st_mtime_ns == times[path]
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_file_that_is_lost_is_written_again(damage: str, data: str, tmp_path: Path) -> None:
    out, given = tmp_path / "out", settings("megatron", part_bytes=1)
    export(data, str(out), given)
    before = files_of(out)
    if damage == "removed":
        (out / "text_00001.bin").unlink()
    else:
        (out / "text_00001.bin").write_bytes(b"\0")
    assert export(data, str(out), given).skipped == 2
    assert files_of(out) == before
    assert export(data, str(out), given).skipped == 3


def test_what_a_killed_writer_left_is_removed(data: str, tmp_path: Path) -> None:
    out, given = tmp_path / "out", settings("nanogpt")
    export(data, str(out), given)
    left = out / ".train.bin.x1y2z3.tmp"
    left.write_bytes(b"half")
    export(data, str(out), given)
    assert not left.exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_worker_counts_what_it_does(name: str, data: str, tmp_path: Path) -> None:
    listener = StopsAfter(3)
    done = export(data, str(tmp_path / "out"), settings(name, part_bytes=1), listener=listener)
    read = sum(result.stages["read"].samples for result in listener.results)
    written = sum(result.stages["write"].num_bytes for result in listener.results)
    whole = {file.path for result in listener.results for file in result.shards}
    assert read == NUM
    assert written == sum(file.num_bytes for file in done.files if file.path in whole)


def task_of(data: str, out: Path, given: ExportSettings) -> tuple[ExportTask, ExportParts]:
    parts = ExportParts(open_data_set(data), str(out), given)
    return ExportTask(data, str(out), Storage(), given, parts.plan()), parts


def test_a_worker_that_is_stopped_leaves_no_file(data: str, tmp_path: Path) -> None:
    task, parts = task_of(data, tmp_path / "out", settings("nanogpt"))
    worker = pickle.loads(pickle.dumps(task)).start()
    assert isinstance(worker, PartWorker)
    worker._stopped.set()
    future = worker.submit(parts.partitions()[0])
    with pytest.raises(SetupError, match="was stopped"):
        future.result()
    worker.close()
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_worker_that_sees_another_data_set(data: str, tmp_path: Path) -> None:
    task, _ = task_of(data, tmp_path / "out", settings("nanogpt"))
    write_data_set(data, rows(NUM, 1))
    with pytest.raises(IntegrityError, match="worker-7 sees another data set than the driver"):
        task.named("worker-7").start()


def test_a_damaged_shard_ends_an_export(data: str, tmp_path: Path) -> None:
    shard = sorted((Path(data) / "shards").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    given = settings("megatron", part_bytes=1)
    with pytest.raises(IntegrityError, match=f"{shard.name}: sha256 .* the index says"):
        export(data, str(tmp_path / "out"), given)
    assert not (tmp_path / "out" / "export.json").exists()


def test_a_part_that_is_nowhere_after_its_writing(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a worker's node has a disk of its own."""
    whole = ExportParts.write

    def elsewhere(self: ExportParts, number: int, progress: Any) -> Any:
        self.output = str(tmp_path / "another" / "disk")
        return whole(self, number, progress)

    monkeypatch.setattr(ExportParts, "write", elsewhere)
    with pytest.raises(TransientError, match="part 0 was written and is not there"):
        export(data, str(tmp_path / "out"), settings("nanogpt"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (settings("megatron", fields=["image"]), r'fields \["text"\], now \["image"\]'),
        (settings("megatron", part_bytes=1), "part_bytes 17179869184, now 1; parts 1, now 3"),
        (settings("nanogpt"), 'format "megatron", now "nanogpt"'),
    ],
    ids=["fields", "part_bytes", "format"],
)
def test_another_export_is_refused(
    given: ExportSettings, says: str, data: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(data, str(out), settings("megatron"))
    before = files_of(out)
    with pytest.raises(FingerprintMismatchError, match=says):
        export(data, str(out), given)
    assert files_of(out) == before


def test_another_data_set_is_refused(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(data, str(out), settings("megatron"))
    other = write_data_set(tmp_path / "other", rows(NUM, 1), fingerprint="cd" * 32)
    with pytest.raises(FingerprintMismatchError, match=r"data_set .*abab.*now .*cdcd"):
        export(other, str(out), settings("megatron"))


def test_a_folder_with_other_files_is_refused(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(SpecError, match=r"no export \(thesis.txt\)"):
        export(data, str(out), settings("megatron"))
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    with pytest.raises(SpecError, match=r"no export \(index.arrow\)"):
        export(data, data, settings("megatron"))


def test_two_exports_at_once_are_refused(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    monkeypatch.setattr("pipeline.lease.TTL_S", 0.1)
    with (
        Lease(Storage(), out, ttl_s=0.4),
        pytest.raises(LeaseError, match="another run is at work on it"),
    ):
        export(data, out, settings("megatron"))
    export(data, out, settings("megatron"))
    assert not list((tmp_path / "out" / "_lease").iterdir())


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (ExportSettings("megatorn"), SpecError, "no such format; did you mean 'megatron'"),
        (ExportSettings("xyz"), SpecError, "no such format; choose of megatron, nanogpt, "),
        (ExportSettings("mds", ["imgae"]), SpecError, "--field imgae: .*choose of key, image"),
        (ExportSettings("mds", ["key", "key"]), SpecError, "one is named twice"),
        (ExportSettings("megatron"), SpecError, r"has 2 of shape \[T\] \(image, text\)"),
        (ExportSettings("nanogpt", ["image", "text"]), SpecError, "2 were chosen: image, text"),
        (ExportSettings("litdata", ["codes"]), ContractError, r"'codes' is uint8\[4, 2\] < 256"),
        (ExportSettings("datatrove", ["caption"]), ContractError, "'caption' is string"),
    ],
    ids=lambda value: f"{value.format}-{value.fields}" if hasattr(value, "fields") else None,
)
def test_wrong_settings(
    given: ExportSettings, error: type[TokenmillError], says: str, data: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        export(data, str(tmp_path / "out"), given)
    assert not (tmp_path / "out").exists()


def test_the_only_field_of_ids_is_taken(tmp_path: Path) -> None:
    fields = {name: FIELDS[name] for name in ("text", "codes", "caption")}
    columns = {name: column for name, column in rows(NUM).items() if name != "image"}
    data = write_data_set(tmp_path / "data", columns, fields)
    export(data, str(tmp_path / "out"), ExportSettings("nanogpt"))
    found = np.fromfile(tmp_path / "out" / "train.bin", "<u4")
    np.testing.assert_array_equal(found, rows(NUM)["text"].values)


def test_no_field_of_ids(tmp_path: Path) -> None:
    columns = {name: rows(NUM)[name] for name in ("key", "caption")}
    data = write_data_set(tmp_path / "data", columns, {"caption": FIELDS["caption"]})
    with pytest.raises(SpecError, match=r"has 0 of shape \[T\] \(none\)"):
        export(data, str(tmp_path / "out"), ExportSettings("nanogpt"))


def test_webdataset_refuses_names_that_a_tar_would_split(tmp_path: Path) -> None:
    columns = {"key": pa.array(["a"]), "my.text": pa.array(["b"])}
    data = write_data_set(tmp_path / "data", columns, {"my.text": FieldSpec("string")})
    with pytest.raises(SpecError, match=r"field 'my.text': dots"):
        export(data, str(tmp_path / "out"), ExportSettings("webdataset"))


def test_an_id_outside_of_the_vocabulary(tmp_path: Path) -> None:
    columns = {"key": pa.array(["a"]), "ids": np.array([[9]], np.uint16)}
    data = write_data_set(tmp_path / "data", columns, {"ids": FieldSpec("uint16", (1,), 9)})
    with pytest.raises(IntegrityError, match="holds id 9, the manifest says below 9"):
        export(data, str(tmp_path / "out"), ExportSettings("nanogpt"))


def test_damaged_shards(data: str, tmp_path: Path) -> None:
    shards = sorted((Path(data) / "shards").iterdir())
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole.replace(b"ARROW1", b"BRROW1"))
    with pytest.raises(IntegrityError, match=f"{shards[1].name}: sha256"):
        export(data, str(tmp_path / "out"), settings("nanogpt"))
    assert not list((tmp_path / "out").glob("*.bin"))
    shards[1].unlink()
    with pytest.raises(NotFoundError, match=shards[1].name):
        export(data, str(tmp_path / "out"), settings("nanogpt"))


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([], 10, [(0, 0)]),
        ([5, 5, 5], 0, [(0, 3)]),
        ([5, 5, 5], 10, [(0, 2), (2, 3)]),
        ([5, 20, 1, 1], 10, [(0, 1), (1, 2), (2, 4)]),
        ([5, 5], 1, [(0, 1), (1, 2)]),
    ],
)
def test_parts(sizes: list[int], limit: int, expected: list[tuple[int, int]]) -> None:
    found = _cut(np.array(sizes, np.int64), limit)
    assert [(part.start, part.stop) for part in found] == expected
