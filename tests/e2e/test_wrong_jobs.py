"""Wrong jobs, as their authors meet them: exit code 2, the line and field, and nothing written."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.command_line import pipeline
from tests.e2e.photo_job import JOB, write_corpus, write_job


class Wrong(NamedTuple):
    """A change to the good job, and what is said about it: its line and text."""

    old: str
    new: str
    at: str
    says: str


WRONG_FILES = {
    "unknown field": Wrong(
        "output: out", "output: out\nbatchsize: 8", "29: batchsize", "did you mean 'batch_size'?"
    ),
    "unknown operator": Wrong(
        "decode_image", "decod_image", "10: operators[0].name", "did you mean 'decode_image'?"
    ),
    "unknown setting of an operator": Wrong(
        "    patch: 16", "    patchs: 16", "15: operators[2].patchs", "did you mean 'patch'?"
    ),
    "wrong type": Wrong(
        "    size: 32", "    size: large", "12: operators[1].size", "a whole number, found 'large'"
    ),
    "out of bounds": Wrong(
        "    patch: 16", "    patch: 1", "15: operators[2].patch", "expected 4 or more, found 1"
    ),
    "missing required field": Wrong("output: out", "", "1: output", "missing; it is required"),
    "missing field of an operator": Wrong(
        "    template: [<bos>, {text: caption_tokens}, <boi>, {image: image_tokens}]",
        "",
        "20: operators[4].template",
        "missing; it is required",
    ),
    "key twice": Wrong(
        "    size: 32", "    size: 32\n    size: 64", "13: operators[1].size", "twice"
    ),
    "not YAML": Wrong("  type: webdataset", "   type: webdataset", "4", "not YAML:"),
    "unknown source": Wrong(
        "webdataset", "webdatset", "3: source.type", "did you mean 'webdataset'?"
    ),
    "no type of source": Wrong(
        "  type: webdataset\n", "", "2: source", "missing `type`; one of webdataset, parquet"
    ),
    "environment changes bytes": Wrong(
        "patch: 16", "patch: ${PATCH}", "15: operators[2].patch", "only in source.urls, output and"
    ),
    "unknown field of a source": Wrong(
        "  partition_bytes: 1",
        "  partition_byte: 1",
        "8: source.partition_byte",
        "'partition_bytes'?",
    ),
    "run.workers": Wrong(
        "max_bad_samples: 1",
        "workers: 0",
        "30: run.workers",
        "'auto' or 1 or more or a mapping, found 0",
    ),
}

WRONG_CHAINS = {
    "missing operator": Wrong(
        "  - name: decode_image\n",
        "",
        "10: operators[0] (center_crop)",
        "reads 'image' (pillow[*, *, 3]), which no source field or earlier operator gives",
    ),
    "shape": Wrong(
        "size: 32", "size: 16", "13: operators[2] (dct_fsq)", "[32, 32, 3], but it is uint8[16, 16"
    ),
    "dtype": Wrong(
        "{text: caption}",
        "{text: image_bytes}",
        "17: operators[3] (byte_text)",
        "reads 'image_bytes' as string, but it is binary",
    ),
    "vocabulary": Wrong(
        "image: 64000", "image: 1000", "20: operators[4] (sequence)", "but it is uint16[4] < 64,000"
    ),
    "setting that does not fit": Wrong(
        "patch: 16", "patch: 7", "13: operators[2] (dct_fsq)", "patch=7 does not divide side=32"
    ),
    "renamed field that is not there": Wrong(
        "{tokens: image_tokens}", "{token: a}", "16: operators[2].outputs", "no field 'token'"
    ),
    "shard field that is not there": Wrong(
        "[sequence, image_tokens,",
        "[sequence, images,",
        "27: shards.fields[1]",
        "no field 'images'",
    ),
    "unset variable": Wrong(
        "urls: photos-*.tar", "urls: ${NO_SUCH}/*.tar", "4: source.urls", "NO_SUCH is not set"
    ),
}


@pytest.mark.parametrize("wrong", WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_file(wrong: Wrong, tmp_path: Path) -> None:
    assert_refused("validate", wrong, tmp_path)


@pytest.mark.parametrize("wrong", WRONG_CHAINS.values(), ids=WRONG_CHAINS)
def test_operators_that_do_not_fit(wrong: Wrong, tmp_path: Path) -> None:
    assert_refused("run", wrong, tmp_path)


def assert_refused(command: str, wrong: Wrong, folder: Path) -> None:
    assert JOB.count(wrong.old) == 1
    write_corpus(folder)
    write_job(folder, JOB.replace(wrong.old, wrong.new))
    done = pipeline(command, "job.yaml", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert f"error: job.yaml:{wrong.at}: " in done.stderr
    assert wrong.says in done.stderr
    assert done.stdout == ""
    assert not (folder / "out").exists()


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = JOB.replace("name: photos", "nam: photos").replace("size: 32", "size: 0")
    write_job(tmp_path, text.replace("image: 64000", "image: 0"))
    done = pipeline("run", "job.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: job.yaml: 4 mistakes",
        "  job.yaml:1: name: missing; it is required",
        "  job.yaml:1: nam: unknown field; did you mean 'name'?",
        "  job.yaml:12: operators[1].size: expected 1 or more, found 0",
        "  job.yaml:20: operators[4]: range 'image' holds 0 ids, expected 1 or more",
    ]


def test_several_jobs_are_not_one(tmp_path: Path) -> None:
    write_job(tmp_path, f"{JOB}---\n{JOB}")
    done = pipeline("validate", "job.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: job.yaml:31: not YAML: but found another document" in done.stderr


@pytest.mark.parametrize(
    ("text", "found"), [("", "an empty file"), ("- name: a\n", "a list"), ("photos\n", "'photos'")]
)
def test_not_a_mapping(text: str, found: str, tmp_path: Path) -> None:
    write_job(tmp_path, text)
    done = pipeline("validate", "job.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: job.yaml:1: expected a mapping with name, source" in done.stderr
    assert f"found {found}\n" in done.stderr


def test_no_such_job(tmp_path: Path) -> None:
    done = pipeline("run", "none.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: none.yaml: no such file or directory\n")


def test_folder_as_job(tmp_path: Path) -> None:
    done = pipeline("run", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: .: is a directory\n")


def test_job_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    done = pipeline("run", "job.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: job.yaml: not UTF-8 text\n")
