"""crops: the papers' bytes, where views lie, random crops that depend on the key alone."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import load_file

from operators.base import Batch, FieldSpec
from operators.errors import ContractError, RowErrors
from operators.image.adm_center_crop import AdmCenterCrop, AdmCenterCropConfig
from operators.image.crops import Crops, CropsConfig
from operators.testing import assert_operator_contract

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess"
RANDOM_BOXES_SHA256 = "5fe3e21a572bf19bdc3572663e2413e56ced3d954fbe845ce6f208cccd09b348"

sides = st.integers(1, 90)


@pytest.fixture(scope="module")
def raw() -> list[Image.Image]:
    arrays = load_file(GOLDEN / "inputs.safetensors")
    return [Image.fromarray(arrays[name]) for name in sorted(arrays)]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = load_file(GOLDEN / "outputs.safetensors")
    return arrays


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def operator(**options: Any) -> Crops:
    return Crops(CropsConfig(**options))


def batch(op: Crops, *images: Image.Image, keys: str = "abcdefgh") -> Batch:
    """Return what the operator reads of these images."""
    key = pa.array(list(keys[: len(images)]), pa.large_string())
    return {"image": list(images), "key": key} if "key" in op.inputs else {"image": list(images)}


def one(op: Crops, image: Image.Image, key: str = "a") -> tuple[np.ndarray, list[list[int]]]:
    """Return views and boxes of one image."""
    found = op(batch(op, image, keys=key))
    return found["image"][0], found["crop_boxes"][0].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "center"},
        {"kind": "center", "flip": True, "resize": "adm"},
        {"kind": "ten", "resize_to": 20},
        {"kind": "ten", "resize_to": 17, "resize": "adm"},
        {"kind": "random", "count": 3, "flip": True, "seed": 5},
        {"kind": "random", "interpolation": "nearest", "scale": (0.5, 0.6), "ratio": (1.0, 1.0)},
    ],
    ids=str,
)
def test_contract(options: dict[str, Any]) -> None:
    op = operator(size=16, **options)
    given = batch(op, *(picture(*size) for size in [(20, 30), (16, 16), (9, 40), (140, 90)]))
    assert_operator_contract(op, given, rows_alone=4)
    json.dumps(dict(op.metadata()))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_centre_golden(
    raw: list[Image.Image], expected: dict[str, np.ndarray], interpolation: str
) -> None:
    found = operator(size=96, interpolation=interpolation, flip=True)({"image": raw})["image"]
    assert found.shape == (len(raw), 2, 96, 96, 3)
    for i, views in enumerate(found):
        golden = expected[f"short_{interpolation}_center_{i:02}"]
        np.testing.assert_array_equal(views[0], golden)
        np.testing.assert_array_equal(views[1], golden[:, ::-1])


def test_adm_golden(raw: list[Image.Image], expected: dict[str, np.ndarray]) -> None:
    found = operator(size=96, resize="adm")({"image": raw})["image"]
    for i, views in enumerate(found):
        np.testing.assert_array_equal(views[0], expected[f"adm_center_{i:02}"])


def test_ten_crops_of_a_golden_resize(
    raw: list[Image.Image], expected: dict[str, np.ndarray]
) -> None:
    op = operator(kind="ten", size=80, resize_to=96, interpolation="bicubic")
    for i, image in enumerate(raw):
        full = expected[f"short_bicubic_full_{i:02}"]
        np.testing.assert_array_equal(one(op, image)[0], ten_crops(full, 80))


@pytest.mark.parametrize("share", [1.1, 1.05])
def test_ten_crops_as_llamagen_extracts_them(raw: list[Image.Image], share: float) -> None:
    target = int(96 * share)
    op = operator(kind="ten", size=96, resize="adm", resize_to=target)
    squares = AdmCenterCrop(AdmCenterCropConfig(size=target))({"image": raw})["image"]
    found = op({"image": raw})["image"]
    assert found.shape == (len(raw), 10, 96, 96, 3)
    for square, views in zip(squares, found, strict=True):
        np.testing.assert_array_equal(views, ten_crops(square, 96))


def ten_crops(image: np.ndarray, size: int) -> np.ndarray:
    """As torchvision does: five of the image, five of its mirror image."""
    views = []
    for side in (image, image[:, ::-1]):
        height, width, _ = side.shape
        middle = round((height - size) / 2.0), round((width - size) / 2.0)
        corners = [(0, 0), (0, width - size), (height - size, 0), (height - size, width - size)]
        views += [side[y : y + size, x : x + size] for y, x in [*corners, middle]]
    return np.stack(views)


def test_boxes_without_a_resize_are_literal() -> None:
    views, boxes = one(operator(kind="ten", size=8, resize="none"), picture(13, 10))
    assert boxes == [
        [0, 0, 8, 8, 0],
        [5, 0, 8, 8, 0],
        [0, 2, 8, 8, 0],
        [5, 2, 8, 8, 0],
        [2, 1, 8, 8, 0],  # (13 - 8) / 2 goes to 2, which is even
        [5, 0, 8, 8, 1],
        [0, 0, 8, 8, 1],
        [5, 2, 8, 8, 1],
        [0, 2, 8, 8, 1],
        [3, 1, 8, 8, 1],  # 2 of the mirror image
    ]
    np.testing.assert_array_equal(views, ten_crops(np.asarray(picture(13, 10)), 8))


def test_boxes_are_in_pixels_of_the_image_that_was_read() -> None:
    _, boxes = one(operator(kind="ten", size=8, resize_to=10), picture(60, 40))  # to 15 x 10
    assert boxes[:5] == [
        [0, 0, 32, 32, 0],
        [28, 0, 32, 32, 0],
        [0, 8, 32, 32, 0],
        [28, 8, 32, 32, 0],
        [16, 4, 32, 32, 0],  # 4 of 15 columns in front
    ]
    _, boxes = one(operator(size=8, resize="adm", flip=True), picture(60, 40))  # 30 x 20, 15 x 10
    assert boxes == [[10, 0, 40, 40, 0], [10, 0, 40, 40, 1]]


def test_boxes_of_a_strip_one_pixel_wide() -> None:
    _, boxes = one(operator(kind="ten", size=8, resize_to=20), picture(1, 30))
    assert {tuple(box[::2]) for box in boxes} <= {(0, 1, 0), (0, 1, 1)}


@settings(max_examples=60, deadline=None)
@given(width=sides, height=sides, size=st.integers(1, 24), data=st.data())
def test_boxes_lie_inside_and_mirrored_views_are_mirrors(
    width: int, height: int, size: int, data: st.DataObject
) -> None:
    target = size + data.draw(st.integers(0, 9))
    options: dict[str, Any] = data.draw(
        st.sampled_from(
            [
                {"kind": "center", "resize_to": target, "flip": True},
                {"kind": "ten", "resize_to": target},
                {"kind": "ten", "resize_to": target, "resize": "adm"},
                {"kind": "random", "count": 4, "flip": True},
            ]
        )
    )
    views, boxes = one(operator(size=size, **options), picture(width, height))
    for left, top, w, h, mirrored in boxes:
        assert 0 <= left < left + w <= width
        assert 0 <= top < top + h <= height
        assert mirrored in (0, 1)
    if options["kind"] == "center":
        np.testing.assert_array_equal(views[1], views[0][:, ::-1])
    if options["kind"] == "ten":
        np.testing.assert_array_equal(views[[6, 5, 8, 7]], views[:4, :, ::-1])
    plain = one(operator(size=size, **{**options, "flip": False}), picture(width, height))[0]
    for view, straight, box in zip(views, plain, boxes, strict=False):
        if options["kind"] == "random":
            np.testing.assert_array_equal(view, straight[:, ::-1] if box[4] else straight)


@settings(max_examples=30, deadline=None)
@given(
    num=st.integers(1, 5),
    count=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    order=st.randoms(use_true_random=False),
)
def test_random_crops_depend_on_seed_and_key_alone(
    num: int, count: int, seed: int, order: Any
) -> None:
    op = operator(kind="random", size=8, count=count, seed=seed, flip=True)
    images = [picture(30 + i, 20, i) for i in range(num)]
    rows = list(range(num))
    order.shuffle(rows)
    given = {
        "image": [images[row] for row in rows],
        "key": pa.array([f"k{row}" for row in rows], pa.large_string()),
    }
    found = op(given)
    for place, row in enumerate(rows):
        alone = op({"image": [images[row]], "key": pa.array([f"k{row}"], pa.large_string())})
        for name in ("image", "crop_boxes"):
            np.testing.assert_array_equal(found[name][place], alone[name][0])


def test_another_seed_or_key_gives_other_crops() -> None:
    image = picture(300, 200)
    seen = [
        one(operator(kind="random", size=4, seed=seed), image, key)[1]
        for seed in (0, 1)
        for key in "ab"
    ]
    assert len({str(boxes) for boxes in seen}) == 4


def test_more_views_and_flips_move_no_crop() -> None:
    image = picture(300, 200)
    few = one(operator(kind="random", size=4, count=2), image)[1]
    many = one(operator(kind="random", size=4, count=9, flip=True), image)[1]
    assert [box[:4] for box in many[:2]] == [box[:4] for box in few]
    assert [box[4] for box in few] == [0, 0]
    assert {box[4] for box in many} == {0, 1}


def test_random_boxes_are_frozen() -> None:
    """Published shards hold these boxes: a new digest needs a new ``version`` of the operator."""
    op = operator(kind="random", size=4, count=50, flip=True, seed=7)
    boxes = op(batch(op, picture(500, 375), picture(375, 500), picture(60, 900)))["crop_boxes"]
    assert hashlib.sha256(boxes.astype("<i4").tobytes()).hexdigest() == RANDOM_BOXES_SHA256


def test_random_boxes_keep_to_scale_and_ratio() -> None:
    op = operator(kind="random", size=4, count=1000, scale=(0.2, 0.5), ratio=(0.5, 2.0))
    boxes = np.array(one(op, picture(400, 400))[1], float)
    share = boxes[:, 2] * boxes[:, 3] / 400**2
    ratio = np.log2(boxes[:, 2] / boxes[:, 3])
    assert share.min() > 0.198
    assert share.max() < 0.503
    assert ratio.min() > -1.03
    assert ratio.max() < 1.03
    assert abs(share.mean() - 0.35) < 0.02  # uniform
    assert abs(ratio.mean()) < 0.06
    room = 400 - boxes[:, 2:4]
    assert abs((boxes[:, :2] / room).mean() - 0.5) < 0.03


def test_random_pixels_are_cut_out_before_they_are_resized() -> None:
    image = picture(50, 40)
    views, boxes = one(operator(kind="random", size=16, count=3, interpolation="bicubic"), image)
    for view, (left, top, width, height, _) in zip(views, boxes, strict=True):
        cut = image.crop((left, top, left + width, top + height))
        resized = cut.resize((16, 16), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(view, np.asarray(resized))


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1, 90), [0, 44, 1, 1, 0]),  # tall: 1 / (3 / 4) rounds to 1
        ((90, 4), [42, 0, 5, 4, 0]),  # wide: 4 * 4 / 3 rounds to 5
        ((4, 90), [0, 42, 4, 5, 0]),
    ],
)
def test_strips_fall_back_to_the_largest_central_crop(
    size: tuple[int, int], box: list[int]
) -> None:
    whole = operator(kind="random", size=4, scale=(1.0, 1.0))
    assert one(whole, picture(*size))[1] == [box]


def test_given_boxes_cut_a_second_picture_the_same_way() -> None:
    photo, depth = picture(50, 40), picture(50, 40, seed=1)
    drawn = operator(kind="random", size=16, count=5, flip=True)
    boxes = drawn(batch(drawn, photo))["crop_boxes"]
    op = operator(kind="boxes", size=16)
    op.bind({"crop_boxes": FieldSpec("int32", (5, 5)), "image": FieldSpec("pillow")})
    assert op.outputs == {"image": FieldSpec("uint8", (5, 16, 16, 3))}
    found = assert_operator_contract(op, {"image": [depth], "crop_boxes": boxes})
    np.testing.assert_array_equal(found["image"], drawn(batch(drawn, depth))["image"])


@pytest.mark.parametrize(
    "wrong",
    [[-1, 0, 5, 5, 0], [0, 0, 0, 5, 0], [0, 6, 5, 5, 0], [6, 0, 5, 5, 0], [0, 0, 5, 5, 2]],
    ids=str,
)
def test_boxes_of_another_picture_are_bad_rows(wrong: list[int]) -> None:
    op = operator(kind="boxes", size=4)
    op.bind({"crop_boxes": FieldSpec("int32", (1, 5))})
    boxes = np.array([[[0, 0, 10, 10, 1]], [wrong]], np.int32)
    with pytest.raises(RowErrors) as caught:
        op({"image": [picture(10, 10)] * 2, "crop_boxes": boxes})
    assert f"box {wrong} does not lie in the image of 10 x 10" in str(caught.value.errors[1])
    assert caught.value.good["image"].shape == (1, 1, 4, 4, 3)


def test_boxes_of_varying_number_are_refused() -> None:
    with pytest.raises(ContractError, match=r"crop_boxes are int32\[\*, 5\], expected a fixed"):
        operator(kind="boxes").bind({"crop_boxes": FieldSpec("int32", (None, 5))})


def test_images_that_are_too_small_are_bad_rows() -> None:
    op = operator(size=16, resize="none", flip=True)
    fine = picture(16, 20)
    with pytest.raises(RowErrors) as caught:
        op({"image": [picture(15, 40), fine]})
    assert "15 x 40, expected at least 16 x 16 with `resize: none`" in str(caught.value.errors[0])
    good = caught.value.good
    np.testing.assert_array_equal(good["image"], op({"image": [fine]})["image"])
    assert good["crop_boxes"].tolist() == [[[0, 2, 16, 16, 0], [0, 2, 16, 16, 1]]]


@pytest.mark.parametrize("resize", ["shorter", "adm"])
def test_strips_that_would_become_gigapixels_are_bad_rows(resize: str) -> None:
    with pytest.raises(RowErrors) as caught:
        operator(resize=resize)({"image": [picture(1, 60_000)]})
    assert "1 x 60000 would become 256 x 15360000" in str(caught.value.errors[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"count": 3}, "count=3 is for kind random; remove it"),
        ({"kind": "ten", "flip": True}, "flip=True is for kind center or random; remove it"),
        ({"seed": 1}, "seed=1 is for kind random"),
        ({"kind": "random", "resize": "adm"}, "resize='adm' is for kind center or ten"),
        ({"kind": "boxes", "max_pixels": 9}, "max_pixels=9 is for kind center or ten"),
        ({"kind": "ten", "resize_to": 255}, "resize_to=255 is less than size=256"),
        ({"resize": "none", "resize_to": 300}, "resize_to=300 needs `resize: shorter` or `adm`"),
        (
            {"resize": "adm", "interpolation": "lanczos"},
            "interpolation='lanczos' does nothing with `resize: adm`",
        ),
        ({"kind": "random", "scale": (0.5, 0.2)}, "scale: 0.5 to 0.2 is no range"),
        ({"kind": "random", "ratio": (2, 1)}, "ratio: 2 to 1 is no range"),
    ],
    ids=str,
)
def test_options_that_do_nothing_or_contradict(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        operator(**options)
    assert says in str(caught.value)
