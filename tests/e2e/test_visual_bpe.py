"""BPE over image ids: trained on a finished data set, then used on the same ids."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.e2e.command_line import CommandLine

FIRST = """\
name: codes
source:
  type: parquet
  urls: [ids/*.parquet]
  fields: [tokens]
operators:
  - {name: run_length_ids, merge: duplicates, outputs: {tokens: distinct}}
shards: {fields: [tokens]}
output: codes
"""
TRAIN = """\
name: pairs
source:
  type: parquet
  urls: [codes-parquet/data/*.parquet]
  fields: [tokens]
operators:
  - {name: ids_as_text}
trainer: {name: visual_bpe, codebook_size: 16, vocab_size: 40}
output: pairs
"""
MERGE = """\
name: merged
source:
  type: parquet
  urls: [codes-parquet/data/*.parquet]
  fields: [tokens]
operators:
  - {name: visual_bpe, tokenizer: pairs/visual_bpe.json}
shards: {fields: [tokens]}
output: merged
"""


def test_train_on_shards_then_merge(command: CommandLine) -> None:
    random = np.random.default_rng(0)
    ids = random.integers(0, 16, (200, 1)) + np.arange(64) // random.integers(1, 9, (200, 1))
    (command.folder / "ids").mkdir()
    table = pa.table({"tokens": [row % 16 for row in ids]})
    pq.write_table(table, command.folder / "ids" / "0.parquet")
    for name, job in (("first", FIRST), ("train", TRAIN), ("merge", MERGE)):
        (command.folder / f"{name}.yaml").write_text(job)
    assert command("run", "first.yaml", "--engine", "inline") == 0, command.err
    assert command("export", "codes", "--to", "parquet", "--engine", "inline") == 0, command.err
    assert command("train-tokenizer", "train.yaml") == 0, command.err
    assert "200 documents" in command.out
    assert command("run", "merge.yaml", "--engine", "inline") == 0, command.err
    manifest = json.loads((command.folder / "merged" / "manifest.json").read_text())
    assert manifest["fields"]["tokens"]["vocab_size"] == 40
    assert manifest["totals"]["samples"] == 200
    assert 0 < manifest["totals"]["tokens"]["tokens"] < 200 * 64
