"""Finite scalar quantization: round a few bounded channels, and count the combinations."""

from collections.abc import Sequence

import torch

from operators.image_tokenizers.quantize.base import Quantizer
from operators.image_tokenizers.quantize.mixed_radix import codebook_size, join_digits

_MARGIN = 1e-3  # the bound lies this fraction outside the outermost values


class FSQ(Quantizer):
    """Finite scalar quantization (Mentzer et al., 2024, arXiv:2309.15505), without parameters.

    Each of C channels is squashed to an interval that holds ``levels[c]`` integers and rounded to
    the nearest, ties to even; an id counts the combinations, first channel least significant.

    Args:
        levels: Values per channel, each at least 2.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The number of combinations."""
        return (codebook_size(self.levels),)

    def bound(self, latents: torch.Tensor) -> torch.Tensor:
        """Return float32 [..., C]: latents squashed to where rounding gives ``levels`` values."""
        levels = torch.tensor(self.levels, device=latents.device)
        half = (levels - 1) * (1 + _MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(latents.float() + torch.atanh(offset / half)) * half - offset

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [...] of latents [..., C]."""
        half = torch.tensor([level // 2 for level in self.levels], device=latents.device)
        return join_digits(torch.round(self.bound(latents)).long() + half, self.levels)

    def vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 codes [..., C] in [-1, 1] of int64 ids [...]."""
        base, codes = 1, []
        for level in self.levels:
            codes.append((ids // base % level - level // 2) / (level // 2))
            base *= level
        return torch.stack(codes, dim=-1)
