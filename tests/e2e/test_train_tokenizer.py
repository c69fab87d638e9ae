"""``pipeline train-tokenizer``: train, tokenize with the result, and what is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.command_line import CommandLine, pipeline
from tests.text_documents import some_texts

TEXTS = some_texts(900)
TRAIN = """\
name: words
source:
  type: parquet
  urls: [texts/*.parquet]
  fields: [text]
sample: {max_documents: 300}
trainer:
  name: superbpe
  vocab_size: 400
  transition_size: 350
output: tokenizers/words
"""
TOKENIZE = """\
name: tokens
source:
  type: parquet
  urls: [texts/*.parquet]
  fields: [text]
operators:
  - name: text_tokenizer
    tokenizer: tokenizers/words/tokenizer.json
shards: {fields: [tokens]}
output: out
"""


@pytest.fixture
def corpus(command: CommandLine) -> CommandLine:
    """The command line in a folder with texts and the two jobs."""
    (command.folder / "texts").mkdir()
    for part in range(3):
        table = pa.table({"text": TEXTS[300 * part : 300 * part + 300]})
        pq.write_table(table, command.folder / "texts" / f"{part}.parquet", row_group_size=50)
    (command.folder / "train.yaml").write_text(TRAIN)
    (command.folder / "job.yaml").write_text(TOKENIZE)
    return command


def change(corpus: CommandLine, old: str, new: str) -> None:
    assert old in TRAIN
    (corpus.folder / "train.yaml").write_text(TRAIN.replace(old, new))


def files(corpus: CommandLine, output: str = "tokenizers/words") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (corpus.folder / output).iterdir()}


def test_train_then_tokenize(corpus: CommandLine) -> None:
    assert corpus("train-tokenizer", "train.yaml") == 0, corpus.err
    assert "300 documents" in corpus.out
    assert "tokenizers/words/provenance.json" in corpus.out
    assert corpus("run", "job.yaml", "--engine", "inline") == 0, corpus.err
    manifest = json.loads((corpus.folder / "out" / "manifest.json").read_text())
    assert manifest["fields"]["tokens"]["vocab_size"] == 400
    assert manifest["totals"]["samples"] == len(TEXTS)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert num_bytes / 8 < manifest["totals"]["tokens"]["tokens"] < num_bytes / 2


def test_provenance_says_what_it_was_made_of(corpus: CommandLine) -> None:
    assert corpus("train-tokenizer", "train.yaml") == 0, corpus.err
    found = files(corpus)
    about = json.loads(found["provenance.json"])
    data = found["tokenizer.json"]
    assert about["files"] == {
        "tokenizer.json": {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    }
    assert [source["name"] for source in about["sources"]] == [f"{i}.parquet" for i in range(3)]
    assert about["sample"]["documents"] == 300
    assert about["sample"]["documents_seen"] == 900
    assert about["recipe"]["trainer"]["transition_size"] == 350
    assert about["trainer"]["version"] == 1
    assert "regex_version" in about["trainer"]
    assert str(corpus.folder) not in found["provenance.json"].decode()


def nothing_is_written(corpus: CommandLine) -> bool:
    return not [path for path in corpus.folder.glob("tokenizers/**/*") if path.is_file()]


def test_how_the_corpus_is_cut_changes_nothing(corpus: CommandLine) -> None:
    assert corpus("train-tokenizer", "train.yaml") == 0, corpus.err
    change(corpus, "fields: [text]", "fields: [text]\n  partition_bytes: 1000")
    assert corpus("train-tokenizer", "train.yaml", "--output", "again") == 0, corpus.err
    assert files(corpus)["tokenizer.json"] == files(corpus, "again")["tokenizer.json"]


def test_the_same_job_again_trains_nothing(corpus: CommandLine) -> None:
    assert corpus("train-tokenizer", "train.yaml") == 0, corpus.err
    path = corpus.folder / "tokenizers" / "words" / "tokenizer.json"
    before = path.stat()
    assert corpus("train-tokenizer", "train.yaml") == 0, corpus.err
    assert "trained before" in corpus.out
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    path.unlink()
    assert corpus("train-tokenizer", "train.yaml") == 5
    assert "tokenizer.json: is gone" in corpus.err
    assert corpus("train-tokenizer", "train.yaml", "--fresh") == 0, corpus.err
    assert path.stat().st_size == before.st_size


def test_another_training_is_not_overwritten(corpus: CommandLine) -> None:
    assert corpus("train-tokenizer", "train.yaml") == 0, corpus.err
    before = files(corpus)
    change(corpus, "vocab_size: 400", "vocab_size: 410")
    assert corpus("train-tokenizer", "train.yaml") == 5
    assert "recipe.trainer.vocab_size: 400 -> 410" in corpus.err
    assert files(corpus) == before
    change(corpus, "superbpe\n  vocab_size: 400\n  transition_size: 350", "bpe\n  vocab_size: 300")
    assert corpus("train-tokenizer", "train.yaml", "--fresh") == 0, corpus.err
    assert set(files(corpus)) == {"tokenizer.json", "vocab.tiktoken", "provenance.json"}
    assert corpus("train-tokenizer", "train.yaml") == 0, corpus.err
    (corpus.folder / "train.yaml").write_text(TRAIN)
    assert corpus("train-tokenizer", "train.yaml", "--fresh") == 0, corpus.err
    assert files(corpus) == before


def test_files_of_others_are_not_touched(corpus: CommandLine) -> None:
    theirs = corpus.folder / "tokenizers" / "words" / "tokenizer.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("precious")
    for option in ([], ["--fresh"]):
        assert corpus("train-tokenizer", "train.yaml", *option) == 2
        assert "the output folder is not empty" in corpus.err
    assert theirs.read_text() == "precious"


def test_damaged_provenance(corpus: CommandLine) -> None:
    path = corpus.folder / "tokenizers" / "words" / "provenance.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"version": 7}')
    assert corpus("train-tokenizer", "train.yaml", "--fresh") == 5
    assert "not what this program writes there (version 7)" in corpus.err


def test_operators_before_the_trainer(corpus: CommandLine) -> None:
    change(
        corpus,
        "sample:",
        "operators:\n  - name: byte_text\n  - name: length_filter\n    min_length: 10000\nsample:",
    )
    assert corpus("train-tokenizer", "train.yaml") == 2
    assert "train.yaml:2: source: there are no documents to train on" in corpus.err
    change(
        corpus,
        "sample:",
        "operators:\n  - name: byte_text\n  - name: length_filter\n    max_length: 60\nsample:",
    )
    assert corpus("train-tokenizer", "train.yaml", "--limit", "500") == 0, corpus.err
    seen = sum(len(text.encode()) <= 60 for text in TEXTS[:500])
    assert json.loads(files(corpus)["provenance.json"])["sample"]["documents_seen"] == seen


class Wrong(NamedTuple):
    """A change to the good job, and what is said about it."""

    old: str
    new: str
    says: str


WRONG = {
    "unknown trainer": Wrong("superbpe", "superbp", "8: trainer.name: no trainer is named"),
    "no name": Wrong(
        "  name: superbpe\n", "", "7: trainer: expected a mapping with `name: TRAINER"
    ),
    "setting": Wrong(
        "vocab_size", "vocabsize", "9: trainer.vocabsize: unknown field; did you mean"
    ),
    "no trainer": Wrong(
        TRAIN[TRAIN.index("trainer:") : TRAIN.index("output")], "", "1: trainer: m"
    ),
    "two sizes": Wrong(
        "300}", "300, fraction: 0.5}", "6: sample: expected one size of the sample, found fraction"
    ),
    "size": Wrong("max_documents: 300", "fraction: 2", "6: sample.fraction: expected 1.0 or less"),
    "environment": Wrong("name: words", "name: ${NAME}", "1: name: '${NAME}' takes a value from"),
    "no such field": Wrong("trainer:", "text: body\ntrainer:", "7: text: there is no field 'body'"),
    "no text": Wrong(
        "trainer:",
        "text: tokens\noperators:\n  - name: byte_text\ntrainer:",
        "7: text: expected a field of text, but 'tokens' is uint8[*] < 256\n",
    ),
    "empty sample": Wrong(
        "max_documents: 300", "max_bytes: 1", "6: sample: of 900 documents none is in the sample"
    ),
    "shards": Wrong("output:", "shards: {fields: [tokens]}\noutput:", "11: shards: unknown field"),
    "no text at all": Wrong(TRAIN, "", "1: expected a mapping with name, source, trainer and out"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_jobs(wrong: Wrong, corpus: CommandLine) -> None:
    change(corpus, wrong.old, wrong.new)
    assert corpus("train-tokenizer", "train.yaml") == 2
    assert f"train.yaml:{wrong.says}" in corpus.err
    assert nothing_is_written(corpus)


def test_device_operators_cannot_stand_before_it(corpus: CommandLine) -> None:
    change(corpus, "sample:", "operators:\n  - {name: dct_fsq, side: 64}\nsample:")
    assert corpus("train-tokenizer", "train.yaml") == 2
    assert "train.yaml:7: operators[0] (dct_fsq)" in corpus.err


def test_too_many_unusable_samples(corpus: CommandLine) -> None:
    texts: list[str | None] = [*TEXTS[:50], None]
    pq.write_table(pa.table({"text": texts}), corpus.folder / "texts" / "bad.parquet")
    (corpus.folder / "train.yaml").write_text(TRAIN + "max_bad_samples: 0\n")
    assert corpus("train-tokenizer", "train.yaml") == 4
    assert "1 samples are unusable, max_bad_samples allows 0; bad.parquet" in corpus.err
    assert nothing_is_written(corpus)
    (corpus.folder / "train.yaml").write_text(TRAIN + "max_bad_samples: 1\n")
    assert corpus("train-tokenizer", "train.yaml") == 0, corpus.err
    sample: dict[str, Any] = json.loads(files(corpus)["provenance.json"])["sample"]
    assert sample["unusable"] == 1


def test_missing_source(corpus: CommandLine) -> None:
    change(corpus, "texts/*.parquet", "nowhere/*.parquet")
    assert corpus("train-tokenizer", "train.yaml") == 3


def test_a_log_tells_the_steps(corpus: CommandLine) -> None:
    done = pipeline("train-tokenizer", "train.yaml", cwd=Path(corpus.folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reading 0%\n")
    assert "inheriting merges" in done.stdout


def test_trainers_are_listed_and_described(command: CommandLine) -> None:
    assert command("trainers") == 0
    assert "superbpe      Learn SuperBPE" in command.out
    assert command("trainers", "superbpe") == 0
    assert "transition_size" in command.out
    assert command("trainers", "superbp") == 2
    assert "did you mean 'superbpe'?" in command.err
