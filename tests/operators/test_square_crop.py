"""square_crop: the centre is kept, and nothing else."""

import numpy as np
import pytest
from PIL import Image

from operators.image.square_crop import SquareCrop, SquareCropConfig
from operators.testing import assert_operator_contract


def cropped(pixels: np.ndarray) -> np.ndarray:
    op = SquareCrop(SquareCropConfig())
    return np.asarray(op({"image": [Image.fromarray(pixels)]})["image"][0])


def test_contract() -> None:
    rng = np.random.default_rng(0)
    sizes = [(5, 9), (9, 5), (4, 4), (1, 7)]
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    out = assert_operator_contract(SquareCrop(SquareCropConfig()), {"image": images})
    assert [image.size for image in out["image"]] == [(5, 5), (5, 5), (4, 4), (1, 1)]


@pytest.mark.parametrize(("longer", "first"), [(4, 0), (5, 0), (6, 1), (7, 1), (8, 2)])
def test_an_odd_pixel_is_cut_from_the_end(longer: int, first: int) -> None:
    pixels = np.arange(4 * longer * 3, dtype=np.uint8).reshape(4, longer, 3)
    expected = pixels[:, first : first + 4]
    assert np.array_equal(cropped(pixels), expected)
    assert np.array_equal(cropped(pixels.transpose(1, 0, 2)), expected.transpose(1, 0, 2))
