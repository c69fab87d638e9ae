"""WebDataset tars: members and groups as `tarfile` and `webdataset` see them, and every fault."""

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from operators.base import FieldSpec
from pipeline.errors import TransientError
from pipeline.protocols import Partition, Rejected, SourceFile, SourceRange
from pipeline.sources.objects import DamagedError, open_stream
from pipeline.sources.tar import TarWalk
from pipeline.sources.webdataset import WebDatasetConfig, WebDatasetSource, split_name
from pipeline.storage import Entry, Storage

Members = Sequence[tuple[str, bytes]]
IMAGE_TEXT = {"image": "jpg;png", "text": "txt"}
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def tar_of(members: Members, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def read(
    folder: Path, data: bytes, fields: Any = None, name: str = "a.tar", block_rows: int = 3
) -> tuple[list[dict[str, Any]], list[Rejected]]:
    (folder / name).write_bytes(data)
    url = str(folder / name)
    config = WebDatasetConfig(urls=url, fields=fields or IMAGE_TEXT)
    source = WebDatasetSource(config, Storage(), [url])
    rows: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    for partition in source.list_partitions():
        for block in source.read(partition, block_rows):
            columns = {name: column.to_pylist() for name, column in block.columns.items()}
            names = ("row", *columns)
            values = zip(block.rows.tolist(), *columns.values(), strict=True)
            rows += [dict(zip(names, row, strict=True)) for row in values]
            rejected += block.rejected
        assert source.count_samples(partition, 10**9) == len(rows) + len(rejected)
    return rows, rejected


def walk(data: bytes) -> list[tuple[str, bytes]]:
    file = SourceFile("a.tar", "a.tar", len(data))
    walked = TarWalk(open_stream(io.BytesIO(data), file))
    return [(member.name, walked.body(member)) for member in walked]


names = st.builds(
    lambda folder, stem, extension: f"{folder}{stem}{extension}",
    st.sampled_from(["", "a/", "a.b/", "./", "__meta__/", "x//", "a/b/", "/", ".h/"]),
    st.sampled_from(["a", "b", "", "__x__", "a-b", "ä"]),
    st.sampled_from([".jpg", ".JPG", ".png", ".txt", ".seg.png", ".tar.gz", ".", ""]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=3).map(lambda b: b.hex().encode()))))
def test_samples_are_those_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]]
) -> None:
    members = [(name, data) for name, data in members if name.strip("/")]
    data = tar_of(members)
    stream = tar_file_expander([{"url": "a", "stream": io.BytesIO(data)}])
    # Its handler passes over a member that is there twice: the first one stays.
    want = list(group_by_keys(stream, handler=lambda _: True))
    rows, rejected = read(tmp_path_factory.mktemp("tar"), data)
    got = {row["row"]: row for row in rows}
    assert set(got) | {r.row for r in rejected} == set(range(len(want)))
    errors = {r.row: (r.key, r.error) for r in rejected}
    seen: set[str] = set()
    for i, sample in enumerate(want):
        key = sample["__key__"]
        image = sample.get("jpg", sample.get("png"))
        if i in got:
            assert got[i] == {"row": i, "key": key, "image": image, "text": sample["txt"].decode()}
            assert key not in seen
        else:
            assert errors[i][0] == key
            if errors[i][1] == "MissingField":
                assert image is None or "txt" not in sample
            elif errors[i][1] == "DuplicateKey":
                assert key in seen
            else:
                assert errors[i][1] == "DuplicateMember"
                parts = [split_name(name) for name, _ in members]
                assert any(key == k and parts.count((k, e)) > 1 for k, e in parts)
        seen.add(key)


@given(names)
def test_split_name_is_that_of_the_library(name: str) -> None:
    key, extension = base_plus_ext(name)
    assert split_name(name) == (key, (extension or "").lower())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["file", "folder", "symlink", "hardlink", "fifo"]),
            st.text("aä/.x", min_size=1, max_size=400).filter(lambda n: n.strip("/.")),
            st.binary(max_size=1500),
        ),
        max_size=6,
    ),
    st.sampled_from(FORMATS),
)
def test_members_are_those_of_tarfile(entries: list[tuple[str, str, bytes]], form: int) -> None:
    types = {
        "file": tarfile.REGTYPE,
        "folder": tarfile.DIRTYPE,
        "symlink": tarfile.SYMTYPE,
        "hardlink": tarfile.LNKTYPE,
        "fifo": tarfile.FIFOTYPE,
    }
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for kind, name, data in entries:
            info = tarfile.TarInfo(name)
            info.type = types[kind]
            info.linkname = "l" * 150 if form != tarfile.USTAR_FORMAT else "l"
            info.size = len(data) if kind == "file" else 0
            try:
                info.tobuf(form)  # type: ignore[arg-type]
            except ValueError:
                continue  # too long for ustar
            tar.addfile(info, io.BytesIO(data))
    data = file.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
        want = [(m.name, cast(BinaryIO, tar.extractfile(m)).read()) for m in tar if m.isreg()]
    assert [(name.rstrip("/"), body) for name, body in walk(data)] == [
        (name.rstrip("/"), body) for name, body in want
    ]


