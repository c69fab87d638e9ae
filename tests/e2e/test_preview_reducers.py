"""``pipeline preview`` of reduced tokens: kept, merged and dropped parts over the photograph."""

import numpy as np
import pytest
from PIL import Image

from operators import registry
from operators.reducers.picture import DARK, draw_map, grid_of
from pipeline.preview import MARGIN, TILE, preview
from pipeline.storage import Storage
from tests.e2e.command_line import CommandLine
from tests.e2e.photo_job import write_corpus, write_job
from tests.patch_means import PatchMeans
from tests.reducer_cases import CASES, ReducerCase, batch_for, reducer

JOB = """\
name: reduced
source:
  type: webdataset
  urls: photos-*.tar
  fields: {{image_bytes: png}}
  partition_bytes: 1
operators:
  - name: decode_image
{image}
  - name: patch_means
{reducers}
shards: {{fields: [features, {stored}]}}
output: out
run: {{max_bad_samples: 1}}
"""
CROP = "  - {name: center_crop, size: 32}"
VIEWS = "  - {name: crops, kind: random, count: 3, size: 32}"
PATCH = 8


def run(
    command: CommandLine, *reducers: str, image: str = CROP, stored: str = "token_map"
) -> CommandLine:
    listed = "\n".join(f"  - {{device: cpu, {reducer}}}" for reducer in reducers)
    write_job(command.folder, JOB.format(image=image, reducers=listed, stored=stored))
    assert command("run", "job.yaml", "--engine", "inline") == 0, command.err
    return command


@pytest.fixture
def corpus(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Photographs, and an encoder without weights."""
    known = {**registry.all_classes(), "patch_means": PatchMeans}
    monkeypatch.setattr(registry, "all_classes", lambda: known)
    write_corpus(command.folder)
    return command


def patches(picture: np.ndarray) -> np.ndarray:
    """Return the patches [N, P, P, 3] of a picture."""
    side = picture.shape[0] // PATCH
    tiles = picture.reshape(side, PATCH, side, PATCH, 3)
    return tiles.swapaxes(1, 2).reshape(-1, PATCH, PATCH, 3)


def stored_maps(command: CommandLine) -> np.ndarray:
    from pipeline.loader import TokenDataset

    (batch,) = TokenDataset(command.folder / "out", batch_size=7, shuffle=False)
    found: np.ndarray = batch["token_map"].numpy()
    return found


def test_kept_patches_are_clear_and_dropped_ones_dark(corpus: CommandLine) -> None:
    run(corpus, "name: divprune, keep: 5")
    found = preview(str(corpus.folder / "out"), Storage(), num=2)
    assert list(found.decoded) == ["divprune"]
    assert found.notes == {"divprune": ["5 of 16 tokens"] * 2}
    for row, token_map in enumerate(stored_maps(corpus)[:2]):
        before = patches(found.originals["divprune"][row])
        after = patches(found.decoded["divprune"][row])
        assert before.shape == (16, PATCH, PATCH, 3)
        for token, place in enumerate(token_map):
            if place >= 0:
                assert np.array_equal(before[token], after[token])
            else:
                assert np.allclose(after[token], DARK * before[token].mean(axis=-1)[..., None], 1)


def test_only_the_last_reducer_of_a_chain_is_shown(corpus: CommandLine) -> None:
    merging = "metric: features"
    run(corpus, "name: divprune, keep: 12", f"name: tome, keep: 8, {merging}")
    found = preview(str(corpus.folder / "out"), Storage(), num=1)
    assert found.notes == {"tome": ["8 of 16 tokens"]}
    token_map = stored_maps(corpus)[0]
    sizes = np.bincount(token_map[token_map >= 0])
    before, after = patches(found.originals["tome"][0]), patches(found.decoded["tome"][0])
    for token, place in enumerate(token_map):
        is_clear = place >= 0 and sizes[place] == 1
        assert np.array_equal(before[token], after[token]) == is_clear


def test_views_are_drawn_each_over_its_own(corpus: CommandLine) -> None:
    run(corpus, "name: divprune, keep: 4", image=VIEWS)
    found = preview(str(corpus.folder / "out"), Storage(), num=1)
    assert found.notes == {"divprune": ["12 of 48 tokens"]}
    for view, token_map in enumerate(stored_maps(corpus)[0]):
        before = patches(found.originals["divprune"][0][view])
        after = patches(found.decoded["divprune"][0][view])
        same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
        assert same == (token_map >= 0).tolist()


def test_the_sheet_has_both_pictures(corpus: CommandLine) -> None:
    run(corpus, "name: divprune, keep: 4")
    assert corpus("preview", "out", "--num", "2") == 0, corpus.err
    assert corpus.out.splitlines() == ["wrote out/preview.png"]
    with Image.open(corpus.folder / "out/preview.png") as sheet:
        pixels = np.asarray(sheet)
    height, _, _ = pixels.shape
    bottom = height - MARGIN - TILE // 2  # in the last row
    clear, dark = (
        pixels[bottom - 100 : bottom + 80, MARGIN + column * TILE + 40 :][:, :180].mean()
        for column in range(2)
    )
    assert dark < clear / 2


def test_without_the_map_there_is_nothing_to_see(corpus: CommandLine) -> None:
    run(corpus, "name: divprune, keep: 4", stored="sizes")
    assert corpus("preview", "out") == 2
    assert "out: none of ['features', 'sizes'] comes from an operator" in corpus.err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_reducer_can_be_drawn(case: ReducerCase) -> None:
    layers, crops = case.num_layers, case.crops
    op = reducer(case.name, case.num_tokens, num_layers=layers, crops=crops, **case.options)
    out = op(batch_for(op, 1))
    token_map = np.asarray(out["token_map"])
    shape = (PATCH, case.num_tokens * PATCH, 3)  # all tokens in a row
    white = np.full((*token_map.shape[1:-1], *shape), 255, np.uint8)
    (drawing,) = op.draw({"token_map": token_map}, [white])
    assert drawing.pixels.shape == white.shape
    cut = drawing.pixels.reshape(-1, PATCH, case.num_tokens, PATCH, 3)
    is_dark = cut.max(axis=(1, 3, 4)) < 100
    assert np.array_equal(is_dark, token_map.reshape(-1, case.num_tokens) < 0)


def test_merged_tokens_have_one_colour_and_a_line_around_them() -> None:
    grey = np.full((40, 60, 3), 128, np.uint8)
    token_map = np.array([0, 0, 1, 2, -1, 1])
    drawn = draw_map(grey, token_map, np.array([2, 2, 1]))
    middles = drawn[10::20, 10::20].reshape(6, 3)
    assert np.array_equal(middles[0], middles[1])
    assert np.array_equal(middles[2], middles[5])
    assert not np.array_equal(middles[0], middles[2])
    assert (middles[3] == 128).all()
    assert (middles[4] < 40).all()
    assert np.array_equal(drawn[10, 19], drawn[10, 20])  # no line within a group
    assert not np.array_equal(drawn[10, 39], middles[1])  # one where it ends
    assert (drawn[20:, :20] == 128).all()  # none around a token that stands for itself


@pytest.mark.parametrize(
    ("tokens", "height", "width", "grid"),
    [(576, 336, 336, (24, 24)), (96, 112, 168, (8, 12)), (7, 10, 30, (1, 7)), (1, 5, 5, (1, 1))],
)
def test_the_grid_has_the_shape_of_the_picture(
    tokens: int, height: int, width: int, grid: tuple[int, int]
) -> None:
    assert grid_of(tokens, height, width) == grid
