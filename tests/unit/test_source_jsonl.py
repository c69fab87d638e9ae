"""JSON lines: the same as `json` line by line, whatever stands beside a line, and every fault."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import FieldSpec, Ragged
from pipeline.protocols import Rejected
from pipeline.sources.jsonl import JsonlConfig, JsonlSource
from pipeline.storage import Storage

GOOD = b'{"text": "good"}'


def read(
    folder: Path, data: bytes, name: str = "a.jsonl", block_rows: int = 4, **settings: Any
) -> tuple[list[dict[str, Any]], list[Rejected]]:
    (folder / name).write_bytes(data)
    url = str(folder / name)
    config = JsonlConfig(urls=url, **({"fields": ["text"]} | settings))
    source = JsonlSource(config, Storage(), [url])
    rows: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    for partition in source.list_partitions():
        for block in source.read(partition, block_rows):
            columns = {
                name: [column[i].tolist() for i in range(len(column))]
                if isinstance(column, Ragged)
                else column.tolist()
                for name, column in block.columns.items()
            }
            names = ("row", *columns)
            values = zip(block.rows.tolist(), *columns.values(), strict=True)
            rows += [dict(zip(names, row, strict=True)) for row in values]
            rejected += block.rejected
        assert source.count_samples(partition, 10**9) == len(rows) + len(rejected)
    return rows, rejected


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)
documents = st.fixed_dictionaries(
    {}, optional={"text": st.text() | anything, "n": st.integers(-(2**70), 2**70) | anything}
)
lines = st.one_of(
    st.tuples(documents, st.booleans()).map(lambda d: json.dumps(d[0], ensure_ascii=d[1]).encode()),
    st.binary(max_size=6),
    st.sampled_from(
        [b'{"text":"a"}{"text":"b"}', b'{"text":', b'"x"}', b"{}", b"{}{}", b"[]", b" ", b"\r"]
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, max_size=12), st.sampled_from([1, 2, 5, 100]), st.booleans())
def test_a_line_is_read_as_json_would_alone(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], block_rows: int, newline: bool
) -> None:
    data = b"\n".join(rows) + (b"\n" if newline else b"")
    fields: Any = {"text": "text", "n": {"path": "n", "dtype": "int64"}}
    folder = tmp_path_factory.mktemp("jsonl")
    got, rejected = read(folder, data, block_rows=block_rows, fields=fields)
    good = {int(row["key"].rpartition(":")[2]): (row["text"], row["n"]) for row in got}
    bad = {int(r.key.rpartition(":")[2]): r.error for r in rejected}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        want = outcome(line)
        assert good.get(number, bad.get(number)) == want, line


def outcome(line: bytes) -> Any:
    """What `json` says of a line: its values, the name of its fault, or None for a blank one."""
    if not line.strip(b" \t\r"):
        return None
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return "InvalidUtf8"
    try:
        found = json.loads(text)
    except ValueError:
        return "InvalidJson"
    if not isinstance(found, dict):
        return "InvalidJson"
    types = {"text": str, "n": int}
    for name, kind in types.items():
        value = found.get(name)
        too_large = name == "n" and isinstance(value, int) and not -(2**63) <= value < 2**63
        if value is not None and (type(value) is not kind or too_large):
            return "WrongType"
    if any(found.get(name) is None for name in types):
        return "MissingField"
    return found["text"], found["n"]


@pytest.mark.parametrize(
    ("line", "error", "reason"),
    [
        (b"{", "InvalidJson", "expected one object in braces, found '{'"),
        (b"[1]", "InvalidJson", "expected one object in braces, found '[1]'"),
        (b'{"text": "a",}', "InvalidJson", "Missing a name for object member."),
        (b'{"text": "a"} {"text": "b"}', "InvalidJson", "2 objects on one line"),
        (b'{"text": "a", "text": "b"}', "InvalidJson", "Column(/text) was specified twice"),
        (b'{"text": "\\ud800"}', "InvalidJson", "surrogate pair in string is invalid"),
        (b'{"text": "a\tb"}', "InvalidJson", "Invalid encoding in string"),
        (b'{"text": "\xff"}', "InvalidUtf8", "byte 10 (0xff): invalid start byte"),
        (b'{"other": "\xff"}', "InvalidUtf8", "byte 11 (0xff): invalid start byte"),
        (b"{}", "MissingField", "field 'text' is missing or null"),
        (b'{"text": null}', "MissingField", "field 'text' is missing or null"),
        (b'{"text": 3}', "WrongType", "Column(/text) changed from string to number"),
        (b'{"text": {"a": 1}}', "WrongType", "Column(/text) changed from string to object"),
    ],
)
def test_a_bad_line_is_rejected_alone(tmp_path: Path, line: bytes, error: str, reason: str) -> None:
    rows, (bad,) = read(tmp_path, b"\n".join([GOOD, GOOD, line, GOOD, GOOD]))
    assert [row["row"] for row in rows] == [0, 1, 3, 4]
    assert (bad.row, bad.key, bad.uri, bad.step) == (2, "a.jsonl:3", "a.jsonl", "read")
    assert (bad.error, reason in bad.reason) == (error, True), bad.reason


def test_objects_that_span_lines_are_not_counted_for_others(tmp_path: Path) -> None:
    """Three objects on three lines, but not one on each."""
    _, rejected = read(tmp_path, b'{"text": "a"}{"text": "b"}\n{"text":\n"c"}')
    assert [(r.row, r.error) for r in rejected] == [(i, "InvalidJson") for i in range(3)]


def test_blank_lines_are_no_samples_but_count_as_lines(tmp_path: Path) -> None:
    rows, rejected = read(tmp_path, b"\n \t\r\n" + GOOD + b"\n\n\n" + GOOD + b"  \n\n")
    assert [(row["row"], row["key"]) for row in rows] == [(0, "a.jsonl:3"), (1, "a.jsonl:6")]
    assert rejected == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_a_byte_order_mark(
    tmp_path: Path, end: bytes, last: bytes, mark: bytes
) -> None:
    rows, rejected = read(tmp_path, mark + end.join([GOOD] * 9) + last)
    assert (len(rows), rejected) == (9, [])


def test_values_of_every_dtype_and_depth(tmp_path: Path) -> None:
    fields: Any = {
        "text": "a.b.text",
        "n": {"path": "a.n", "dtype": "int64"},
        "x": {"path": "x", "dtype": "float64"},
        "ok": {"path": "a.b.ok", "dtype": "bool"},
        "ids": {"path": "ids", "dtype": "int64[*]"},
        "weights": {"path": "w", "dtype": "float64[*]"},
    }
    line = b'{"a":{"b":{"text":"t","ok":true,"z":[]},"n":-5},"x":1,"ids":[1,2],"w":[],"y":{}}\n'
    rows, rejected = read(tmp_path, line + b'{"a":null,"x":1}\n' + line, fields=fields)
    want = {"text": "t", "n": -5, "x": 1.0, "ok": True, "ids": [1, 2], "weights": []}
    assert [{k: v for k, v in row.items() if k in want} for row in rows] == [want, want]
    assert [(r.row, r.error) for r in rejected] == [(1, "MissingField")]


@pytest.mark.parametrize("block_rows", [1, 2, 5])
@pytest.mark.parametrize("with_others", [True, False])
def test_the_whole_line_is_its_text(tmp_path: Path, block_rows: int, with_others: bool) -> None:
    good = ['{"n": 1, "messages": [{"role": "user"}]}', '{"n": 2,  "t": "é \\n"}', "{}", '{"n":4}']
    lines = [good[0], "", f"  {good[1]}\t\r", "broken", good[2], good[3]]
    data = "\n".join(lines).encode() + b"\n\n \n\xff{}\n"
    others = {"n": {"path": "n", "dtype": "int64"}} if with_others else {}
    rows, rejected = read(tmp_path, data, block_rows=block_rows, fields={"line": "@line", **others})
    expected = [good[0], good[1], good[3]] if with_others else good  # {} has no n
    assert [row["line"] for row in rows] == expected
    errors = ["InvalidJson", *(["MissingField"] if with_others else []), "InvalidUtf8"]
    assert [each.error for each in rejected] == errors


def test_given_keys_are_checked(tmp_path: Path) -> None:
    ids: list[Any] = ["a", "b", "a", None, 3, "c"]
    data = b"\n".join(json.dumps({"text": "x", "id": i}).encode() for i in ids)
    rows, rejected = read(tmp_path, data, key="id", block_rows=2)
    assert [row["key"] for row in rows] == ["a", "b", "c"]
    assert [(r.row, r.key, r.error) for r in rejected] == [
        (2, "a", "DuplicateKey"),
        (3, "a.jsonl:4", "MissingField"),
        (4, "a.jsonl:5", "WrongType"),
    ]
    rows, _ = read(tmp_path, data, key={"path": "id", "dtype": "int64"})
    assert [row["key"] for row in rows] == ["3"]


LINES = b"".join(b'{"text": "%d"}\n' % i for i in range(200))
SQUEEZED = {
    "a.jsonl.gz": gzip.compress(LINES),
    "b.jsonl.gz": gzip.compress(LINES[:700]) + gzip.compress(LINES[700:]) + bytes(100),
    "c.jsonl.zst": zstandard.compress(LINES),
    "d.jsonl.zst": zstandard.compress(LINES[:700]) + zstandard.compress(LINES[700:]),
}


@pytest.mark.parametrize("name", SQUEEZED)
def test_compressed_files_are_read(tmp_path: Path, name: str) -> None:
    rows, rejected = read(tmp_path, SQUEEZED[name], name)
    assert ([row["text"] for row in rows], rejected) == ([str(i) for i in range(200)], [])


@pytest.mark.parametrize("name", SQUEEZED)
@pytest.mark.parametrize("missing", [1, 7, 60, 150])
def test_a_cut_file_gives_its_whole_lines_and_one_record(
    tmp_path: Path, name: str, missing: int
) -> None:
    data = SQUEEZED[name].rstrip(b"\0") if name == "b.jsonl.gz" else SQUEEZED[name]
    rows, (bad,) = read(tmp_path, data[:-missing], name)
    assert [row["text"] for row in rows] == [str(i) for i in range(len(rows))]
    assert (bad.row, bad.error, bad.key) == (len(rows), "CorruptFile", f"{name}:{len(rows) + 1}")
    assert "is cut at byte" in bad.reason


@pytest.mark.parametrize("name", ["a.jsonl.gz", "c.jsonl.zst"])
def test_damage_inside_a_compressed_file_is_one_record(tmp_path: Path, name: str) -> None:
    data = bytearray(SQUEEZED[name])
    data[len(data) // 2 : len(data) // 2 + 9] = b"\xff" * 9
    rows, (bad,) = read(tmp_path, bytes(data), name)
    assert len(rows) < 200
    assert (bad.row, bad.error) == (len(rows), "CorruptFile")


def test_a_file_with_the_wrong_suffix_is_one_record(tmp_path: Path) -> None:
    rows, (bad,) = read(tmp_path, LINES, "a.jsonl.gz")
    assert (rows, bad.error) == ([], "CorruptFile")
    assert "cannot be decompressed" in bad.reason


def test_lines_longer_than_a_chunk_are_joined(tmp_path: Path) -> None:
    texts = ["x" * 3_000_000, "y", "z" * 1_500_000]
    data = b"\n".join(json.dumps({"text": text}).encode() for text in texts)
    rows, _ = read(tmp_path, data, block_rows=1)
    assert [row["text"] for row in rows] == texts


def test_fields_come_from_the_config_alone() -> None:
    fields: Any = {"a": "a", "b": {"path": "x.b", "dtype": "int64[*]"}}
    source = JsonlSource(JsonlConfig(urls="absent", fields=fields), Storage(), ["absent"])
    assert source.fields == {"a": FieldSpec("string"), "b": FieldSpec("int64", (None,))}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"fields": {}}, "at least 1 item"),
        ({"fields": ["key"]}, "reserved"),
        ({"fields": {"a": "x..y"}}, "should match pattern"),
        ({"fields": {"a": {"path": "a", "dtype": "int8"}}}, "Input should be 'string'"),
        ({"fields": {"a": "m", "b": "m.x"}}, "cannot be a value and, for 'm.x', an object"),
        ({"fields": {"a": "m"}, "key": {"path": "m", "dtype": "int64"}}, "in two dtypes"),
        ({"fields": ["a"], "key": {"path": "m", "dtype": "bool"}}, "expected string or int64"),
        ({"fields": ["a"], "key": "@line"}, "is the line's text, a string, and no key"),
        ({"fields": {"a": {"path": "@line", "dtype": "int64"}}}, "the line's text, a string"),
    ],
)
def test_a_wrong_config_is_refused(settings: Any, match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        JsonlConfig(urls="a.jsonl", **settings)