def test_a_size_in_base_256_is_read() -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 3
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + (3).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert walk(bytes(header) + b"abc".ljust(512, b"\0")) == [("a.jpg", b"abc")]


def test_a_pax_size_and_a_global_header_are_read() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", pax_headers={"comment": "ü" * 300}) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        info.pax_headers = {"size": "3"}
        tar.addfile(info, io.BytesIO(b"abc"))
    assert walk(file.getvalue()) == [("a.jpg", b"abc")]


def test_alternatives_are_taken_in_the_configured_order(tmp_path: Path) -> None:
    data = tar_of([("a.png", b"png"), ("a.JPG", b"jpg"), ("b.png", b"png")])
    rows, _ = read(tmp_path, data, {"image": "jpg;png"})
    assert [row["image"] for row in rows] == [b"jpg", b"png"]


def test_dtypes_follow_the_extension_or_the_config() -> None:
    fields: Any = {
        "image": "jpg;jpeg",
        "meta": "json",
        "tags": "a.txt",
        "raw": {"member": "txt", "dtype": "binary"},
        "html": {"member": "html", "dtype": "string"},
    }
    source = WebDatasetSource(WebDatasetConfig(urls="x", fields=fields), Storage(), ["x"])
    assert {name: spec.dtype for name, spec in source.fields.items()} == {
        "image": "binary",
        "meta": "string",
        "tags": "string",
        "raw": "binary",
        "html": "string",
    }
    assert source.fields["image"] == FieldSpec("binary")


@pytest.mark.parametrize(
    ("members", "key", "error", "reason"),
    [
        ([("x.jpg", b"1")], "x", "MissingField", "field 'text': no txt among jpg"),
        ([("x.gif", b"1"), ("x.txt", b"")], "x", "MissingField", "no jpg or png among gif, txt"),
        ([("x.jpg", b"1"), ("x.txt", b"a\xff")], "x", "InvalidUtf8", "byte 1 (0xff)"),
        (
            [("x.jpg", b"1"), ("x.txt", b""), ("x.JPG", b"2")],
            "x",
            "DuplicateMember",
            "'x.JPG' is in the sample twice",
        ),
        ([("a.jpg", b"1"), ("a.txt", b"")], "a", "DuplicateKey", "an earlier sample of this key"),
    ],
    ids=["no-text", "no-image", "utf8", "member", "key"],
)
def test_a_bad_sample_is_rejected_alone(
    tmp_path: Path, members: Members, key: str, error: str, reason: str
) -> None:
    good = [("a.jpg", b"1"), ("a.txt", b"1")]
    last = [("z.jpg", b"2"), ("z.txt", b"2")]
    rows, (bad,) = read(tmp_path, tar_of([*good, ("m.jpg", b""), ("m.txt", b""), *members, *last]))
    assert [row["key"] for row in rows] == ["a", "m", "z"]
    assert (bad.row, bad.key, bad.uri, bad.step, bad.error) == (2, key, "a.tar", "read", error)
    assert reason in bad.reason


def test_a_key_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    data = tar_of([("a\udcff.jpg", b"1"), ("a\udcff.txt", b"")], tarfile.GNU_FORMAT)
    rows, (bad,) = read(tmp_path, data)
    assert (rows, bad.error, bad.key) == ([], "InvalidUtf8", "a\ufffd")


def samples(count: int) -> list[tuple[str, bytes]]:
    return [(f"{i}.{e}", b"%d" % i * 300) for i in range(count) for e in ("jpg", "txt")]


HEADER, BODY = 512, 512  # one block each, as long as bodies have 300 bytes


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_a_damaged_header_ends_the_tar_with_one_record(tmp_path: Path, form: int) -> None:
    data = bytearray(tar_of(samples(5), form))
    data[4 * (HEADER + BODY) + 3] ^= 1  # name of 2.jpg
    rows, (bad,) = read(tmp_path, bytes(data))
    assert [row["key"] for row in rows] == ["0", "1"]
    assert (bad.row, bad.key, bad.error) == (2, "offset 4096", "CorruptTar")
    assert "another checksum than it says; the rest of the tar is lost" in bad.reason


