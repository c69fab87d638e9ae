"""Bad samples of every kind, planted among good ones: each is told and costs no other a byte."""

import base64
import json
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import BudgetExceededError
from pipeline.manifest import open_data_set
from tests.corpus import (
    manifest,
    picture,
    picture_job,
    quarantined,
    run_command,
    run_inline,
    samples,
    write_tar,
)

pytestmark = pytest.mark.timeout(120)

Members = list[tuple[str, bytes]]


def bomb() -> bytes:
    """Return a whole PNG of 20,000 x 20,000 pixels (one bit each) in some 50 kB."""
    side = 20_000
    rows = zlib.compress(bytes(side * (1 + side // 8)))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def sample(key: str, image: bytes | None, text: bytes | None = b"planted") -> Members:
    members = [(f"{key}.jpg", image), (f"{key}.txt", text)]
    return [(name, data) for name, data in members if data is not None]


PLANTED: dict[int, dict[int, Members]] = {
    # tar -> good samples before it -> what is planted there
    0: {
        0: sample("cut", picture(1)[:700]),
        3: sample("words", b"this is a text file, named as a picture"),
        4: sample("nothing", b""),
        9: sample("bomb", bomb()),
    },
    1: {
        2: sample("no-caption", picture(2), None),
        5: sample("latin-1", picture(3), "Straße".encode("latin-1")),
        6: sample("twin", picture(4)) + sample("twin", picture(5)),
        8: samples(1, 1),  # the first sample's key, once more
    },
}
SAMPLE_ERRORS = {
    "cut": r"decode_image: broken JPEG of 700 bytes: ",
    "words": r"decode_image: no known image format, the file starts with b'this is a text f'",
    "nothing": r"decode_image: 0 bytes, expected an image file$",
    "bomb": r"decode_image: PNG of 20000 x 20000 is 400,000,000 pixels, expected at most 100,000,",
}
READ_ERRORS = {
    "no-caption": ("MissingField", r"field 'caption': no txt among jpg$"),
    "latin-1": ("InvalidUtf8", r"field 'caption', "),
    "twin": ("DuplicateMember", r"'twin\.txt' is in the sample twice$"),
    "t1-000": ("DuplicateKey", r"the file has an earlier sample of this key$"),
}
NUM_GOOD, NUM_BAD = 20, 8


def corpus(folder: Path, *, planted: bool) -> str:
    for tar in (0, 1):
        members: Members = []
        good = samples(tar, 10)
        for i in range(11):
            if planted:
                members += PLANTED[tar].get(i, [])
            members += good[2 * i : 2 * i + 2]
        write_tar(folder / f"{tar}.tar", members)
    return f"{folder}/*.tar"


def job(folder: Path, *, planted: bool = True, **run: Any) -> dict[str, Any]:
    """Return the pictures' job, with a filter that drops the longest captions."""
    urls = corpus(folder / "in", planted=planted)
    settings = {"chunk_size": 3, "max_bad_samples": NUM_BAD, **run}
    found = picture_job(urls, folder / "out", run=settings)
    lengths = {"name": "length_filter", "inputs": {"tokens": "caption_tokens"}, "max_length": 40}
    return {**found, "operators": [*found["operators"], lengths]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    run_inline(job(folder, keep_bad_bytes=True))
    return folder / "out"


def rows(output: Path) -> dict[str, dict[str, Any]]:
    """Return key -> fields of everything that was written; keys come once."""
    data = open_data_set(str(output))
    tables = [
        pa.ipc.open_file(data.shard_uri(path)).read_all()
        for path in data.shards["path"].to_pylist()
    ]
    found = [row for table in tables for row in table.to_pylist()]
    assert len({row["key"] for row in found}) == len(found)
    return {row["key"]: row for row in found}


def of(output: Path, key: str) -> Mapping[str, Any]:
    (line,) = [line for line in quarantined(output) if line["key"] == key]
    found: Mapping[str, Any] = line
    return found


def test_every_sample_is_written_filtered_or_quarantined(run: Path) -> None:
    found = manifest(run)
    totals = found["totals"]
    assert totals["input_samples"] == NUM_GOOD + NUM_BAD
    assert totals["quarantined"] == NUM_BAD
    assert totals["samples"] + totals["filtered"] == NUM_GOOD
    assert totals["samples"] == len(rows(run))
    assert 1 <= totals["filtered"] < NUM_GOOD
    assert found["filtered"] == {"length_filter: too_long": totals["filtered"]}
    assert found["quarantined"] == {
        "decode_image: SampleError": 4,
        "read: DuplicateKey": 1,
        "read: DuplicateMember": 1,
        "read: InvalidUtf8": 1,
        "read: MissingField": 1,
    }


def test_the_report_says_the_same(run: Path) -> None:
    report, found = json.loads((run / "report.json").read_bytes()), manifest(run)
    for name in ("input_samples", "samples", "filtered", "quarantined"):
        assert report[name] == found["totals"][name]
    assert report["quarantined_by"] == found["quarantined"]
    assert report["filtered_by"] == found["filtered"]


@pytest.mark.parametrize("key", SAMPLE_ERRORS)
def test_what_cannot_be_decoded(run: Path, key: str) -> None:
    line = of(run, key)
    assert (line["step"], line["error"], line["uri"]) == ("decode_image", "SampleError", "0.tar")
    assert re.match(SAMPLE_ERRORS[key], line["reason"])


@pytest.mark.parametrize("key", READ_ERRORS)
def test_what_cannot_be_read(run: Path, key: str) -> None:
    line = of(run, key)
    error, reason = READ_ERRORS[key]
    assert (line["step"], line["error"], line["uri"]) == ("read", error, "1.tar")
    assert re.match(reason, line["reason"])


def test_lines_are_by_partition_and_input_row(run: Path) -> None:
    where = [(line["partition"], line["row"], line["key"]) for line in quarantined(run)]
    assert where == [
        (0, 0, "cut"),
        (0, 4, "words"),
        (0, 6, "nothing"),
        (0, 12, "bomb"),
        (1, 2, "no-caption"),
        (1, 6, "latin-1"),
        (1, 8, "twin"),
        (1, 11, "t1-000"),
    ]


def test_the_first_of_two_samples_of_a_key_is_kept(run: Path) -> None:
    assert "t1-000" in rows(run)
    assert "twin" not in rows(run)  # members of both stand together: no telling whose they are


def test_neighbours_are_those_of_a_run_without_the_planted(run: Path, tmp_path: Path) -> None:
    run_inline(job(tmp_path, planted=False))
    clean = rows(tmp_path / "out")
    assert len(clean) > NUM_GOOD // 2
    assert rows(run) == clean
    assert list(rows(run)) == list(clean)
    assert not (tmp_path / "out" / "quarantine").exists()


@pytest.mark.parametrize("key", SAMPLE_ERRORS)
def test_original_bytes_are_kept_on_request(run: Path, key: str) -> None:
    (members,) = [m for m in PLANTED[0].values() if m[0][0] == f"{key}.jpg"]
    payload = {name: base64.b64decode(data) for name, data in of(run, key)["payload"].items()}
    assert payload == {"image_bytes": members[0][1], "caption": members[1][1]}


def test_what_an_unreadable_sample_does_have_is_kept(run: Path) -> None:
    def kept(key: str) -> dict[str, bytes]:
        found = of(run, key)["payload"]
        return {name: base64.b64decode(data) for name, data in found.items()}

    assert kept("no-caption") == {"image_bytes": PLANTED[1][2][0][1]}
    latin_1 = {"image_bytes": PLANTED[1][5][0][1], "caption": "Straße".encode("latin-1")}
    assert kept("latin-1") == latin_1


def test_bytes_are_not_kept_without_a_request(run: Path, tmp_path: Path) -> None:
    run_inline(job(tmp_path))
    lines = quarantined(tmp_path / "out")
    assert len(lines) == NUM_BAD
    assert not any("payload" in line for line in lines)
    assert rows(run) == rows(tmp_path / "out")


@pytest.mark.parametrize(("budget", "enough"), [(NUM_BAD - 1, NUM_BAD), (0.28, 0.3)])
def test_above_the_budget_the_run_ends_and_a_larger_one_finishes_it(
    tmp_path: Path, run: Path, budget: float, enough: float
) -> None:
    """8 of 28 samples are 28.6 %."""
    given = job(tmp_path, max_bad_samples=budget)
    done = run_command(given, tmp_path, "--engine", "inline")
    assert done.returncode == BudgetExceededError.exit_code == 4, done.stderr
    assert "error: 8 samples are in the quarantine, run.max_bad_samples allows" in done.stderr
    assert "decode_image: SampleError (4)" in done.stderr
    assert "raise the limit, and run the same command again" in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    given["run"]["max_bad_samples"] = enough
    done = run_command(given, tmp_path, "--engine", "inline")
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "out") == rows(run)
