"""Vector quantization: the nearest entry of a learned codebook."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from operators.image_tokenizers.quantize.base import Quantizer

Metric = Literal["euclidean", "cosine", "dot"]

_MAX_SCORES = 1 << 24
"""Scores held at a time: 64 MiB, of which caches hold much. A codebook of 262,144 would otherwise
need 17 GB a batch."""


class VQ(Quantizer):
    """One codebook [K, D] and one id per latent (van den Oord et al., 2017, arXiv:1711.00937).

    Args:
        num_codes: K.
        dim: D.
        metric: ``euclidean``: the least distance. ``cosine``: the same after both sides are
            brought to length 1. ``dot``: the largest inner product with the entries as they are.
        normalized: ``vectors`` gives entries of length 1.

    Attributes:
        embedding: The codebook, ``embedding.weight`` [K, D].
    """

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        metric: Metric = "euclidean",
        normalized: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, dim)
        self.metric, self.normalized = metric, normalized

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """(K,)."""
        return (self.embedding.num_embeddings,)

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [...] of latents [..., D]."""
        codes_KD = self.embedding.weight.float()
        wide = latents.float()
        if self.metric == "cosine":
            codes_KD, wide = F.normalize(codes_KD, dim=-1), F.normalize(wide, dim=-1)
        return nearest(wide, codes_KD, inner_product=self.metric == "dot")

    def vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 entries [..., D] of int64 ids [...]."""
        rows = F.embedding(ids, self.embedding.weight).float()
        return F.normalize(rows, dim=-1) if self.normalized else rows


def nearest(
    latents: torch.Tensor, codes_KD: torch.Tensor, *, inner_product: bool = False
) -> torch.Tensor:
    """Return int64 [...], the nearest code of latents [..., D]; ties go to the lowest.

    Args:
        latents: float32.
        codes_KD: float32.
        inner_product: Take the largest inner product, not the least Euclidean distance.
    """
    flat_ND = latents.reshape(-1, codes_KD.shape[1])
    rows = min(max(1, _MAX_SCORES // len(codes_KD)), max(1, len(flat_ND)))
    with torch.no_grad():
        # |z - e|^2 is least where z.e - |e|^2 / 2 is largest: |z|^2 is the same for every code.
        half_K = None if inner_product else codes_KD.square().sum(dim=1) / 2
        buffer_NK, parts = flat_ND.new_empty(rows, len(codes_KD)), []
        for part_ND in flat_ND.split(rows):
            scores_NK = torch.mm(part_ND, codes_KD.T, out=buffer_NK[: len(part_ND)])
            if half_K is not None:
                scores_NK -= half_K
            parts.append(scores_NK.argmax(dim=1))
    return torch.cat(parts).reshape(latents.shape[:-1])