def test_damage_inside_a_sample_takes_that_sample_with_it(tmp_path: Path) -> None:
    data = bytearray(tar_of(samples(5)))
    data[5 * (HEADER + BODY) + 3] ^= 1  # name of 2.txt
    rows, (bad,) = read(tmp_path, bytes(data))
    assert [row["key"] for row in rows] == ["0", "1"]
    assert bad.row == 2
    assert "it cuts sample '2'" in bad.reason


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize(
    ("length", "keys", "bad_key"),
    [
        (4 * 1024 + 512 + 100, ["0", "1"], "2.jpg"),
        (5 * 1024 + 512 + 100, ["0", "1"], "2.txt"),
        (4 * 1024 + 100, ["0", "1"], "offset 4096"),
        (5 * 1024 + 100, ["0", "1"], "offset 5120"),
        (100, [], "offset 0"),
        (0, [], "offset 0"),
    ],
)
def test_a_cut_tar_gives_what_came_before(
    tmp_path: Path, name: str, length: int, keys: list[str], bad_key: str
) -> None:
    data = tar_of(samples(5))[:length]
    rows, (bad,) = read(tmp_path, gzip.compress(data) if name.endswith("gz") else data, name=name)
    assert [row["key"] for row in rows] == keys
    assert (bad.row, bad.key, bad.error) == (len(keys), bad_key, "CorruptTar")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_cut_in_a_member_that_is_not_wanted_counts_too(tmp_path: Path, name: str) -> None:
    data = tar_of(samples(5))[: 5 * 1024 + 512 + 100]  # inside 2.txt
    data = gzip.compress(data) if name.endswith("gz") else data
    rows, (bad,) = read(tmp_path, data, {"image": "jpg"}, name)
    assert [row["key"] for row in rows] == ["0", "1"]
    assert (bad.key, bad.error) == ("2.txt", "CorruptTar")


@pytest.mark.parametrize("length", range(1, 400, 23))
def test_a_cut_gzip_loses_nothing_silently(tmp_path: Path, length: int) -> None:
    data = gzip.compress(tar_of(samples(5)))
    rows, (bad,) = read(tmp_path, data[: min(length, len(data) - 1)], name="a.tgz")
    assert [row["key"] for row in rows] == [str(i) for i in range(len(rows))]
    assert (bad.row, bad.error) == (len(rows), "CorruptTar")


@pytest.mark.parametrize("end", [5 * 2048, 5 * 2048 - 200, 5 * 2048 + 512])
def test_an_end_marker_and_the_last_padding_may_be_missing(tmp_path: Path, end: int) -> None:
    rows, rejected = read(tmp_path, tar_of(samples(5))[:end])
    assert (len(rows), rejected) == (5, [])


def test_data_after_the_end_marker_is_reported(tmp_path: Path) -> None:
    rows, (bad,) = read(tmp_path, tar_of(samples(2)) + tar_of(samples(3)))
    assert [row["key"] for row in rows] == ["0", "1"]
    assert "data follows the end marker at byte 4,608" in bad.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<html>" * 200, "no tar header at byte 0"),
        (b"x" * 124 + b"7" * 12 + b" " * 12 + b"7" * 8 + b"x" * 356, "another checksum"),
    ],
)
def test_what_is_no_tar_is_reported(tmp_path: Path, data: bytes, reason: str) -> None:
    rows, (bad,) = read(tmp_path, data)
    assert rows == []
    assert reason in bad.reason


def test_a_sparse_file_is_reported(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    data = tar_of(samples(1))[:2048] + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    rows, (bad,) = read(tmp_path, data)
    assert len(rows) == 1
    assert (bad.key, "sparse" in bad.reason) == ("1.jpg", True)


def test_a_broken_extended_header_is_damage() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 9
    with pytest.raises(DamagedError, match="no `length name=value` record"):
        walk(info.tobuf(tarfile.USTAR_FORMAT) + b"7 path=x\n".ljust(512, b"\0"))


def test_an_extended_header_without_its_file_is_damage() -> None:
    data = tar_of([("a" * 200 + ".jpg", b"")])
    with pytest.raises(DamagedError, match="without its file"):
        walk(data[: data.index(b"path=") // 512 * 512 + 512])


class CuttingStorage(Storage):
    """Ends every object early, as a lost connection does."""

    def open_read(self, uri: str, *, read_ahead: bool = True) -> BinaryIO:
        return io.BytesIO(self.read(uri)[:3000])

    def opened(self, uri: str, file: BinaryIO) -> Entry:
        return Entry(uri, Path(uri).stat().st_size, "")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_lost_connection_is_worth_another_attempt(tmp_path: Path, name: str) -> None:
    noise = [(f"{i}.jpg", bytes((i * j * 97 + j) % 251 for j in range(9000))) for i in range(9)]
    data = tar_of(noise)
    data = gzip.compress(data, 0) if name.endswith("gz") else data
    (tmp_path / name).write_bytes(data)
    config = WebDatasetConfig(urls="x", fields={"image": "jpg"})
    source = WebDatasetSource(config, CuttingStorage(), ["x"])
    file = SourceFile(str(tmp_path / name), name, len(data))
    with pytest.raises(TransientError, match="ended after 3,000 of"):
        list(source.read(Partition(0, (SourceRange(file, len(data)),)), 7))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "at least 1 item"),
        ({"image": ".jpg"}, "should match pattern"),
        ({"image": "jpg;;png"}, "should match pattern"),
        ({"key": "txt"}, "reserved"),
        ({"a b": "txt"}, "not an identifier"),
        ({"x": "jpg;txt"}, "mixes text and bytes"),
        ({"x": {"member": "jpg", "dtype": "uint8"}}, "'string' or 'binary'"),
        ({"x": {"member": "jpg", "other": 1}}, "Extra inputs"),
    ],
)
def test_a_wrong_config_is_refused(fields: Any, match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        WebDatasetConfig(urls="x.tar", fields=fields)
