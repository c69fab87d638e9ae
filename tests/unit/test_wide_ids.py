"""Ids of 64 bits through the base class of image tokenizers: they stay whole, and come back."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import nn

from operators.base import FieldSpec
from operators.errors import ContractError, RowErrors
from operators.image_tokenizers.base import (
    SYMMETRIC,
    ImageTokenizer,
    ImageTokenizerConfig,
    RandomWeights,
)
from operators.image_tokenizers.layout import TokenLayout
from operators.image_tokenizers.quantize.lfq import LFQ
from operators.testing import assert_operator_contract

SIDE = 16


class BlackWhiteConfig(ImageTokenizerConfig):
    name: Literal["black_white"] = "black_white"
    weights: RandomWeights[Literal["only"]]


class Encoder(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.quantize = LFQ(64)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.unfold(images[:, :1], 8, stride=8).transpose(1, 2)


class Decoder(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.quantize = LFQ(64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        vectors = self.quantize.decode(ids).transpose(1, 2)
        return nn.functional.fold(vectors, SIDE, 8, stride=8).expand(-1, 3, -1, -1)


class BlackWhite(ImageTokenizer[BlackWhiteConfig, None]):
    """An id has a bit for each of 8 x 8 pixels."""

    Config = BlackWhiteConfig
    normalization = SYMMETRIC
    preprocessing: ClassVar[tuple[Mapping[str, object], ...]] = ()
    image_sides = (SIDE, SIDE)
    layout = TokenLayout(4, (1 << 64,), grid=(2, 2))

    def published_arch(self, size: str) -> None:
        return None

    def arch_of_config(self, config: Mapping[str, Any], where: str) -> None:
        return None

    def encoder_net(self) -> Encoder:
        return Encoder()

    def decoder_net(self) -> Decoder:
        return Decoder()


@pytest.fixture
def op() -> BlackWhite:
    weights = {"random_seed": 0, "size": "only"}
    config = {"name": "black_white", "weights": weights, "device": "cpu"}
    return BlackWhite(BlackWhiteConfig.model_validate(config))


def pixels(num: int) -> np.ndarray:
    bits = np.random.default_rng(0).integers(0, 2, (num, SIDE, SIDE, 1), dtype=np.uint8)
    return np.repeat(bits * np.uint8(255), 3, axis=3)


def test_every_bit_comes_back(op: BlackWhite) -> None:
    assert op.outputs["tokens"] == FieldSpec("uint64", (4,), vocab_size=1 << 64)
    found = assert_operator_contract(op, {"image": pixels(5)})
    assert found["tokens"].dtype == np.uint64
    assert found["tokens"].max() >= np.uint64(1 << 63)
    assert np.array_equal(op.decode({"tokens": found["tokens"]})["image"], pixels(5))


def test_the_largest_id_is_in_range(op: BlackWhite) -> None:
    white = op.decode({"tokens": np.full((1, 4), (1 << 64) - 1, np.uint64)})["image"]
    assert white.min() == 255
    with pytest.raises(ContractError, match="id -1 is out of range, expected 0 to 18,446,744,0"):
        op.decode({"tokens": np.full((1, 4), -1, np.int64)})


def test_bad_rows_leave_the_others(op: BlackWhite) -> None:
    op.setup("cpu")
    images = torch.from_numpy(pixels(3))
    good = op({"image": images})["tokens"]
    forward = op._forward

    def broken(batch: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = forward(batch).clone()
        latents[1] = float("inf")
        return latents

    op._forward = broken
    with pytest.raises(RowErrors) as caught:
        op({"image": images})
    assert torch.equal(caught.value.good["tokens"], good[[0, 2]])
