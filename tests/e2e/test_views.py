"""Views of an image from the job to the loader, and tokenizers that share their images."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from operators.base import FieldSpec
from operators.image.decode_image import DecodeImage
from operators.image_tokenizers.dct_fsq import DctFsq
from pipeline.loader import TokenDataset
from pipeline.manifest import open_data_set
from pipeline.preview import GAP, MARGIN, VIEW, VIEW_GAP, preview
from pipeline.storage import Storage
from tests.e2e.command_line import CommandLine
from tests.e2e.photo_job import BROKEN, NUM_TARS, PER_TAR, write_corpus, write_job

NUM_GOOD = NUM_TARS * PER_TAR - 1

HEAD = """\
name: photos
source:
  type: webdataset
  urls: photos-*.tar
  fields: {image_bytes: png}
  partition_bytes: 1
run:
  max_bad_samples: 1
output: out
"""

VIEWS = f"""\
{HEAD}
operators:
  - name: decode_image
  - name: crops
    kind: ten
    size: 24
    resize: adm
    resize_to: 26
  - name: dct_fsq
    patch: 8
shards:
  fields: [tokens, crop_boxes]
"""

RANDOM = VIEWS.replace("kind: ten", "kind: random\n    count: 3").replace(
    "    resize: adm\n    resize_to: 26\n", ""
)

TWO = f"""\
{HEAD}
operators:
  - name: decode_image
  - name: center_crop
    size: 32
  - name: dct_fsq
    patch: 8
    outputs: {{tokens: fine}}
  - name: dct_fsq
    patch: 16
    outputs: {{tokens: coarse}}
shards:
  fields: [fine, coarse]
"""


def finished(command: CommandLine, text: str) -> CommandLine:
    write_corpus(command.folder)
    write_job(command.folder, text)
    assert command("run", "job.yaml", "--engine", "inline") == 0, command.err
    return command


def test_ten_crops_from_the_job_to_the_loader(command: CommandLine) -> None:
    out = str(finished(command, VIEWS).folder / "out")
    data = open_data_set(out, Storage())
    assert data.manifest.fields == {
        "tokens": FieldSpec("uint16", (10, 9), 64_000),
        "crop_boxes": FieldSpec("int32", (10, 5)),
    }
    assert data.manifest.totals["tokens"] == {"tokens": NUM_GOOD * 90}
    (layout,) = [item["metadata"]["layout"] for item in data.manifest.operators[2:]]
    assert (layout["views"], layout["positions"], layout["grid"]) == (10, 9, [3, 3])

    with pa.memory_map(f"{out}/shards/0000000-000.arrow") as file:
        stored = pa.ipc.open_file(file).read_all()
    assert str(stored.schema.field("tokens").type.value_type) == (
        "fixed_size_list<item: uint16 not null>[9]"
    )
    loaded = [
        (batch["tokens"].numpy(), batch["crop_boxes"].numpy())
        for batch in TokenDataset(out, batch_size=2, shuffle=False)
    ]
    tokens, boxes = (np.concatenate(column) for column in zip(*loaded, strict=True))
    assert tokens.shape == (NUM_GOOD, 10, 9)
    np.testing.assert_array_equal(
        tokens[:4].ravel(),
        stored["tokens"].combine_chunks().flatten().flatten().to_numpy(),
    )
    # 40 x 32 pixels become 32 x 26, of which the middle 26 x 26 are cut ten times.
    assert boxes[0].tolist() == boxes[-1].tolist()
    assert boxes[0, :2].tolist() == [[4, 0, 30, 30, 0], [6, 0, 30, 30, 0]]
    assert boxes[0, :, 4].tolist() == [0] * 5 + [1] * 5


def test_mirrored_views_are_mirrored_in_their_tokens(command: CommandLine) -> None:
    """A patch's brightness stays, at the other end of its row."""
    out = str(finished(command, VIEWS).folder / "out")
    for batch in TokenDataset(out, batch_size=1, shuffle=False):
        brightness = (batch["tokens"][0].numpy() % 8).reshape(10, 3, 3)
        np.testing.assert_array_equal(brightness[[6, 5, 8, 7]], brightness[:4, :, ::-1])


def test_random_crops_are_the_same_in_any_company(command: CommandLine) -> None:
    finished(command, RANDOM)
    write_job(command.folder, RANDOM.replace("photos-*.tar", "photos-1.tar"))
    assert command("run", "job.yaml", "--engine", "inline", "--output", "alone") == 0
    whole, alone = (
        pa.ipc.open_file((command.folder / path).read_bytes()).read_all()
        for path in ("out/shards/0000001-000.arrow", "alone/shards/0000000-000.arrow")
    )
    assert whole.equals(alone)
    assert len({str(boxes) for boxes in whole["crop_boxes"].to_pylist()}) == len(whole) > 1


