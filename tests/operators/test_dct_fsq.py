"""dct_fsq: the contract, frozen ids, exact sums, and what the tokens give back."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from operators.base import Invertible
from operators.errors import ContractError
from operators.image_tokenizers.dct_fsq import LEVELS, DctFsq, DctFsqConfig
from operators.image_tokenizers.quantize.mixed_radix import codebook_size, join_digits, split_ids
from operators.testing import assert_operator_contract

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess" / "inputs.safetensors"
IDS_SHA256 = "9770d23b1d9022f95cb81eec29b0abeb71620fa34c8a46471e0f367b1ecd9bbc"
PIXELS_SHA256 = "9bb38b6b6f2c84b8d8afa36969adf68394ad5ca6f95bb90d1f5b7901fa4332c3"


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """A photo, waves and ellipses: uint8 [3, 256, 256, 3]; raw_02 is too small."""
    arrays = load_file(GOLDEN)
    return np.stack([arrays[f"raw_{i:02}"][:256, :256] for i in (0, 1, 3)])


def noise(num: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3), dtype=np.uint8)


def constant(side: int, *colour: int) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (1, side, side, 3)).copy()


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


@settings(max_examples=20, deadline=None)
@given(
    num=st.integers(1, 5),
    patch=st.sampled_from([4, 7, 8, 16]),
    grid=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_contract_holds_for_any_batch(num: int, patch: int, grid: int, seed: int) -> None:
    op = DctFsq(DctFsqConfig(side=patch * grid, patch=patch))
    assert_operator_contract(op, {"image": noise(num, patch * grid, seed)})


def test_contract_on_pictures(pictures: np.ndarray) -> None:
    op = DctFsq(DctFsqConfig())
    assert isinstance(op, Invertible)
    assert_operator_contract(op, {"image": pictures})


def test_ids_are_frozen(pictures: np.ndarray) -> None:
    """Published shards hold these ids: a new digest needs a new ``version`` of the operator."""
    op = DctFsq(DctFsqConfig())
    tokens = op({"image": pictures})["tokens"]
    assert digest(tokens.astype("<u2")) == IDS_SHA256
    assert digest(op.decode({"tokens": tokens})["image"]) == PIXELS_SHA256


@pytest.mark.parametrize("patch", [4, 5, 16, 64])
def test_sums_are_exact(patch: int) -> None:
    """The definition in Python's integers; 0 and 255 alone give the largest sums."""
    side = 2 * patch
    images = np.where(noise(4, side) > 127, 255, 0).astype(np.uint8)
    images[0] = 255
    op = DctFsq(DctFsqConfig(side=side, patch=patch))
    found = op({"image": images})["tokens"]

    weights = [(19595, 38470, 7471), (-11058, -21710, 32768), (32768, -27439, -5329)]
    tiles = images.reshape(4, 2, patch, 2, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    y, cb, cr = (
        (tiles.astype(object) * np.array(row, object)).sum(-1).reshape(16, patch, patch)
        for row in weights
    )
    x = np.arange(patch)
    wave = np.round(256 * np.cos((2 * x + 1) * np.pi / (2 * patch))).astype(int).astype(object)
    sums = np.stack(
        [
            y.sum((1, 2)),
            (y * wave).sum((1, 2)),
            (y * wave[:, None]).sum((1, 2)),
            cb.sum((1, 2)),
            cr.sum((1, 2)),
            (y * wave * wave[:, None]).sum((1, 2)),
        ]
    )
    digits = [
        [sum(int(value) >= bound for bound in bounds) for value in row]
        for row, bounds in zip(sums, op._bounds, strict=True)
    ]
    expected = join_digits(np.array(digits).T, LEVELS)
    np.testing.assert_array_equal(found.ravel(), expected)


def test_digits_follow_the_orthonormal_dct(pictures: np.ndarray) -> None:
    """Integer cosines move a coefficient by too little to move more than a few digits."""
    tokens = DctFsq(DctFsqConfig())({"image": pictures})["tokens"].ravel()
    tiles = (
        pictures.reshape(3, 16, 16, 16, 16, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, 16, 3)
    )
    luma = tiles @ [0.299, 0.587, 0.114]
    k, x = np.arange(2)[:, None], np.arange(16)
    basis = np.sqrt([[1], [2]]) / 4 * np.cos((2 * x + 1) * k * np.pi / 32)  # orthonormal rows
    coefficients = np.einsum("tyx,ky,lx->tkl", luma, basis, basis) / 16  # in grey levels
    slopes = np.array([-60, -38, -19, -7, 0, 7, 19, 38])
    nearest = np.abs(coefficients[:, 0, 1, None] - slopes).argmin(-1)
    agree = nearest == split_ids(tokens, LEVELS)[:, 1]
    assert agree.mean() > 0.99


@pytest.mark.parametrize("grey", [12, 45, 78, 111, 144, 177, 210, 243])
def test_grey_of_a_level_comes_back_exactly(grey: int) -> None:
    op = DctFsq(DctFsqConfig(side=32))
    image = constant(32, grey, grey, grey)
    np.testing.assert_array_equal(op.decode(op({"image": image}))["image"], image)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_constant_image_is_one_token_and_flat(colour: tuple[int, int, int]) -> None:
    op = DctFsq(DctFsqConfig(side=32))
    tokens = op({"image": constant(32, *colour)})
    digits = split_ids(tokens["tokens"], LEVELS)
    assert np.unique(tokens["tokens"]).size == 1
    assert digits[0, 0, [1, 2, 5]].tolist() == [4, 4, 2]
    found = op.decode(tokens)["image"]
    assert (found == found[:, :1, :1]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, codebook_size(LEVELS) - 1), min_size=4, max_size=4))
