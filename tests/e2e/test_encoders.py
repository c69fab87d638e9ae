"""Images to reduced features by the command line: plan, run, verify, crash and go on."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from operators.columns import to_torch
from pipeline.loader import TokenDataset
from pipeline.manifest import open_data_set
from tests.corpus import data_files, environment, run_inline, write_corpus, write_tar
from tests.e2e.command_line import CommandLine
from tests.encoder_models import PROCESSOR, SIDE, TOKENS, WIDTH, config_of, model_of, write
from tests.faults.test_crash_at_commit import CRASH

pytestmark = pytest.mark.timeout(240)

SQUARES: list[dict[str, Any]] = [
    {"name": "resize", "size": PROCESSOR["size"]["shortest_edge"], "interpolation": "bicubic"},
    {"name": "center_crop", "size": SIDE},
]
CROPS: list[dict[str, Any]] = [{"name": "anyres_crops", "size": SIDE}]


def job(folder: Path, output: str, prepare: list[dict[str, Any]], **encoder: Any) -> dict[str, Any]:
    on_cpu = {"device": "cpu"}
    return {
        "name": "encoded",
        "source": {
            "type": "webdataset",
            "urls": f"{folder}/in/*.tar",
            "fields": {"image_bytes": "jpg;png"},
            "partition_bytes": 1,
        },
        "operators": [
            {"name": "decode_image"},
            *prepare,
            {"name": "vision_encoder", "weights": str(folder / "model"), **on_cpu, **encoder},
            {"name": "divprune", "keep": 5, **on_cpu},
        ],
        "batch_size": 4,
        "shards": {"fields": ["features", "token_map", *(["crop_grid"] if encoder else [])]},
        "output": str(folder / output),
    }


def strip(width: int, height: int) -> bytes:
    """Return a picture of any shape, as a file."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def corpus(command: CommandLine) -> CommandLine:
    write_corpus(command.folder / "in", tars=2, per_tar=6)
    write_tar(
        command.folder / "in" / "02.tar",
        [(f"{i}.png", strip(20 + 20 * i, 140 - 20 * i)) for i in range(6)],
    )
    write(model_of(config_of("dinov2")), command.folder / "model")
    return command


def test_features_go_from_images_to_shards(corpus: CommandLine) -> None:
    folder = corpus.folder
    (folder / "job.yaml").write_text(json.dumps(job(folder, "out", SQUARES)))
    assert corpus("plan", "job.yaml") == 0, corpus.err
    assert "its authors prepare" not in corpus.out + corpus.err
    assert corpus("run", "job.yaml", "--engine", "inline") == 0, corpus.err
    assert corpus("verify", "out") == 0, corpus.err
    found = open_data_set(str(folder / "out")).manifest
    (encoder,) = (o for o in found.operators if o["label"] == "vision_encoder")
    assert encoder["metadata"]["grid"] == [4, 4]
    assert set(encoder["sha256"]) == {"model.safetensors", "config.json"}
    (batch,) = TokenDataset(str(folder / "out"), batch_size=18, shuffle=False)
    assert batch["features"].shape == (18, 5, WIDTH)
    assert batch["token_map"].shape == (18, TOKENS)

    second = job(folder, "again", SQUARES)
    (folder / "second.json").write_text(json.dumps(second))
    arguments = ["run", str(folder / "second.json"), "--engine", "inline"]
    crashed = subprocess.run(
        [sys.executable, "-c", CRASH, "2", "before", *arguments],
        env=environment(),
        cwd=folder,
        check=False,
        timeout=100,
    )
    assert crashed.returncode == 9
    run_inline(second)
    assert data_files(folder / "again") == data_files(folder / "out")


def test_crops_of_any_number_are_encoded_without_their_padding(corpus: CommandLine) -> None:
    folder = corpus.folder
    given = job(folder, "out", CROPS, store_dtype="bfloat16")
    run_inline(given)
    (batch,) = TokenDataset(str(folder / "out"), batch_size=18, shuffle=False)
    grids = batch["crop_grid"].numpy()
    crops = grids[:, 0] * grids[:, 1] + 1
    assert set(crops) == {4, 5}
    for row, number in enumerate(crops):
        token_map = batch["token_map"][row].reshape(number, TOKENS)
        kept = [np.unique(part[part >= 0]).size for part in token_map.numpy()]
        assert kept[0] == 5  # the whole image has no padding
        assert max(kept) == 5
        assert len(batch["features"][row]) == sum(kept)
        assert batch["features"][row].dtype == to_torch(np.zeros(1, "bfloat16")).dtype

    given = {**given, "output": str(folder / "other"), "batch_size": 7}
    run_inline(given)
    again = TokenDataset(str(folder / "other"), batch_size=18, shuffle=False)
    (other,) = again
    assert other["features"].values.equal(batch["features"].values)
