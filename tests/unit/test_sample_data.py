"""Sample data: real, distinct, offline, the same bytes every time, and complete or absent."""

import hashlib
import io
import json
import socket
import sysconfig
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import sample_data
from pipeline.errors import SetupError
from pipeline.sample_data import SampleData, write_sample_data

Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture(scope="module")
def progress_calls() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def sample(
    tmp_path_factory: pytest.TempPathFactory, progress_calls: list[tuple[str, int, int]]
) -> Iterator[SampleData]:
    def refuse(*_args: object) -> None:
        raise AssertionError("the sample data asked for the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        folder = tmp_path_factory.mktemp("sample")
        yield write_sample_data(folder, progress=lambda *call: progress_calls.append(call))


@pytest.fixture(scope="module")
def members(sample: SampleData) -> list[Member]:
    found = []
    for path in sample.photo_tars:
        with tarfile.open(path) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                found.append((info, file.read()))
    return found


def digests(sample: SampleData) -> dict[str, str]:
    folder = sample.photo_tars[0].parent
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_files_and_counts(sample: SampleData) -> None:
    assert [path.name for path in sample.photo_tars] == [f"photos-00000{i}.tar" for i in range(8)]
    assert [path.name for path in sample.text_files] == [f"text-00{i}.parquet" for i in range(3)]
    assert sample.num_photos == 512
    assert sample.written
    assert sample.photo_bytes == sum(path.stat().st_size for path in sample.photo_tars)
    names = {path.name for path in (*sample.photo_tars, *sample.text_files)}
    assert set(digests(sample)) == names | {"sample.json"}


def test_tars_follow_webdataset_and_hide_the_machine(members: list[Member]) -> None:
    names = [f"{i:06}.{extension}" for i in range(512) for extension in ("jpg", "txt", "json")]
    assert [info.name for info, _ in members] == names
    assert {(info.mtime, info.uid, info.gid, info.uname) for info, _ in members} == {(0, 0, 0, "")}


def test_photos_are_distinct_and_of_the_promised_size(members: list[Member]) -> None:
    seen = set()
    aspects = set()
    for info, data in members:
        if info.name.endswith(".jpg"):
            image = Image.open(io.BytesIO(data))
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert min(image.size) >= 320
            assert max(image.size) <= 500
            aspects.add(image.width / image.height)
            seen.add(hashlib.sha256(image.tobytes()).hexdigest())
    assert len(seen) == 512
    assert len(aspects) > 400


def test_captions_are_sentences_that_vary(members: list[Member]) -> None:
    captions = [data.decode() for info, data in members if info.name.endswith(".txt")]
    assert len(set(captions)) > 300
    for caption in captions:
        assert caption[0].isupper()
        assert caption.endswith(".")
        assert len(caption.split()) >= 10


def test_metadata_says_where_a_photo_comes_from(members: list[Member]) -> None:
    sources = set()
    for info, data in members:
        if info.name.endswith(".json"):
            found = json.loads(data)
            left, top, right, bottom = found["box"]
            assert 0 <= left < right <= found["source_size"][0]
            assert 0 <= top < bottom <= found["source_size"][1]
            sources.add(found["source"])
    assert len(sources) == 15


def test_text_is_twenty_megabytes_of_sources_and_docstrings(sample: SampleData) -> None:
    num_bytes = num_rows = 0
    keys = set()
    for path in sample.text_files:
        file = pq.ParquetFile(path)
        assert file.metadata.num_row_groups >= 3
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        table = file.read()
        assert table.column_names == ["text", "path", "kind"]
        assert set(table["kind"].to_pylist()) == {"source", "docstring"}
        texts = table["text"].to_pylist()
        assert all(text.strip() for text in texts)
        num_bytes += sum(len(text.encode()) for text in texts)
        num_rows += len(texts)
        keys |= set(zip(table["path"].to_pylist(), table["kind"].to_pylist(), strict=True))
    assert num_bytes == sample.text_bytes >= 20 * 2**20
    assert num_rows == sample.num_texts
    assert ("json/decoder.py", "source") in keys
    assert ("json/decoder.py::JSONDecoder", "docstring") in keys
    assert not any(path.startswith(("/", "site-packages", "_sysconfigdata")) for path, _ in keys)


@pytest.mark.usefixtures("sample")
def test_progress_counts_up_to_the_total(progress_calls: list[tuple[str, int, int]]) -> None:
    assert [call for call in progress_calls if call[0] == "photos"] == [
        ("photos", i, 512) for i in range(1, 513)
    ]
    assert progress_calls[512:] == [("text", i, 3) for i in (1, 2, 3)]


def test_a_second_call_writes_nothing(sample: SampleData) -> None:
    def refuse(*_call: object) -> None:
        raise AssertionError("wrote again")

    folder = sample.photo_tars[0].parent
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write_sample_data(folder, progress=refuse) == replace(sample, written=False)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_damaged_file_is_written_again_with_the_same_bytes(sample: SampleData) -> None:
    before = digests(sample)
    damaged = bytearray(sample.photo_tars[3].read_bytes())
    damaged[5000] ^= 1
    sample.photo_tars[3].write_bytes(damaged)
    assert write_sample_data(sample.photo_tars[0].parent) == sample
    assert digests(sample) == before


@pytest.mark.parametrize("marker", [None, "", "{", "[]", "{}", '{"format": 99, "files": {}}'])
def test_a_folder_without_a_whole_marker_is_not_complete(
    marker: str | None, tmp_path: Path
) -> None:
    if marker is not None:
        (tmp_path / "sample.json").write_text(marker)
    assert sample_data._complete(tmp_path) is None


def test_missing_scikit_image_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_data, "find_spec", lambda _name: None)
    with pytest.raises(SetupError, match=r"pip install 'tokenmill\[sample\]'"):
        write_sample_data(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_missing_photograph_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec("skimage", None, origin=str(tmp_path / "skimage" / "__init__.py"))
    monkeypatch.setattr(sample_data, "find_spec", lambda _name: spec)
    with pytest.raises(SetupError, match=r"lacks astronaut\.png, chelsea\.png"):
        write_sample_data(tmp_path / "new")


def stripped_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "other.py").write_text("other = 1\n")
    (folder / "_sysconfigdata_x.py").write_text("build = '/home/someone'\n")
    (folder / "empty.py").write_text("\n")
    (folder / "latin.py").write_bytes(b"# caf\xe9\n")
    (folder / "broken.py").write_text("def :\n")
    long = "A docstring that is long enough to stand as a text of its own, unlike most."
    (folder / "good.py").write_text(f'class A:\n    def b(self):\n        """{long}"""\n')
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(folder))


def test_texts_of_a_library_without_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stripped_library(tmp_path, monkeypatch)
    monkeypatch.setattr(sample_data, "_MORE_TEXT", ())
    found = [(path, kind) for _, path, kind in sample_data._texts()]
    assert found == [
        ("broken.py", "source"),
        ("good.py", "source"),
        ("good.py::A.b", "docstring"),
    ]


def test_a_stripped_library_is_topped_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stripped_library(tmp_path, monkeypatch)
    monkeypatch.setattr(sample_data, "_MORE_TEXT", ("numpy",))
    paths = [path for _, path, _ in sample_data._texts()]
    assert "numpy/__init__.py" in paths


def test_too_little_text_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stripped_library(tmp_path, monkeypatch)
    monkeypatch.setattr(sample_data, "_MORE_TEXT", ())
    with pytest.raises(SetupError, match=r"bytes of Python sources in .*, expected 20,971,520"):
        next(sample_data._text_tables())
