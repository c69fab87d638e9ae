"""Product quantization by keys: in every part of the latent, the code whose key fits it best.

Mama et al., 2021, "NWT: Towards natural audio-to-video generation with representation learning",
arXiv:2106.04283 ("memcodes").
"""

import torch
from torch import nn

from operators.image_tokenizers.quantize.base import Quantizer


class KeyedCodes(Quantizer):
    """S codebooks [K, D / S], one for each part of the latent; S ids.

    Part s of a latent gets the id of the code whose key, a linear map of the code, has the largest
    inner product with it. Vectors are another linear map of the codes.

    Args:
        num_codes: K.
        dim: D.
        num_streams: S, divides ``dim``.

    Attributes:
        codes: [S, K, D / S].
        key_weight: [S, D / S, D / S], codes to keys.
        value_weight: [S, D / S, D / S], codes to vectors.
    """

    def __init__(self, num_codes: int, dim: int, num_streams: int) -> None:
        super().__init__()
        width = dim // num_streams
        self.codes = nn.Parameter(torch.empty(num_streams, num_codes, width))
        self.key_weight = nn.Parameter(torch.empty(num_streams, width, width))
        self.value_weight = nn.Parameter(torch.empty(num_streams, width, width))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """(K,) * S."""
        streams, num_codes, _ = self.codes.shape
        return (int(num_codes),) * int(streams)

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [..., S] of latents [..., D]."""
        streams = len(self.codes)
        parts_SNd = latents.float().reshape(-1, streams, self.codes.shape[2]).transpose(0, 1)
        # The key's map goes to the latents: they are fewer than the codes.
        parts_SNd = parts_SNd @ self.key_weight.float().transpose(1, 2)
        ids_SN = (parts_SNd @ self.codes.float().transpose(1, 2)).argmax(dim=2)
        return ids_SN.T.reshape(*latents.shape[:-1], streams)

    def vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 vectors [..., D] of int64 ids [..., S]."""
        stream = torch.arange(len(self.codes), device=ids.device)
        rows = self.codes.float()[stream, ids]  # [..., S, D / S]
        return torch.einsum("...sd,sdc->...sc", rows, self.value_weight.float()).flatten(-2)
