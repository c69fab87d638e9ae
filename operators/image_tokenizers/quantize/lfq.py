"""Lookup-free quantization: the signs of the latents are the bits of the id."""

import torch

from operators.image_tokenizers.quantize.base import Quantizer


class LFQ(Quantizer):
    """One bit per channel: 1 where the latent is above zero (Yu et al., 2024, arXiv:2310.05737).

    With 64 bits an id is the int64 with the same bits, which becomes the uint64 when stored.

    Args:
        num_bits: D, the channels.
        num_groups: S equal runs of channels, each with an id of its own: S streams.
        first_is_high: The first channel of a group is its most significant bit, not its least.
        radius: Vectors hold plus or minus this.
    """

    def __init__(
        self,
        num_bits: int,
        *,
        num_groups: int = 1,
        first_is_high: bool = False,
        radius: float = 1.0,
    ) -> None:
        super().__init__()
        bits = num_bits // num_groups
        if bits * num_groups != num_bits or not 1 <= bits <= 64:
            raise ValueError(f"{num_bits} bits in {num_groups} groups: expected equal, 1 to 64")
        self.num_groups, self._bits, self._radius = num_groups, bits, radius
        self._order = list(reversed(range(bits))) if first_is_high else list(range(bits))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """2 to the bits of a group, for each group."""
        return (1 << self._bits,) * self.num_groups

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [...], or [..., S], of latents [..., D]; zero counts as below zero."""
        ones = (latents > 0).unflatten(-1, (self.num_groups, self._bits)).long()
        ids = (ones << torch.tensor(self._order, device=latents.device)).sum(dim=-1)
        return ids[..., 0] if self.num_groups == 1 else ids

    def vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 [..., D] of int64 ids [...], or [..., S]."""
        groups = ids[..., None] if self.num_groups == 1 else ids
        ones = (groups[..., None] >> torch.tensor(self._order, device=ids.device)) & 1
        return (ones.flatten(-2).float() * 2 - 1) * self._radius


class BSQ(LFQ):
    """Binary spherical quantization (Zhao et al., 2024, arXiv:2406.07548).

    The corner of a cube in the unit sphere nearest to the latent brought to length 1: which keeps
    its signs, so that nothing is left to normalize.

    Args:
        num_bits: D, the channels.
        num_groups: As for ``LFQ``.
        first_is_high: As for ``LFQ``.
    """

    def __init__(self, num_bits: int, *, num_groups: int = 1, first_is_high: bool = False) -> None:
        super().__init__(
            num_bits, num_groups=num_groups, first_is_high=first_is_high, radius=num_bits**-0.5
        )
