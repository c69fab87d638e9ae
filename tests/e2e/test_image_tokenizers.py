"""Every family in one job: from JPEG-like files to shards, previews, reports and checks."""

import json
from typing import Any

import numpy as np
import pytest

from pipeline.loader import TokenDataset
from pipeline.manifest import open_data_set
from pipeline.preview import preview
from pipeline.storage import Storage
from tests.e2e import photo_job
from tests.e2e.command_line import CommandLine
from tests.golden_tokenizer import GoldenModel, models

NUM_GOOD = 7
"""The images of the corpus, less the one that is none."""

# All of them have decoders.
FAMILIES = ("llamagen_vq", "maskgit_vq", "open_magvit2", "ibq", "one_d_piece", "titok_legacy")


def model_of(name: str) -> GoldenModel:
    return next(model for model in models() if model.folder == name)


def job(command: CommandLine, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a job that runs golden models over two sizes of the same decoded image."""
    steps: list[dict[str, Any]] = [{"name": "decode_image"}]
    for side in (32, 64):
        renamed = {"outputs": {"image": f"image_{side}"}}
        steps += [
            {"name": "resize", "size": side, **renamed},
            {
                "name": "center_crop",
                "size": side,
                "inputs": {"image": f"image_{side}"},
                **renamed,
            },
        ]
    for name in names:
        model = model_of(name)
        side = model.tensors("inputs")["images"].shape[-1]
        steps.append(
            {
                "name": model.operator,
                "weights": model.write(command.folder / name),
                "device": "cpu",
                "inputs": {"image": f"image_{side}"},
                "outputs": {"tokens": name},
                **model.options,
            }
        )
    return {
        "name": "families",
        "source": {
            "type": "webdataset",
            "urls": "photos-*.tar",
            "fields": {"image_bytes": "png"},
            "partition_bytes": 1,
        },
        "operators": steps,
        "batch_size": 4,
        "shards": {"fields": list(names)},
        "output": "out",
        "run": {"max_bad_samples": 1},
    }


@pytest.fixture
def corpus(command: CommandLine) -> CommandLine:
    photo_job.write_corpus(command.folder)
    return command


def test_families_of_one_job_share_a_decode_and_can_be_looked_at(corpus: CommandLine) -> None:
    (corpus.folder / "job.yaml").write_text(json.dumps(job(corpus, FAMILIES)))
    assert corpus("plan", "job.yaml") == 0, corpus.err
    assert corpus("run", "job.yaml", "--engine", "inline") == 0, corpus.err
    assert corpus("verify", "out") == 0, corpus.err
    data = open_data_set(str(corpus.folder / "out"), Storage())
    layouts = {o["label"]: o["metadata"]["layout"] for o in data.manifest.operators[5:]}
    assert layouts["llamagen_vq"]["grid"] == [8, 8]
    assert layouts["one_d_piece"]["nested"] is True
    assert layouts["open_magvit2"]["codebook_sizes"] == [1 << 14]
    report = json.loads((corpus.folder / "out" / "report.json").read_text())
    (cpu,) = (stage for stage in report["stages"] if stage["name"] == "cpu")
    assert cpu["samples"] == NUM_GOOD + 1  # one decode for all of them
    assert report["limit"]["stage"] in [stage["name"] for stage in report["stages"]]

    shown = preview(str(corpus.folder / "out"), Storage(), num=2)
    assert set(shown.decoded) == {model_of(name).operator for name in FAMILIES}
    for label, images in shown.decoded.items():
        for image, original in zip(images, shown.originals[label], strict=True):
            assert image.shape == original.shape
            assert image.dtype == np.uint8
    assert corpus("preview", "out", "--num", "3") == 0, corpus.err
    assert corpus("report", "out") == 0, corpus.err
    codebook = json.loads((corpus.folder / "out" / "codebook.json").read_text())
    assert set(codebook["fields"]) == set(FAMILIES)


def test_tokens_are_those_of_the_operator_alone(corpus: CommandLine) -> None:
    name = "llamagen_vq"
    (corpus.folder / "job.yaml").write_text(json.dumps(job(corpus, (name,))))
    assert corpus("run", "job.yaml", "--engine", "inline") == 0, corpus.err
    found = TokenDataset(
        str(corpus.folder / "out"), batch_size=NUM_GOOD, fields=["key", name], shuffle=False
    )
    (batch,) = found
    assert batch[name].shape == (NUM_GOOD, 64)
    first = {path.name: path.read_bytes() for path in (corpus.folder / "out/shards").iterdir()}
    again = ("run", "job.yaml", "--engine", "inline", "--output", "again")
    assert corpus(*again) == 0, corpus.err
    second = {path.name: path.read_bytes() for path in (corpus.folder / "again/shards").iterdir()}
    assert first == second
