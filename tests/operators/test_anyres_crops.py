"""anyres_crops: bytes, grids and padding against transformers' LLaVA-NeXT."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.modeling_llava_next import unpad_image

from operators import registry
from operators.base import Batch
from operators.errors import RowErrors
from operators.image.anyres import best_grid, kept_tokens
from operators.image.anyres_crops import AnyResCrops, AnyResCropsConfig
from operators.testing import assert_operator_contract

SIDE = 16
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
SIZES = [(16, 16), (40, 40), (100, 30), (30, 100), (33, 47), (1, 60), (60, 1), (97, 31), (17, 16)]


def photo(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def cut(*images: Image.Image, **options: object) -> Batch:
    config = AnyResCropsConfig.model_validate({"size": SIDE, **options})
    step = registry.build(config)
    assert isinstance(step, AnyResCrops)
    return step({"image": list(images)})


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crops_are_those_of_the_image_processor(size: tuple[int, int]) -> None:
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=[[rows * SIDE, columns * SIDE] for rows, columns in GRIDS],
        do_rescale=False,
        do_normalize=False,
    )
    image = photo(*size)
    wanted = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    found = cut(image)
    assert np.array_equal(found["image"].values, wanted.transpose(0, 2, 3, 1))
    rows, columns, height, width = found["crop_grid"][0]
    assert (width, height) == size
    assert found["image"].lengths.tolist() == [rows * columns + 1]


sides = st.integers(1, 3000)


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, side=st.sampled_from([14, 336, 384]))
def test_the_grid_is_the_best_resolution(height: int, width: int, side: int) -> None:
    resolutions = [(rows * side, columns * side) for rows, columns in GRIDS]
    wanted = select_best_resolution((height, width), resolutions)
    rows, columns = best_grid((height, width), GRIDS, side)
    assert (rows * side, columns * side) == wanted


@settings(max_examples=200, deadline=None)
@given(
    image=st.tuples(sides, sides), grid=st.sampled_from(GRIDS), tokens=st.sampled_from([4, 5, 24])
)
def test_tokens_that_count_are_those_that_unpadding_leaves(
    image: tuple[int, int], grid: tuple[int, int], tokens: int
) -> None:
    """Number the tokens, lay the crops out, and unpad as transformers does."""
    rows, columns = grid[0] * tokens, grid[1] * tokens
    numbers = torch.arange(grid[0] * grid[1] * tokens**2)
    laid_out = numbers.reshape(*grid, tokens, tokens).permute(0, 2, 1, 3).reshape(1, rows, columns)
    wanted = unpad_image(laid_out, image).flatten().tolist()
    kept = kept_tokens(image, grid, (tokens, tokens))
    assert kept[0].all()
    assert np.flatnonzero(kept[1:].ravel()).tolist() == sorted(wanted)


def test_the_contract_holds() -> None:
    step = registry.build(AnyResCropsConfig(size=SIDE, grids=((1, 1), (2, 3))))
    assert isinstance(step, AnyResCrops)
    assert_operator_contract(step, {"image": [photo(*size) for size in SIZES]})


def test_no_images_give_no_crops() -> None:
    found = cut()
    assert found["image"].values.shape == (0, SIDE, SIDE, 3)
    assert found["crop_grid"].shape == (0, 4)


def test_too_many_pixels_are_refused_by_row() -> None:
    with pytest.raises(RowErrors) as found:
        cut(photo(16, 16), photo(60, 20), max_pixels=2 * SIDE * SIDE)
    assert list(found.value.errors) == [1]
    assert "expected at most 512" in str(found.value.errors[1])
    assert found.value.good["image"].lengths.tolist() == [3]
