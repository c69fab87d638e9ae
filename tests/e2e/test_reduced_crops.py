"""Photographs of several shapes: crops, an encoder, and reducers that look at all crops of one."""

import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.e2e.command_line import CommandLine
from tests.encoder_models import TOKENS, WIDTH, config_of, model_of, write

JOB = """\
name: crops
source: {{type: image_folder, urls: photos}}
operators:
  - {{name: decode_image, inputs: {{image_bytes: image}}}}
  - {{name: anyres_crops, size: 28}}
  - {{name: vision_encoder, weights: model, device: cpu, attention_layers: [0, -2]}}
  - {{device: cpu, {reducer}}}
batch_size: 4
shards: {{fields: [features, token_map, sizes, crop_grid]}}
output: out
"""
SHAPES = ((90, 90), (200, 60), (50, 120), (64, 61), (40, 40))


@pytest.mark.parametrize(
    "reducer",
    ["name: hired, keep: 0.4", "name: hired, variant: paper", "name: globalcom2, keep: 0.3"],
)
def test_crops_are_reduced_together(command: CommandLine, reducer: str) -> None:
    photos = command.folder / "photos"
    photos.mkdir()
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate(SHAPES):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    (command.folder / "model").mkdir()
    write(model_of(config_of("dinov2")), command.folder / "model")
    (command.folder / "job.yaml").write_text(JOB.format(reducer=reducer))
    assert command("run", "job.yaml", "--engine", "inline") == 0, command.err
    manifest = json.loads((command.folder / "out" / "manifest.json").read_text())
    assert manifest["totals"]["samples"] == len(SHAPES)
    (shard,) = (command.folder / "out" / "shards").iterdir()
    with pa.ipc.open_file(shard) as reader:
        table = reader.read_all()
    for row in table.to_pylist():
        rows, columns, _, _ = row["crop_grid"]
        token_map = np.array(row["token_map"])
        assert token_map.shape == (1 + rows * columns, TOKENS)
        kept = np.sort(token_map[token_map >= 0])
        assert kept.tolist() == list(range(len(row["sizes"])))
        assert np.array(row["features"]).shape == (len(kept), WIDTH)
        assert 0 < len(kept) < token_map.size / 2
