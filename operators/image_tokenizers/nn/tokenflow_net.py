"""TokenFlow's nets (Qu et al., 2024, arXiv:2412.03069).

Shapes: B batch, C channels, H W image sides, h w sides of the finest grid, N = h * w, T ids of all
scales, D = S + P widths of a semantic and a pixel entry.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from operators.image_tokenizers.nn.cnn import CNNDecoder, CNNEncoder
from operators.image_tokenizers.nn.siglip import SiglipTower
from operators.image_tokenizers.nn.tokenflow_arch import TokenFlowArch
from operators.image_tokenizers.quantize.residual import MultiScale
from operators.image_tokenizers.quantize.shared_index import SharedIndexVQ


class TokenFlowEncoder(nn.Module):  # type: ignore[misc]
    """Images in [-1, 1] to latents [B, N, D]: semantic ones beside those of pixels."""

    def __init__(self, arch: TokenFlowArch) -> None:
        super().__init__()
        width = arch.siglip.width
        self.encoder_vqkd = SiglipTower(arch.siglip, arch.siglip.num_layers - 1)
        self.encode_task_layer = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, arch.semantic_dim)
        )
        self.encoder = CNNEncoder(arch.cnn)
        self.quant_conv = nn.Conv2d(arch.cnn.z_channels, arch.pixel_dim, 1)
        self.quantize = _quantizer(arch)
        self._pixels_side = arch.siglip.grid * arch.cnn.downsampling

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return latents [B, N, D]."""
        # The authors bring the tower's input from [-1, 1] to bytes and back, which changes nothing.
        semantic_BNS = self.encode_task_layer(self.encoder_vqkd(images_BCHW))
        # So many pixels that the convolutions end on the tower's grid.
        side = self._pixels_side
        resized_BCHW = F.interpolate(images_BCHW, (side, side), mode="bicubic")
        pixel_BPhw = self.quant_conv(self.encoder(resized_BCHW))
        return torch.cat([semantic_BNS, pixel_BPhw.flatten(2).transpose(1, 2)], dim=2)


class TokenFlowDecoder(nn.Module):  # type: ignore[misc]
    """Ids to images, by the pixel halves of the entries."""

    def __init__(self, arch: TokenFlowArch) -> None:
        super().__init__()
        self.quantize = _quantizer(arch)
        self.post_quant_conv = nn.Conv2d(arch.pixel_dim, arch.cnn.z_channels, 1)
        self.decoder = CNNDecoder(arch.cnn)
        self._arch = arch

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return images [B, 3, H, W]; also of the ids of the first scales alone."""
        side = self._arch.siglip.side
        return F.interpolate(self.drawn(ids_BT), (side, side), mode="bicubic")

    def drawn(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return images [B, 3, H', W'] in the size that the convolutions give."""
        vectors_BND = self.quantize.decode(ids_BT)
        pixel_BPN = vectors_BND[..., self._arch.semantic_dim :].transpose(1, 2)
        grid = self._arch.siglip.grid
        return self.decoder(self.post_quant_conv(pixel_BPN.unflatten(2, (grid, grid))))


def _quantizer(arch: TokenFlowArch) -> MultiScale:
    pairs = SharedIndexVQ(arch.codebook_size, (arch.semantic_dim, arch.pixel_dim))
    return MultiScale(arch.scales, [pairs])
