"""The quadtree: a recursion over squares, both measures, and what is refused."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from operators.base import FieldSpec
from operators.errors import ContractError
from tests.reducer_cases import reducer

Measure = Callable[[list[int]], float]


def squares(side: int, largest: int, measure: Measure, threshold: float) -> list[list[int]]:
    """Tokens of each square, squares by their first token."""

    def divide(top: int, left: int, size: int) -> list[list[int]]:
        members = [(top + y) * side + left + x for y in range(size) for x in range(size)]
        if size == 1 or measure(members) <= threshold:
            return [members]
        half = size // 2
        return [
            square
            for y in (top, top + half)
            for x in (left, left + half)
            for square in divide(y, x, half)
        ]

    tops = range(0, side, largest)
    return sorted(square for y in tops for x in tops for square in divide(y, x, largest))


def blocky(seed: int, side: int, channels: int) -> np.ndarray:
    """Features with plain regions and lively ones."""
    random = np.random.default_rng(seed)
    x = np.repeat(np.repeat(random.normal(size=(side // 4, side // 4, channels)), 4, 0), 4, 1)
    x[: side // 2] += random.normal(size=(side // 2, side, channels)) * 0.6
    return x.reshape(side * side, channels).astype(np.float32)


def check(out: dict[str, object], features: np.ndarray, wanted: list[list[list[int]]]) -> None:
    for image, members in enumerate(wanted):
        token_map = np.asarray(out["token_map"][image])  # type: ignore[index]
        for row, square in enumerate(members):
            assert np.flatnonzero(token_map == row).tolist() == sorted(square)
        rows = [features[image][square].mean(axis=0) for square in members]
        np.testing.assert_allclose(out["features"][image], rows, rtol=1e-4, atol=1e-5)  # type: ignore[index]
        assert out["sizes"][image].tolist() == [len(s) for s in members]  # type: ignore[index]


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.5, 9.0])
def test_variance_of_features(threshold: float) -> None:
    features = np.stack([blocky(seed, 8, 3) for seed in range(4)])
    op = reducer("quadtree_tokens", 64, channels=3, largest=4, threshold=threshold)
    wanted = []
    for x in features.astype(np.float64):
        total = x.var(axis=0).sum()
        wanted.append(squares(8, 4, lambda at: x[at].var(axis=0).sum() / total, threshold))  # noqa: B023 - called at once
    check(dict(op({"features": torch.from_numpy(features)})), features, wanted)
    counts = {len(members) for members in wanted}
    assert counts == {0.05: {34}, 9.0: {4}}.get(threshold, counts)


def test_entropy_of_pixels() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    image[:, :8] = image[:, :1, :1] // 2
    image[:, :4, 8:] = random.integers(0, 256, (2, 4, 8, 1), dtype=np.uint8)
    features = random.normal(size=(2, 64, 8)).astype(np.float32)
    op = reducer(
        "quadtree_tokens",
        64,
        largest=8,
        split_by="entropy",
        threshold=2.5,
        bins=16,
        extra={"image": FieldSpec("uint8", (16, 16, 3))},
    )
    wanted = []
    for picture in image:
        grey = picture.astype(int) @ [299, 587, 114] // 1000 * 16 // 256
        patches = grey.reshape(8, 2, 8, 2).swapaxes(1, 2).reshape(64, 4)

        def entropy(at: list[int], patches: np.ndarray = patches) -> float:
            shares = np.bincount(patches[at].reshape(-1)) / (len(at) * 4)
            return float(-sum(p * np.log2(p) for p in shares if p))

        wanted.append(squares(8, 8, entropy, 2.5))
    batch = {"features": torch.from_numpy(features), "image": torch.from_numpy(image)}
    check(dict(op(batch)), features, wanted)
    assert all(4 < len(members) < 64 for members in wanted)


def test_mistakes() -> None:
    with pytest.raises(ContractError, match="largest=8 does not divide 12 x 12") as caught:
        reducer("quadtree_tokens", 144)
    assert caught.value.hint == "set largest to 2..4"
    with pytest.raises(ContractError, match="no square of 8 x 8 equal patches"):
        reducer(
            "quadtree_tokens",
            64,
            split_by="entropy",
            extra={"image": FieldSpec("uint8", (20, 20, 3))},
        )
    with pytest.raises(ValidationError, match="no power of two"):
        reducer("quadtree_tokens", 64, largest=6)
    with pytest.raises(ValidationError, match="bins=9 is for split_by: entropy"):
        reducer("quadtree_tokens", 64, bins=9)
