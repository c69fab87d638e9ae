"""Tokens of a nested tokenizer whose number differs from sample to sample, job to loader."""

import pytest

from operators import registry
from operators.base import FieldSpec
from pipeline.loader import RaggedBatch, TokenDataset
from pipeline.manifest import open_data_set
from pipeline.preview import preview
from pipeline.storage import Storage
from tests.e2e import photo_job
from tests.e2e.command_line import CommandLine
from tests.nested_toy import SIDE, TOKENS, ToyNested

JOB = """\
name: nested
source:
  type: webdataset
  urls: photos-*.tar
  fields: {image_bytes: png, caption: txt}
  partition_bytes: 1
operators:
  - name: decode_image
  - name: center_crop
    size: 8
  - name: toy_nested
    num_tokens: RULE
batch_size: 3
shards:
  fields: [tokens]
output: out
run:
  max_bad_samples: 1
"""
NUM_GOOD = 7


@pytest.fixture
def corpus(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Two tars with a caption of n words for sample n of each, and the toy as an operator."""
    known = {**registry.all_classes(), "toy_nested": ToyNested}
    monkeypatch.setattr(registry, "all_classes", lambda: known)
    monkeypatch.setattr(photo_job, "caption", lambda key: "word " * int(key[-1]))
    photo_job.write_corpus(command.folder)
    return command


def tokens(
    command: CommandLine, rule: str, output: str, batch_size: int = 3
) -> dict[str, list[int]]:
    """Run the job and return key -> tokens."""
    text = JOB.replace("RULE", rule).replace("batch_size: 3", f"batch_size: {batch_size}")
    photo_job.write_job(command.folder, text)
    assert command("run", "job.yaml", "--engine", "inline", "--output", output) == 0, command.err
    (batch,) = TokenDataset(
        command.folder / output,
        batch_size=NUM_GOOD,
        fields=["key", "tokens"],
        allow_random_weights=True,
    )
    assert isinstance(batch["tokens"], RaggedBatch) == (rule != "null")
    return {key: batch["tokens"][i].tolist() for i, key in enumerate(batch["key"])}


@pytest.mark.parametrize(
    "rule", ["{by: caption, min: 2, tokens_per_word: 3}", "{by: error, max_error: 0.25}"]
)
def test_a_row_has_a_prefix_in_any_batch(rule: str, corpus: CommandLine) -> None:
    """Neither padding, nor a quarantined sample, nor the batch size changes a row."""
    found = tokens(corpus, rule, "out")
    assert tokens(corpus, rule, "other", batch_size=5) == found
    whole = tokens(corpus, "null", "whole")
    assert {key: whole[key][: len(ids)] for key, ids in found.items()} == found
    assert {len(ids) for ids in whole.values()} == {TOKENS}
    lengths = {key: len(ids) for key, ids in found.items()}
    if "caption" in rule:
        assert lengths == {
            **{"0-0": 2, "0-1": 3, "0-2": 6, "0-3": 9},
            **{"1-0": 2, "1-1": 3, "1-3": 9},
        }
    else:
        assert len(set(lengths.values())) > 1


def test_everything_else_knows_ragged_tokens_of_a_device_operator(corpus: CommandLine) -> None:
    found = tokens(corpus, "{by: caption, min: 2, tokens_per_word: 3}", "out")
    data = open_data_set(str(corpus.folder / "out"), Storage())
    assert data.manifest.fields["tokens"] == FieldSpec("uint8", (None,), 25)
    assert data.manifest.totals["tokens"] == {"tokens": sum(map(len, found.values()))}
    layout = data.manifest.operators[2]["metadata"]["layout"]
    assert (layout["nested"], layout["positions"]) == (True, TOKENS)
    assert corpus("verify", "out") == 0, corpus.out
    shown = preview(str(corpus.folder / "out"), Storage(), num=3)
    assert shown.num_ids["toy_nested"] == [2, 3, 6]
    assert [image.shape for image in shown.decoded["toy_nested"]] == [(SIDE, SIDE, 3)] * 3


def test_views_are_refused_when_the_job_is_planned(corpus: CommandLine) -> None:
    text = JOB.replace("RULE", "{by: error, max_error: 0.25}")
    photo_job.write_job(corpus.folder, text.replace("center_crop", "crops"))
    assert corpus("plan", "job.yaml") == 2
    assert "operators[2] (toy_nested)" in corpus.err
    assert "`image` holds 1 views of each" in corpus.err