def test_preview_shows_views_as_a_contact_sheet(command: CommandLine) -> None:
    finished(command, VIEWS)
    assert command("preview", "out", "--num", "2") == 0
    with Image.open(command.folder / "out/preview.png") as sheet:
        pixels = np.asarray(sheet)
    cell = 5 * VIEW + 4 * VIEW_GAP
    assert pixels.shape[1] == 2 * MARGIN + 2 * cell + GAP
    bottom = pixels.shape[0] - MARGIN - 18  # above the note of the last row
    tiles = []
    for down in range(2):
        top = bottom - 2 * VIEW - VIEW_GAP + down * (VIEW + VIEW_GAP)
        for across in range(5):
            left = MARGIN + across * (VIEW + VIEW_GAP)
            tiles.append(pixels[top : top + VIEW, left : left + VIEW])
    assert min(tile.std() for tile in tiles) > 10
    for mirrored, straight in ((5, 1), (6, 0), (7, 3), (8, 2), (9, 4)):
        assert (tiles[mirrored] == tiles[straight][:, ::-1]).mean() > 0.95


@pytest.mark.parametrize(("kind", "width"), [("center", 256), ("random", 3 * VIEW + 2 * VIEW_GAP)])
def test_few_views_are_shown_as_large_as_they_fit(
    command: CommandLine, kind: str, width: int
) -> None:
    text = RANDOM if kind == "random" else RANDOM.replace("random\n    count: 3", "center")
    found = preview(str(finished(command, text).folder / "out"), Storage(), num=1)
    assert found.sheet().width == 2 * MARGIN + 2 * width + GAP


def test_two_tokenizers_share_one_decode(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[str] = Counter()
    original = DecodeImage.__call__

    def counted(self: DecodeImage, batch: Any) -> Any:
        decoded.update(data.as_py() for data in batch["image_bytes"])
        return original(self, batch)

    monkeypatch.setattr(DecodeImage, "__call__", counted)
    out = str(finished(command, TWO).folder / "out")
    assert len(decoded) == NUM_TARS * PER_TAR
    assert set(decoded.values()) == {1}
    report = json.loads((command.folder / "out/report.json").read_text())
    (steps,) = (stage["steps"] for stage in report["stages"] if stage["name"] == "cpu")
    assert sorted(steps) == [
        "center_crop",
        "dct_fsq",
        "dct_fsq#2",
        "decode_image",
    ]

    (batch,) = TokenDataset(out, batch_size=NUM_GOOD, shuffle=False)
    assert batch["fine"].shape == (NUM_GOOD, 16)
    assert batch["coarse"].shape == (NUM_GOOD, 4)
    brightness = batch["fine"].numpy().reshape(-1, 2, 2, 2, 2) % 8
    middle = brightness.mean(axis=(2, 4)).reshape(-1, 4)
    assert np.abs(middle - batch["coarse"].numpy() % 8).max() < 2


AUTHORS = ({"name": "resize", "size": 256, "interpolation": "bicubic"}, {"name": "center_crop"})
RESIZED = TWO.replace(
    "  - name: center_crop", "  - name: resize\n    size: 32\n  - name: center_crop"
)


def test_other_preprocessing_than_the_authors_is_told(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DctFsq, "preprocessing", AUTHORS, raising=False)
    write_corpus(command.folder)
    write_job(command.folder, RESIZED)
    says = (
        "images come from resize(32, shorter, bilinear) > center_crop(32); its authors prepare "
        "them by resize(32, shorter, bicubic) > center_crop(256)"
    )
    assert command("plan", "job.yaml") == 0
    shown = " ".join(command.out.split())
    assert f"dct_fsq: {says}" in shown
    assert f"dct_fsq#2: {says}" in shown
    assert command("run", "job.yaml", "--engine", "inline") == 0
    assert f"warning: dct_fsq: {says}\n" in command.err


def test_a_warning_of_preprocessing_changes_no_byte(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(command, RESIZED)
    before = {path: path.read_bytes() for path in (command.folder / "out").glob("*/*.arrow")}
    manifest = (command.folder / "out/manifest.json").read_bytes()
    monkeypatch.setattr(DctFsq, "preprocessing", AUTHORS, raising=False)
    assert command("run", "job.yaml", "--engine", "inline", "--fresh") == 0
    assert "its authors prepare them by" in command.err
    assert {path: path.read_bytes() for path in before} == before
    assert (command.folder / "out/manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(
    ("job", "authors"),
    [
        (
            RESIZED,
            (
                {"name": "resize", "size": 256},
                {"name": "center_crop", "size": 256},  # of 32 pixels, as the images
            ),
        ),
        (VIEWS, AUTHORS),
        (RANDOM, AUTHORS),
    ],
    ids=["as the authors", "ten crops", "random crops"],
)
def test_no_warning(
    job: str, authors: Any, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DctFsq, "preprocessing", authors, raising=False)
    finished(command, job)
    assert "warning" not in command.err
    assert BROKEN in (command.folder / "out/quarantine/0000001.jsonl").read_text()
