"""Quantization of every channel by itself, after training: TokenBridge's."""

import math

import torch

from operators.image_tokenizers.quantize.base import Quantizer


class PerDimension(Quantizer):
    """One stream per channel: the nearest of the values that suit a normal variable.

    Wang et al., 2025, "Bridging Continuous and Discrete Tokens for Autoregressive Visual
    Generation", arXiv:2503.16430; nothing is learned. The normal distribution is cut into
    ``2**bits`` parts of equal probability; each value is the mean of its part, where the tails end
    at ``tail``. The latents' interval is stretched to that of the values. What counts is the
    nearest value, not the part that a latent lies in.

    Args:
        num_dims: D, the channels.
        bits: Of an id.
        low: Least latent; those below count as this.
        high: Largest latent.
        tail: Where the distribution ends, in standard deviations.
    """

    def __init__(
        self,
        num_dims: int,
        *,
        bits: int = 6,
        low: float = -5.0,
        high: float = 5.0,
        tail: float = 3.0,
    ) -> None:
        super().__init__()
        self._num_dims, self._low, self._high, self._tail = num_dims, low, high, tail
        # Kept as numbers: a tensor would be left on the meta device where nets are built.
        self._values = tuple(_means_of_parts(2**bits, tail).tolist())

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """2 to the bits, for each channel."""
        return (len(self._values),) * self._num_dims

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [..., D] of latents [..., D]."""
        values = self._table(latents.device)
        scaled = (latents.float() - self._low) / (self._high - self._low) * (2 * self._tail)
        scaled = (scaled - self._tail).clamp(-self._tail, self._tail)
        above = torch.searchsorted(values, scaled.contiguous()).clamp(1, len(values) - 1)
        below = above - 1
        nearer_below = (scaled - values[below]).abs() <= (values[above] - scaled).abs()
        return torch.where(nearer_below, below, above)

    def vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 [..., D] of int64 ids [..., D]."""
        values = self._table(ids.device)[ids]
        return (values + self._tail) / (2 * self._tail) * (self._high - self._low) + self._low

    def _table(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(self._values, dtype=torch.float32, device=device)


def _means_of_parts(number: int, tail: float) -> torch.Tensor:
    """Return float32 [number], rising: in the authors' steps, since rounding moves the values."""
    shares = torch.linspace(0, 1, number + 1, dtype=torch.float32, device="cpu")
    cuts = torch.special.ndtri(shares.double()).float().clamp(-tail, tail)
    density = torch.exp(-0.5 * cuts**2) / math.sqrt(2 * math.pi)
    share = 0.5 * (1 + torch.erf(cuts / math.sqrt(2)))
    return (density[:-1] - density[1:]) / (share[1:] - share[:-1])
