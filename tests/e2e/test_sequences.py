"""Sequences from job to shards: our job with small models, chats, orders, wrong templates."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ruamel.yaml import YAML

from operators.keyed_draws import draws_of_keys
from pipeline.loader import TokenDataset
from pipeline.manifest import open_data_set
from pipeline.storage import Storage
from tests.e2e.command_line import ROOT, CommandLine
from tests.e2e.photo_job import BROKEN, JOB, NUM_TARS, PER_TAR, write_corpus, write_job
from tests.golden_tokenizer import models

BPE = str(ROOT / "tests/golden/text/bytelevel_bpe.json")
NUM_GOOD = NUM_TARS * PER_TAR - 1


def with_small_models(folder: Path) -> str:
    """Return our job with golden models in place of published ones, and the small corpus."""
    model = next(model for model in models() if model.operator == "llamagen_vq")
    text = (ROOT / "jobs/cc12m_interleaved.yaml").read_text()
    job = YAML(typ="safe").load(text)
    steps = {step["name"]: step for step in job["operators"]}
    steps["llamagen_vq"] |= {"weights": model.write(folder / "llamagen"), "device": "cpu"}
    del steps["llamagen_vq"]["model"]
    steps["text_tokenizer"]["tokenizer"] = BPE
    steps["sequence"]["template"][1]["drop"]["rate"] = 0.5
    job["source"] |= {"urls": "photos-*.tar", "fields": {"image_bytes": "png", "caption": "txt"}}
    job |= {"batch_size": 4, "output": "out", "run": {"max_bad_samples": 1}}
    return json.dumps(job)


def test_our_job_makes_sequences_with_masks_and_dropped_captions(command: CommandLine) -> None:
    write_corpus(command.folder)
    write_job(command.folder, with_small_models(command.folder))
    assert command("plan", "job.yaml") == 0, command.err
    assert command("run", "job.yaml", "--engine", "inline") == 0, command.err
    out = str(command.folder / "out")
    steps = open_data_set(out, Storage()).manifest.operators
    positions = steps[-2]["metadata"]["layout"]["positions"]
    ranges: Any = steps[-1]["metadata"]["vocabulary"]
    special = ranges["special"]["ids"]
    is_dropped = []
    for batch in TokenDataset(out, batch_size=1, shuffle=False):
        row, mask = (batch[name][0].numpy() for name in ("sequence", "loss_mask"))
        length = int(np.flatnonzero(row == special["<eos>"])[0]) + 1
        row, mask = row[:length], mask[:length]
        start, stop = (int(np.flatnonzero(row == special[name])[0]) for name in ("<boi>", "<eoi>"))
        image = row[start + 1 : stop]
        assert len(image) == positions
        assert image.min() >= ranges["image"]["start"]
        caption = row[1:start]
        assert np.all((caption >= ranges["text"]["start"]) & (caption < ranges["text"]["stop"]))
        assert mask.tolist() == [0] * start + [1] * (positions + 2) + [1]
        is_dropped.append(not len(caption))
    keys = [f"{tar}-{i}" for tar in range(NUM_TARS) for i in range(PER_TAR)]
    keys.remove(BROKEN)
    drawn = draws_of_keys(0, "drop/caption_tokens", pa.array(keys, pa.large_string()))[:, 0] < 0.5
    assert is_dropped == drawn.tolist()
    assert 0 < sum(is_dropped) < NUM_GOOD


def test_chats_in_tars_and_their_mask(command: CommandLine) -> None:
    conversations: list[Any] = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "bot", "content": "ho"}]},
        {"messages": []},
    ]
    with tarfile.open(command.folder / "chats.tar", "w") as file:
        for i, conversation in enumerate(conversations):
            data = json.dumps(conversation).encode()
            member = tarfile.TarInfo(f"{i}.json")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    roles = {
        "user": {"before": [{"text": "<"}]},
        "bot": {"before": [{"text": ">"}], "after": ["<|endoftext|>"], "loss": True},
    }
    chat = {
        "name": "chat",
        "path": "messages",
        "tokenizer": {"name": "text_tokenizer", "tokenizer": BPE},
        "roles": roles,
        "inputs": {"messages": "json"},
    }
    job = {
        "name": "chats",
        "source": {"type": "webdataset", "urls": "chats.tar", "fields": {"json": "json"}},
        "operators": [chat],
        "shards": {"fields": ["tokens", "loss_mask"]},
        "output": "out",
        "run": {"max_bad_samples": 1},
    }
    write_job(command.folder, json.dumps(job))
    assert command("run", "job.yaml", "--engine", "inline") == 0, command.err
    manifest = open_data_set(str(command.folder / "out"), Storage()).manifest
    assert manifest.operators[0]["tokenizer_sha256"]
    [batch] = TokenDataset(str(command.folder / "out"), batch_size=1, shuffle=False)
    mask = batch["loss_mask"][0].tolist()
    assert mask[-2:] == [1, 1]
    assert mask[0] == 0


def test_filled_in_middles_find_their_place_in_the_vocabulary(command: CommandLine) -> None:
    fim = "  - name: fim\n    rate: 1\n    inputs: {tokens: caption_tokens}\n"
    fim += "    outputs: {tokens: caption_tokens}\n  - name: sequence"
    job = JOB.replace("  - name: sequence", fim)
    write_corpus(command.folder)
    write_job(command.folder, job)
    assert command("plan", "job.yaml") == 2
    assert "reads 'caption_tokens' as" in command.err
    write_job(command.folder, job.replace("text: 256", "text: 259"))
    assert command("run", "job.yaml", "--engine", "inline") == 0, command.err
    for batch in TokenDataset(str(command.folder / "out"), batch_size=1, shuffle=False):
        # <bos> and <boi> come first in the vocabulary, so every id of the text is 2 more.
        row = batch["sequence"][0].tolist()
        assert row[1] == 2 + 256
        assert {2 + 257, 2 + 258} < set(row)


def test_order_follows_a_tokenizer_of_the_job(command: CommandLine) -> None:
    order = "  - name: grid_order\n    order: diagonals\n    inputs: {tokens: image_tokens}\n"
    order += "    outputs: {tokens: image_tokens}\n"
    write_corpus(command.folder)
    write_job(command.folder, JOB.replace("  - name: byte_text", f"{order}  - name: byte_text"))
    assert command("run", "job.yaml", "--engine", "inline") == 0, command.err
    step = open_data_set(str(command.folder / "out"), Storage()).manifest.operators[3]
    metadata: Any = step["metadata"]
    assert (metadata["permutation"], metadata["group_sizes"]) == ([0, 1, 2, 3], [1, 2, 1])


SEQUENCE = "[<bos>, {text: caption_tokens}, <boi>, {image: image_tokens}]"
WRONG = {
    "special token": (
        "[<bos>, {text: caption_tokens}, <eoi>, {image: image_tokens}]",
        "operators[4]: template[2]: special token '<eoi>' is not declared",
    ),
    "modality": (
        "[<bos>, {txt: caption_tokens}]",
        "operators[4]: template[1]: unknown modality 'txt' of field 'caption_tokens'",
    ),
    "option": (
        "[{field: caption_tokens, modality: text, dorp: {rate: 0.1}}]",
        "operators[4].template[0].dorp: unknown field; did you mean 'drop'?",
    ),
    "rate": (
        "[<bos>, {field: caption_tokens, modality: text, drop: {rate: 1.5}}]",
        "operators[4].template[1].drop.rate: expected 1.0 or less, found 1.5",
    ),
    "field": (
        "[<bos>, {text: captions}]",
        "operators[4] (sequence): reads 'captions'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_plan_names_the_wrong_entry_of_a_template(command: CommandLine, name: str) -> None:
    template, says = WRONG[name]
    assert SEQUENCE in JOB
    write_corpus(command.folder)
    write_job(command.folder, JOB.replace(SEQUENCE, template))
    assert command("plan", "job.yaml") == 2
    assert says in " ".join(command.err.split())


def test_plan_refuses_an_order_that_does_not_fit_the_tokens(command: CommandLine) -> None:
    order = (
        "  - name: grid_order\n    order: cells\n    side: 3\n    inputs: {tokens: image_tokens}\n"
    )
    write_corpus(command.folder)
    write_job(command.folder, JOB.replace("  - name: byte_text", f"{order}  - name: byte_text"))
    assert command("plan", "job.yaml") == 2
    said = " ".join(command.err.split())
    assert "operators[3] (grid_order): grid_order: side=3 does not divide a grid of 2 x 2" in said
