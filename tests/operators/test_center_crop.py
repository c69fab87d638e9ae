"""center_crop and adm_center_crop: the bytes of the papers' preprocessing."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from operators.errors import RowErrors
from operators.image.adm_center_crop import AdmCenterCrop, AdmCenterCropConfig
from operators.image.center_crop import CenterCrop, CenterCropConfig
from operators.image.decode_image import DecodeImage, DecodeImageConfig
from operators.image.resize import Resize, ResizeConfig
from operators.testing import assert_operator_contract

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess"


@pytest.fixture(scope="module")
def raw() -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = load_file(GOLDEN / "inputs.safetensors")
    return arrays


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = load_file(GOLDEN / "outputs.safetensors")
    return arrays


def images(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def cropped(size: int, image: Image.Image) -> np.ndarray:
    found: np.ndarray = CenterCrop(CenterCropConfig(size=size))({"image": [image]})["image"][0]
    return found


def test_center_crop_contract() -> None:
    batch = {"image": images((20, 30), (16, 16), (9, 40), (40, 9), (3, 5))}
    assert_operator_contract(CenterCrop(CenterCropConfig(size=16)), batch, rows_alone=5)


def test_adm_contract() -> None:
    batch = {"image": images((20, 30), (16, 16), (9, 40), (140, 90), (33, 32))}
    assert_operator_contract(AdmCenterCrop(AdmCenterCropConfig(size=16)), batch, rows_alone=5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_and_crop_golden(
    raw: dict[str, np.ndarray], expected: dict[str, np.ndarray], interpolation: str
) -> None:
    batch = {"image": [Image.fromarray(raw[name]) for name in sorted(raw)]}
    resize = Resize(ResizeConfig(size=96, interpolation=interpolation))
    found = CenterCrop(CenterCropConfig(size=96))(resize(batch))["image"]
    for i, image in enumerate(found):
        np.testing.assert_array_equal(image, expected[f"short_{interpolation}_center_{i:02}"])


def test_adm_golden(raw: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    batch = {"image": [Image.fromarray(raw[name]) for name in sorted(raw)]}
    found = AdmCenterCrop(AdmCenterCropConfig(size=96))(batch)["image"]
    for i, image in enumerate(found):
        np.testing.assert_array_equal(image, expected[f"adm_center_{i:02}"])


def test_padding_golden(raw: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    found = cropped(96, Image.fromarray(raw["raw_02"][:60, :200]))
    np.testing.assert_array_equal(found, expected["centercrop_pad_small"])


@pytest.mark.parametrize(
    ("side", "first"),
    [(8, 0), (9, 0), (10, 1), (11, 2), (12, 2), (13, 2), (14, 3), (15, 4)],  # 0.5 2.5 go to even
)
def test_odd_remainders_round_half_to_even(side: int, first: int) -> None:
    (image,) = images((side, 8))
    np.testing.assert_array_equal(cropped(8, image), np.asarray(image)[:, first : first + 8])


def test_odd_padding_puts_the_smaller_half_in_front() -> None:
    found = cropped(6, Image.new("RGB", (3, 1), (7, 7, 7)))
    assert np.argwhere(found[..., 0]).tolist() == [[2, 1], [2, 2], [2, 3]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_padding_then_cropping_is_one_crop(width: int, height: int, size: int) -> None:
    """The definition in two steps: pad what is too small, then cut what is too large."""
    (image,) = images((width, height))
    x, y = max(size - width, 0), max(size - height, 0)
    padded = np.pad(np.asarray(image), ((y // 2, (y + 1) // 2), (x // 2, (x + 1) // 2), (0, 0)))
    top, left = (round((side - size) / 2.0) for side in padded.shape[:2])
    np.testing.assert_array_equal(
        cropped(size, image), padded[top : top + size, left : left + size]
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 24))
def test_adm_fills_the_square(width: int, height: int, size: int) -> None:
    """White stays white: nothing outside the image is ever in the crop."""
    op = AdmCenterCrop(AdmCenterCropConfig(size=size))
    found = op({"image": [Image.new("RGB", (width, height), (255, 255, 255))]})["image"]
    assert found.shape == (1, size, size, 3)
    assert found.min() == 255


def test_adm_refuses_a_strip_that_would_become_gigapixels() -> None:
    fine, strip = images((30, 20), (1, 60_000))
    op = AdmCenterCrop(AdmCenterCropConfig(size=256))
    with pytest.raises(RowErrors) as caught:
        op({"image": [strip, fine]})
    assert "1 x 60000 would become 256 x 15360000" in str(caught.value.errors[0])
    good = caught.value.good["image"]
    np.testing.assert_array_equal(good, op({"image": [fine]})["image"])


def test_chain_equals_a_plain_pillow_loop(raw: dict[str, np.ndarray]) -> None:
    files = []
    for name in sorted(raw):
        file = io.BytesIO()
        Image.fromarray(raw[name]).save(file, "JPEG", quality=92)
        files.append(file.getvalue())
    batch = DecodeImage(DecodeImageConfig())({"image_bytes": pa.array(files, pa.large_binary())})
    batch = Resize(ResizeConfig(size=256))(batch)
    found = CenterCrop(CenterCropConfig(size=256))(batch)["image"]

    for i, data in enumerate(files):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        short = min(image.size)
        size = (int(256 * image.width / short), int(256 * image.height / short))
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = round((image.width - 256) / 2.0), round((image.height - 256) / 2.0)
        image = image.crop((left, top, left + 256, top + 256))
        np.testing.assert_array_equal(found[i], np.asarray(image))
