"""Finite scalar quantization: round a few bounded channels, and count the combinations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from operators.image_tokenizers.quantize.mixed_radix import codebook_size, join_digits

if TYPE_CHECKING:
    import torch

_MARGIN = 1e-3  # the bound lies this fraction outside the outermost values


class FSQ:
    """Finite scalar quantization (Mentzer et al., 2024, arXiv:2309.15505), without parameters.

    Each of C channels is squashed to an interval that holds ``levels[c]`` integers and rounded to
    the nearest, ties to even; an id counts the combinations, first channel least significant.
    Everything is float32, whatever comes in.

    Args:
        levels: Values per channel, each at least 2.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = tuple(levels)

    @property
    def codebook_size(self) -> int:
        """Number of ids."""
        return codebook_size(self.levels)

    def bound(self, latents: "torch.Tensor") -> "torch.Tensor":
        """Return float32 [..., C]: latents squashed to where rounding gives ``levels`` values."""
        import torch

        levels = torch.tensor(self.levels, device=latents.device)
        half = (levels - 1) * (1 + _MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(latents.float() + torch.atanh(offset / half)) * half - offset

    def ids(self, latents: "torch.Tensor") -> "torch.Tensor":
        """Return int64 ids [...] of latents [..., C]."""
        import torch

        half = torch.tensor([level // 2 for level in self.levels], device=latents.device)
        return join_digits(torch.round(self.bound(latents)).long() + half, self.levels)

    def codes(self, ids: "torch.Tensor") -> "torch.Tensor":
        """Return float32 codes [..., C] in [-1, 1] of integer ids [...]."""
        import torch

        wide, base, codes = ids.long(), 1, []
        for level in self.levels:
            codes.append((wide // base % level - level // 2) / (level // 2))
            base *= level
        return torch.stack(codes, dim=-1)
