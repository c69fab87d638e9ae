"""``pipeline tokenizer-report`` over jobs and finished shards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import text_job
from tests.e2e.command_line import ROOT, CommandLine

GOLDEN = ROOT / "tests/golden/text/bytelevel_bpe.json"
HF = f"{{name: text_tokenizer, tokenizer: {GOLDEN}}}"
FIELDS = {"type": "jsonl", "urls": "in/*.jsonl", "fields": ["text", "lang"], "partition_bytes": 1}


def corpus(folder: Path) -> list[str]:
    """Three files of ten lines, in two languages."""
    (folder / "in").mkdir()
    texts = []
    for number in range(3):
        lines = []
        for line in range(10):
            lang = "fr" if line % 2 else "en"
            text = f"file {number}, line {line}: {'déjà vu' if lang == 'fr' else 'seen before'}"
            lines.append(json.dumps({"text": text, "lang": lang}) + "\n")
            texts.append(text)
        (folder / "in" / f"{number}.jsonl").write_text("".join(lines))
    return texts


def write(folder: Path, name: str = "job.yaml", **changes: Any) -> None:
    job = text_job("", Path("out"), **{"source": FIELDS, **changes})
    (folder / name).write_text(json.dumps(job))


def report(command: CommandLine) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = json.loads((command.folder / "r.json").read_text())[
        "tokenizers"
    ]
    return found


def test_tokenizers_side_by_side(command: CommandLine) -> None:
    texts = corpus(command.folder)
    write(command.folder)
    code = command(
        *("tokenizer-report", "job.yaml", "--tokenizer", HF, "--group", "lang"),
        *("--reference", "en", "--json", "r.json", "--plot", "r.svg"),
    )
    assert code == 0, command.err
    first, second = report(command)
    assert [each["label"] for each in (first, second)] == [
        "byte_text",
        "text_tokenizer: text/bytelevel_bpe",
    ]
    num_bytes = sum(len(text.encode()) for text in texts)
    assert (first["documents"], first["bytes"], first["tokens"]) == (30, num_bytes, num_bytes)
    assert second["bytes"] == num_bytes
    assert second["nsl"] == second["tokens"] / num_bytes
    assert first["groups"]["fr"]["premium_per_character"] > 1.0
    assert first["groups"]["en"]["documents"] == 15
    assert second["vocabulary"]["unreachable"] is not None
    assert set(second["robustness"]) == {
        *("letters swapped", "letters dropped", "letters doubled", "upper case")
    }
    assert "bytes a token" in command.out
    assert "tokens a character (by en)" in command.out
    assert (command.folder / "r.svg").read_text().startswith("<?xml")
    assert not (command.folder / "out").exists()


def test_a_sample_is_the_same_again_and_spread_over_the_files(command: CommandLine) -> None:
    corpus(command.folder)
    write(command.folder)
    found = []
    for _ in range(2):
        assert (
            command("tokenizer-report", "job.yaml", "--sample", "0.0005", "--json", "r.json") == 0
        )
        found.append(report(command))
    assert found[0] == found[1]
    assert 500 <= found[0][0]["bytes"] < 600
    assert found[0][0]["documents"] < 30


def test_what_the_job_does_before_the_tokenizer_is_done_here_too(command: CommandLine) -> None:
    texts = corpus(command.folder)
    operators = [
        {"name": "digit_groups", "size": 1, "separator": "-"},
        {"name": "byte_text", "add_eos": True},
        {"name": "length_filter", "min_length": 99},
    ]
    write(command.folder, operators=operators)
    assert command("tokenizer-report", "job.yaml", "--json", "r.json") == 0, command.err
    [found] = report(command)
    assert (found["documents"], found["special_tokens"]) == (len(texts), len(texts))
    assert found["tokens"] == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("fields", [["tokens", "lang"], ["tokens", "text", "lang"]])
def test_finished_shards(command: CommandLine, fields: list[str]) -> None:
    texts = corpus(command.folder)
    write(
        command.folder,
        operators=[json.loads(json.dumps({"name": "text_tokenizer", "tokenizer": str(GOLDEN)}))],
        shards={"fields": fields},
    )
    assert command("run", "job.yaml", "--engine", "inline") == 0, command.err
    code = command("tokenizer-report", "job.yaml", "out", "--group", "lang", "--json", "r.json")
    assert code == 0, command.err
    of_job, of_shards = report(command)
    is_decoded = "text" not in fields
    assert of_shards["text_is_decoded"] is is_decoded
    assert ("the shards hold no text" in command.out) is is_decoded
    same = ("documents", "bytes", "tokens", "groups", "used", "text_sha256")
    assert [of_shards[name] for name in same] == [of_job[name] for name in same]
    assert of_shards["nsl"] == 1.0
    assert of_shards["documents"] == len(texts)


def test_texts_that_a_tokenizer_refuses_are_left_out_for_all(command: CommandLine) -> None:
    folder = command.folder / "in"
    folder.mkdir()
    lines = [json.dumps({"text": text, "lang": "en"}) for text in ("good", "see </s> here", "fine")]
    (folder / "0.jsonl").write_text("\n".join(lines) + "\n")
    unigram = ROOT / "tests/golden/text/unigram.json"
    write(command.folder)
    option = f"{{name: text_tokenizer, tokenizer: {unigram}}}"
    assert command("tokenizer-report", "job.yaml", "--tokenizer", option, "--json", "r.json") == 0
    found = report(command)
    assert [(each["documents"], each["refused"]) for each in found] == [(2, 1), (2, 1)]
    assert "1 documents are left out" in command.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--tokenizer", "byte_tex"), "did you mean 'byte_text'?"),
        (("--tokenizer", "[1]"), "expected an operator's name, or settings with one"),
        (
            ("--tokenizer", "{name: text_tokenizer}"),
            "--tokenizer text_tokenizer: tokenizer: Field required",
        ),
        (("--tokenizer", "{name: length_filter, min_length: 1}"), "it does not make ids of text"),
        (("--group", "language"), "--group language: expected a field of text or numbers"),
        (("--plot", "x.gif"), "x.gif: unknown format"),
    ],
)
def test_mistakes_are_named(command: CommandLine, options: tuple[str, ...], says: str) -> None:
    corpus(command.folder)
    write(command.folder)
    assert command("tokenizer-report", "job.yaml", *options) == 2
    assert says in " ".join(command.err.split())


def test_more_tokenizers_need_a_job(command: CommandLine) -> None:
    assert command("tokenizer-report", "out", "--tokenizer", "byte_text") == 2
    assert "there is no job among the targets to measure it on" in command.err


def test_a_job_without_text_tokenizers_and_one_that_replaces_the_text(command: CommandLine) -> None:
    corpus(command.folder)
    write(command.folder, operators=[{"name": "digit_groups"}], shards={"fields": ["text"]})
    assert command("tokenizer-report", "job.yaml") == 2
    assert "no operator makes ids of text" in command.err
    assert command("tokenizer-report", "job.yaml", "--tokenizer", "byte_text") == 0, command.err
    write(command.folder, operators=[{"name": "byte_text"}, {"name": "digit_groups"}])
    assert command("tokenizer-report", "job.yaml") == 2
    assert "digit_groups replaces the field 'text' of byte_text" in command.err
