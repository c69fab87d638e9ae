"""Product quantization: channels are shared out among quantizers side by side."""

from collections.abc import Sequence

import torch
from torch import nn

from operators.image_tokenizers.quantize.base import Quantizer, only_stream


class Product(Quantizer):
    """One stream per part (Jegou et al., 2011, "Product Quantization for Nearest Neighbor Search").

    Args:
        parts: Quantizers of one stream, in the order of their channels.
        dims: Channels of each.

    Attributes:
        parts: Parameters are ``parts.0.*``, ``parts.1.*``, ...
    """

    def __init__(self, parts: Sequence[Quantizer], dims: Sequence[int]) -> None:
        super().__init__()
        if len(parts) != len(dims) or len(parts) < 2:
            raise ValueError(f"{len(parts)} parts, {len(dims)} dims: expected equal, at least 2")
        self.parts, self._dims = nn.ModuleList(parts), list(dims)
        self._sizes = tuple(only_stream(part) for part in parts)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Of every part."""
        return self._sizes

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [..., S] of latents [..., D]."""
        runs = zip(self.parts, latents.split(self._dims, dim=-1), strict=True)
        return torch.stack([part.encode(run) for part, run in runs], dim=-1)

    def vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 [..., D] of int64 ids [..., S]."""
        streams = zip(self.parts, ids.unbind(dim=-1), strict=True)
        return torch.cat([part.vectors(stream) for part, stream in streams], dim=-1)
