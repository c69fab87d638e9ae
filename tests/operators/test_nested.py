"""Nested tokenizers: how many tokens are kept, by a number, a caption, or an error."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import FieldSpec, Ragged
from operators.columns import take
from operators.errors import ContractError, RowErrors
from operators.testing import assert_operator_contract
from tests.nested_toy import SIDE, TOKENS, ToyNested, ToyNestedConfig

CAPTIONS = ["", "one", "two  words", " a\tb\nc ", "five words are said here", "x " * 40]


def images(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, SIDE, SIDE, 3), dtype=np.uint8)


def operator(num_tokens: Any = None) -> ToyNested:
    op = ToyNested(ToyNestedConfig(num_tokens=num_tokens))
    op.setup("cpu")
    return op


def all_tokens(pixels: np.ndarray) -> np.ndarray:
    found: np.ndarray = operator()({"image": torch.from_numpy(pixels)})["tokens"].numpy()
    return found


def errors(pixels: np.ndarray, count: int, measure: str) -> np.ndarray:
    """The definition, from what ``decode_tokens`` draws: float64 [B]."""
    drawn = operator().decode_tokens(torch.from_numpy(all_tokens(pixels)[:, :count]).long())
    decoded = np.clip(drawn.double().numpy() / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)
    difference = decoded - pixels / 255
    size = difference**2 if measure == "mse" else np.abs(difference)
    mean: np.ndarray = size.mean(axis=(1, 2, 3))
    return mean


@pytest.mark.parametrize(("asked", "kept"), [(None, TOKENS), (1, 1), (5, 5), (TOKENS, TOKENS)])
def test_a_number_keeps_a_prefix(asked: int | None, kept: int) -> None:
    op = operator(asked)
    found = assert_operator_contract(op, {"image": images(6)})["tokens"]
    np.testing.assert_array_equal(found, all_tokens(images(6))[:, :kept])
    assert op.outputs == {"tokens": FieldSpec("uint8", (kept,), 25)}
    metadata: Any = op.metadata()
    assert metadata["layout"]["positions"] == kept
    assert metadata["layout"]["nested"] is True
    assert metadata["model_positions"] == TOKENS
    assert op.decode({"tokens": found})["image"].shape == (6, SIDE, SIDE, 3)


def test_a_number_keeps_a_prefix_of_every_view() -> None:
    views = images(6).reshape(2, 3, SIDE, SIDE, 3)
    op = ToyNested(ToyNestedConfig(num_tokens=5))
    op.bind({"image": FieldSpec("uint8", views.shape[1:])})
    found = assert_operator_contract(op, {"image": views})["tokens"]
    np.testing.assert_array_equal(found.reshape(6, 5), all_tokens(images(6))[:, :5])


@pytest.mark.parametrize(
    ("rule", "lengths"),
    [
        ({"min": 1}, [1, 4, 8, 12, 12, 12]),
        ({"min": 3, "tokens_per_word": 1}, [3, 3, 3, 3, 5, 12]),
        ({"min": 2, "max": 9, "tokens_per_word": 2}, [2, 2, 4, 6, 9, 9]),
    ],
    ids=str,
)
def test_captions_decide(rule: dict[str, int], lengths: list[int]) -> None:
    op = operator({"by": "caption", **rule})
    batch = {"image": images(6), "caption": pa.array(CAPTIONS, pa.large_string())}
    tokens = assert_operator_contract(op, batch, rows_alone=6)["tokens"]
    assert tokens.lengths.tolist() == lengths
    for row, whole in zip(tokens, all_tokens(images(6)), strict=True):
        np.testing.assert_array_equal(row, whole[: len(row)])
    assert op.outputs == {"tokens": FieldSpec("uint8", (None,), 25)}
    layout: Any = op.metadata()["layout"]
    assert layout["positions"] == rule.get("max", TOKENS)


@settings(max_examples=25, deadline=None)
@given(
    measure=st.sampled_from(["mse", "mae"]),
    candidates=st.none() | st.lists(st.integers(1, TOKENS), min_size=1, max_size=6),
    quantile=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_errors_decide(
    measure: str, candidates: list[int] | None, quantile: float, seed: int
) -> None:
    """The first candidate that is good enough, else all tokens."""
    pixels = images(11, seed)
    tried = sorted(set([1, 2, 4, 8] if candidates is None else candidates))
    by_count = {count: errors(pixels, count, measure) for count in tried}
    every = np.stack(list(by_count.values()))
    most = float(np.quantile(every, quantile)) + 1e-5
    assume(bool((np.abs(every - most) > 1e-6).all()))  # rounding decides nothing
    rule = {"by": "error", "max_error": most, "measure": measure, "candidates": candidates}
    tokens = assert_operator_contract(operator(rule), {"image": pixels}, rows_alone=3)["tokens"]
    expected = [
        next((count for count in tried if by_count[count][row] <= most), TOKENS)
        for row in range(len(pixels))
    ]
    assert tokens.lengths.tolist() == expected


def test_errors_loosely_or_strictly() -> None:
    loose = operator({"by": "error", "max_error": 1.0})
    strict = operator({"by": "error", "max_error": 0.0})
    batch = {"image": torch.from_numpy(images(3))}
    assert loose(batch)["tokens"].lengths.tolist() == [1, 1, 1]
    assert strict(batch)["tokens"].lengths.tolist() == [TOKENS] * 3


def test_only_errors_load_the_decoder() -> None:
    assert operator({"by": "error", "max_error": 0.1})._decoder is not None
    assert operator({"by": "caption", "min": 1})._decoder is None
    assert operator()._decoder is None


def test_ragged_tokens_are_decoded_row_by_row() -> None:
    op = operator({"by": "caption", "min": 1})
    batch = {"image": images(6), "caption": pa.array(CAPTIONS, pa.large_string())}
    tokens = assert_operator_contract(op, batch)["tokens"]
    found = op.decode({"tokens": tokens})["image"]
    for row in range(6):
        alone = op.decode({"tokens": tokens[row][None]})["image"]
        np.testing.assert_array_equal(found[row], alone[0])
    empty = Ragged(np.zeros(0, np.uint8), np.zeros(1, np.int64))
    assert op.decode({"tokens": empty})["image"].shape == (0, SIDE, SIDE, 3)


def test_ragged_rows_beside_a_bad_one(monkeypatch: pytest.MonkeyPatch) -> None:
    op = operator({"by": "caption", "min": 1})
    batch = {"image": torch.from_numpy(images(6)), "caption": pa.array(CAPTIONS, "large_string")}
    good = op(batch)["tokens"]
    latents_of = op.latents_of

    def broken(*given: Any) -> torch.Tensor:
        latents = latents_of(*given).clone()
        latents[2] = float("inf")
        return latents

    monkeypatch.setattr(op, "latents_of", broken)
    with pytest.raises(RowErrors) as caught:
        op(batch)
    assert list(caught.value.errors) == [2]
    found, rest = caught.value.good["tokens"], take(good, np.array([0, 1, 3, 4, 5]))
    np.testing.assert_array_equal(found.values, rest.values)
    np.testing.assert_array_equal(found.offsets, rest.offsets)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (13, r"num_tokens=13, but the model has 12; set num_tokens to 1..12, or leave it out"),
        ({"by": "caption", "min": 13}, "num_tokens.min=13, but the model has 12"),
        ({"by": "caption", "min": 1, "max": 99}, "num_tokens.max=99, but the model has 12"),
        (
            {"by": "error", "max_error": 0.1, "candidates": [4, 16, 2]},
            "num_tokens.candidates=16, but the model has 12",
        ),
    ],
    ids=str,
)
def test_more_tokens_than_the_model_has(asked: Any, says: str) -> None:
    op = ToyNested(ToyNestedConfig(num_tokens=asked))
    with pytest.raises(ContractError, match=f"toy_nested: {says}"):
        _ = op.outputs


@pytest.mark.parametrize(
    "asked", [{"by": "caption", "min": 1}, {"by": "error", "max_error": 0.1}], ids=str
)
def test_views_allow_no_varying_number(asked: Any) -> None:
    op = ToyNested(ToyNestedConfig(num_tokens=asked))
    with pytest.raises(ContractError, match="`image` holds 10 views of each"):
        op.bind({"image": FieldSpec("uint8", (10, SIDE, SIDE, 3))})


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (0, "greater than or equal to 1"),
        ({"by": "words"}, "expected tags: 'caption', 'error'"),
        ({"by": "error"}, "max_error"),
        ({"by": "error", "max_error": -1}, "greater than or equal to 0"),
        ({"by": "error", "max_error": 1, "candidates": []}, "at least 1 item"),
        ({"by": "caption", "min": 9, "max": 3}, "max=3 is less than min=9"),
    ],
    ids=str,
)
def test_wrong_rules(asked: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ToyNestedConfig(num_tokens=asked)


def test_a_missing_caption_is_told() -> None:
    op = operator({"by": "caption", "min": 1})
    batch = {"image": torch.from_numpy(images(2)), "caption": pa.array(["a", None], "large_string")}
    with pytest.raises(ContractError, match="toy_nested: 1 of 2 texts are null"):
        op(batch)
