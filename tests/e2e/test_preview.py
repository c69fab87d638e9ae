"""``pipeline preview``: a sheet to look at, and the text that comes back."""

import numpy as np
import pytest
from PIL import Image

from pipeline import preview as module
from pipeline.preview import GAP, MARGIN, TEXT_WIDTH, TILE, preview
from pipeline.storage import Storage
from tests.e2e.command_line import CommandLine
from tests.e2e.photo_job import JOB, caption, write_corpus, write_job


def test_sheet_shows_originals_and_decoded_tokens(run: CommandLine) -> None:
    assert run("preview", "out", "--num", "3") == 0
    lines = run.out.splitlines()
    assert lines[:3] == [f"0-{i}  byte_text: {caption(f'0-{i}')}" for i in range(3)]
    assert lines[3:] == ["wrote out/preview.png"]
    with Image.open(run.folder / "out/preview.png") as sheet:
        pixels = np.asarray(sheet)
    height, width, _ = pixels.shape
    assert width == 2 * MARGIN + 2 * TILE + 2 * TEXT_WIDTH + 3 * GAP
    assert height > 3 * TILE
    for column in range(2):  # the photograph and its tokens, decoded, in every row
        left = MARGIN + column * (TILE + GAP)
        for row in range(3):
            middle = height - MARGIN - TILE // 2 - (2 - row) * (height - 100) // 3
            tile = pixels[middle - 50 : middle + 50, left : left + TILE]
            assert tile.std() > 10
    assert (pixels[:MARGIN, :] == 255).mean() > 0.9


def test_decoded_rows_are_those_of_the_shard(run: CommandLine) -> None:
    found = preview(str(run.folder / "out"), Storage(), num=2)
    assert found.keys == ["0-0", "0-1"]
    assert list(found.decoded["byte_text"]) == [caption("0-0"), caption("0-1")]
    assert found.originals["byte_text"] == found.decoded["byte_text"]
    assert found.num_ids == {"dct_fsq": [4, 4], "byte_text": [len(caption("0-0").encode())] * 2}
    for before, after in zip(found.originals["dct_fsq"], found.decoded["dct_fsq"], strict=True):
        error = np.abs(before.astype(int) - after.astype(int)).mean()
        assert 0 < error < 60
    assert found.warning is None


def test_sheet_goes_where_it_is_told(run: CommandLine) -> None:
    assert run("preview", "out", "--to", "sheet.png") == 0
    assert run.out.splitlines()[-1] == "wrote sheet.png"
    assert (run.folder / "sheet.png").stat().st_size > 10_000
    assert not (run.folder / "out/preview.png").exists()


def test_sheet_of_a_remote_output_is_written_here(run: CommandLine) -> None:
    storage = Storage()
    for path in sorted((run.folder / "out").rglob("*")):
        if path.is_file():
            name = path.relative_to(run.folder)
            storage.write(f"memory://preview/{name}", path.read_bytes())
    assert run("preview", "memory://preview/out") == 0
    assert run.out.splitlines()[-1] == "wrote preview.png"
    assert (run.folder / "preview.png").exists()


def test_long_texts_and_keys_are_cut(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    found = preview(str(run.folder / "out"), Storage(), num=1)
    texts = ["word " * 5_000 + "\n\n" + "x" * 5_000, "x" * 5_000, "", "\n" * 100]
    for text in texts:
        sheet = module.Preview(
            "n", ["k" * 500], {"t": [text]}, {"t": [text]}, {"t": [1]}, "random weights"
        ).sheet()
        assert sheet.width == 2 * MARGIN + 2 * TEXT_WIDTH + GAP
        assert sheet.height < 400
    assert found.sheet().height > TILE


def test_nothing_to_decode_is_told(command: CommandLine) -> None:
    write_corpus(command.folder)
    write_job(command.folder, JOB.replace("[sequence, image_tokens, caption_tokens]", "[caption]"))
    assert command("run", "job.yaml", "--engine", "inline") == 0
    assert command("preview", "out") == 2
    assert "out: none of ['caption'] comes from an operator that can decode" in command.err


def test_preview_of_nothing(command: CommandLine) -> None:
    assert command("preview", "none") == 5
    assert command.err.startswith("error: none/manifest.json: no such object\n")
