"""A nested image tokenizer of a few thousand random weights, for tests of what such ones share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from operators.image_tokenizers.base import SYMMETRIC, Published, RandomWeights
from operators.image_tokenizers.layout import TokenLayout
from operators.image_tokenizers.nested import NestedImageTokenizer, NestedTokenizerConfig
from operators.image_tokenizers.quantize.fsq import FSQ

SIDE, TOKENS, LEVELS = 8, 12, (5, 5)
_GAIN = 40.0  # makes images of random weights differ by more than their rounding


@dataclass(frozen=True)
class ToyArch:
    """Number of tokens."""

    tokens: int


class ToyNestedConfig(NestedTokenizerConfig):
    """Options of ``toy_nested``."""

    name: Literal["toy_nested"] = "toy_nested"
    weights: RandomWeights[Literal["small"]] = RandomWeights(random_seed=0, size="small")
    device: Literal["cuda", "cpu"] = "cpu"


class _Encoder(nn.Module):  # type: ignore[misc]
    def __init__(self, arch: ToyArch) -> None:
        super().__init__()
        self.project = nn.Linear(3 * SIDE**2, arch.tokens * len(LEVELS))
        self.quantize = FSQ(LEVELS)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.project(images.flatten(1))
        return found.reshape(len(images), -1, len(LEVELS))


class _Decoder(nn.Module):  # type: ignore[misc]
    def __init__(self, arch: ToyArch) -> None:
        super().__init__()
        self.pictures = nn.Parameter(torch.empty(arch.tokens, len(LEVELS), 3 * SIDE**2))
        self.quantize = FSQ(LEVELS)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        codes = self.quantize.decode(ids)
        pictures = self.pictures[: ids.shape[1]]
        drawn = torch.einsum("btc,tcp->bp", codes, pictures)
        return torch.tanh(_GAIN * drawn).reshape(len(ids), 3, SIDE, SIDE)


class ToyNested(NestedImageTokenizer[ToyNestedConfig, ToyArch]):
    """Maps images of 8 x 8 pixels to 12 ids below 25."""

    Config = ToyNestedConfig
    paper = "arXiv:0000.00000"
    weights_license = "none"
    published = (Published("toy/nested", "small", TOKENS, 25, SIDE),)
    min_agreement: ClassVar[Mapping[str, float]] = {"float32": 1.0, "bfloat16": 0.0}
    normalization = SYMMETRIC
    preprocessing = ()

    def published_arch(self, size: str) -> ToyArch:
        return ToyArch(TOKENS)

    def arch_of_config(self, config: Mapping[str, Any], where: str) -> ToyArch:
        return ToyArch(int(config["tokens"]))

    @property
    def full_layout(self) -> TokenLayout:
        return TokenLayout(self.arch.tokens, (25,))

    @property
    def image_sides(self) -> tuple[int, int]:
        return SIDE, SIDE

    def encoder_net(self) -> Any:
        return _Encoder(self.arch)

    def decoder_net(self) -> Any:
        return _Decoder(self.arch)
