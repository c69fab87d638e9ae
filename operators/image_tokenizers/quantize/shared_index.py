"""Several codebooks that share one index: an id is an entry of each."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from operators.image_tokenizers.quantize.base import Quantizer
from operators.image_tokenizers.quantize.vq import nearest


class SharedIndexVQ(Quantizer):
    """The id whose entries are nearest in all parts together (Qu et al., 2024, arXiv:2412.03069).

    Latents hold the parts side by side. Each part, and each entry, is brought to length 1 by
    itself; what is least is the sum of the squared distances.

    Args:
        num_codes: K.
        dims: Channels of each part.

    Attributes:
        codebooks: Entries of each part, ``codebooks.0.weight`` [K, dims[0]], ...
    """

    def __init__(self, num_codes: int, dims: Sequence[int]) -> None:
        super().__init__()
        self.codebooks = nn.ModuleList(nn.Embedding(num_codes, dim) for dim in dims)
        self._num_codes, self.dims = num_codes, list(dims)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """(K,)."""
        return (self._num_codes,)

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [...] of latents [..., D]."""
        codes_KD = _unit([book.weight for book in self.codebooks])
        # Both sides have one length for all codes, so that the distance is least where the
        # product of the joined vectors is largest.
        return nearest(_unit(latents.split(self.dims, dim=-1)), codes_KD, inner_product=True)

    def vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 entries [..., D], each part of length 1, of int64 ids [...]."""
        return _unit([F.embedding(ids, book.weight) for book in self.codebooks])


def _unit(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([F.normalize(part.float(), dim=-1) for part in parts], dim=-1)
