"""resize: the bytes of the papers' preprocessing, and sizes rounded as theirs."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from operators.errors import RowErrors
from operators.image.resize import Resize, ResizeConfig
from operators.testing import assert_operator_contract

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess"


@pytest.fixture(scope="module")
def raw() -> list[Image.Image]:
    arrays = load_file(GOLDEN / "inputs.safetensors")
    return [Image.fromarray(arrays[name]) for name in sorted(arrays)]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = load_file(GOLDEN / "outputs.safetensors")
    return arrays


def images(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def resized(config: ResizeConfig, given_images: list[Image.Image]) -> list[Image.Image]:
    found: list[Image.Image] = Resize(config)({"image": given_images})["image"]
    return found


@pytest.mark.parametrize("mode", ["shorter", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_contract(mode: str, interpolation: str) -> None:
    config = ResizeConfig(size=16, mode=mode, interpolation=interpolation)
    batch = {"image": images((20, 30), (16, 40), (9, 7), (16, 16))}
    assert_operator_contract(Resize(config), batch)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_squash_golden(
    raw: list[Image.Image], expected: dict[str, np.ndarray], interpolation: str
) -> None:
    config = ResizeConfig(size=96, mode="squash", interpolation=interpolation)
    for i, image in enumerate(resized(config, raw)):
        np.testing.assert_array_equal(np.asarray(image), expected[f"squash_{interpolation}_{i:02}"])


def test_shorter_golden(raw: list[Image.Image], expected: dict[str, np.ndarray]) -> None:
    for i, image in enumerate(resized(ResizeConfig(size=96, interpolation="bicubic"), raw)):
        np.testing.assert_array_equal(np.asarray(image), expected[f"short_bicubic_full_{i:02}"])


def test_lanczos_is_pillows() -> None:
    (image,) = images((50, 40))
    (found,) = resized(ResizeConfig(size=20, interpolation="lanczos"), [image])
    assert found.tobytes() == image.resize((25, 20), Image.Resampling.LANCZOS).tobytes()


@pytest.mark.parametrize(
    ("given_size", "found_size"),
    [
        ((500, 375), (341, 256)),  # 341.33
        ((375, 500), (256, 341)),
        ((640, 427), (383, 256)),  # 383.7 is rounded down
        ((300, 300), (256, 256)),
        ((10, 1), (2560, 256)),
    ],
)
def test_longer_side_is_rounded_down(
    given_size: tuple[int, int], found_size: tuple[int, int]
) -> None:
    (found,) = resized(ResizeConfig(size=256), images(given_size))
    assert found.size == found_size


def test_fitting_image_is_passed_on_untouched() -> None:
    (image,) = images((16, 33))
    (found,) = resized(ResizeConfig(size=16), [image])
    assert found is image


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 64))
def test_shorter_side_is_always_the_size(width: int, height: int, size: int) -> None:
    (found,) = resized(ResizeConfig(size=size), [Image.new("RGB", (width, height))])
    assert min(found.size) == size
    assert (width > height) <= (found.width >= found.height)
    assert max(found.size) == size * max(width, height) // min(width, height)


def test_strip_that_would_become_gigapixels_is_refused() -> None:
    strip = Image.new("RGB", (60_000, 1))
    fine = Image.new("RGB", (30, 20))
    with pytest.raises(RowErrors) as caught:
        Resize(ResizeConfig(size=256))({"image": [fine, strip, fine]})
    assert [image.size for image in caught.value.good["image"]] == [(384, 256)] * 2
    assert str(caught.value.errors[1]) == (
        "resize: 60000 x 1 would become 15360000 x 256, 3,932,160,000 pixels, "
        "expected at most 100,000,000"
    )


def test_max_pixels_can_be_lowered() -> None:
    batch = {"image": [Image.new("RGB", (30, 20))]}
    assert Resize(ResizeConfig(size=10, max_pixels=150))(batch)["image"][0].size == (15, 10)
    with pytest.raises(RowErrors):
        Resize(ResizeConfig(size=10, max_pixels=149))(batch)