def test_any_id_decodes_and_encodes_to_ids(ids: list[int]) -> None:
    op = DctFsq(DctFsqConfig(side=32))
    image = op.decode({"tokens": np.array([ids], np.uint16)})["image"]
    assert_operator_contract(op, {"image": image})


def test_middle_tokens_survive_a_round_trip() -> None:
    """Where no pixel is clipped, what a token shows is that token again."""
    op = DctFsq(DctFsqConfig(side=256))
    middle = [[3, 4], [3, 4, 5], [3, 4, 5], [1, 2, 3], [1, 2, 3], [1, 2, 3]]
    digits = np.stack(np.meshgrid(*middle, indexing="ij"), axis=-1).reshape(-1, 6)
    ids = np.resize(join_digits(digits, LEVELS), (2, 256)).astype(np.uint16)
    np.testing.assert_array_equal(op(op.decode({"tokens": ids}))["tokens"], ids)


def test_photo_comes_back_recognisable(pictures: np.ndarray) -> None:
    """256 tokens of 16 bits; the photo's mean colour alone gives 11.1 dB."""
    op = DctFsq(DctFsqConfig())
    photo = pictures[:1]
    found = op.decode(op({"image": photo}))["image"]
    mse = ((photo.astype(float) - found) ** 2).mean()
    assert 10 * np.log10(255**2 / mse) > 19.0


def test_mirrored_patches_differ_in_their_slope_digit() -> None:
    """Row-major order and the sign of a slope, literally."""
    ramp = np.linspace(40, 200, 16).astype(np.uint8)
    image = np.full((1, 32, 32, 3), 111, np.uint8)
    image[0, :16, 16:] = ramp[None, :, None]  # token 1: brighter to the right
    image[0, 16:, :16] = ramp[::-1, None, None]  # token 2: brighter to the top
    digits = split_ids(DctFsq(DctFsqConfig(side=32))({"image": image})["tokens"], LEVELS)[0]
    assert digits[:, 1].tolist() == [4, 1, 4, 4]
    assert digits[:, 2].tolist() == [4, 4, 7, 4]


def test_indivisible_patch_names_the_ones_that_fit() -> None:
    with pytest.raises(
        ContractError, match=r"patch=10 does not divide side=24.*\[4, 6, 8, 12, 24\]"
    ):
        DctFsq(DctFsqConfig(side=24, patch=10))


def test_metadata_describes_the_tokens() -> None:
    op = DctFsq(DctFsqConfig(side=128, patch=16))
    assert op.metadata() == {
        "layout": {
            "positions": 64,
            "streams": ["id"],
            "codebook_sizes": [64_000],
            "nested": False,
            "grid": [8, 8],
        },
        "codebook_levels": [8, 8, 8, 5, 5, 5],
    }
    assert op.outputs["tokens"].vocab_size == 64_000
