"""Encoders and decoders of 4M's tokenizers.

Shapes: B batch, C channels, H W image sides, h w sides of the grid, T = h w, D width, L width of a
latent, S codebooks of a feature vector.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from operators.image_tokenizers.nn.fourm_arch import FourMArch, MLPSizes, ViTSizes
from operators.image_tokenizers.nn.vit import MLP, Block
from operators.image_tokenizers.quantize.base import Quantizer
from operators.image_tokenizers.quantize.keyed import KeyedCodes
from operators.image_tokenizers.quantize.vq import VQ, Metric

_MLP_RATIO = 4
_EPS = 1e-6


class FourMEncoder(nn.Module):  # type: ignore[misc]
    """What a model reads to latents, and the quantizer they go to."""

    def __init__(self, arch: FourMArch) -> None:
        super().__init__()
        if arch.labels is not None:
            self.cls_emb = nn.Embedding(arch.labels, arch.channels)
        sizes = arch.encoder
        self.encoder: nn.Module
        if isinstance(sizes, MLPSizes):
            self.encoder = BottleneckMLP(arch.channels, sizes.width, sizes)
        else:
            self.encoder = ViTEncoder(arch.channels, sizes)
        self.quant_proj = nn.Conv2d(sizes.width, arch.latent_dim, 1)
        self.quantize = quantizer(arch)
        self._labels = arch.labels
        # The angle is the same for latents of any length.
        self._normalizes = arch.normalized_latents and not arch.cosine

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return latents [B, T, L], or [B, L] of feature vectors.

        Args:
            values: [B, C, H, W]; ids of classes [B, H, W], where one more than there are stands
                for a wrong one and makes its row NaN; feature maps [B, C, h, w] or vectors [B, C].
        """
        if self._labels is not None:
            wrong = self.cls_emb.weight.new_full((1, self.cls_emb.embedding_dim), torch.nan)
            values = F.embedding(values, torch.cat([self.cls_emb.weight, wrong]))
            values = values.permute(0, 3, 1, 2)
        latents = _pointwise(self.quant_proj, self.encoder(values))
        return F.normalize(latents, dim=-1) if self._normalizes else latents


class FourMDecoder(nn.Module):  # type: ignore[misc]
    """Ids to an approximation of what the model read; ids of classes come as scores.

    Args:
        arch: Of the model; it has a decoder.
        grid: h and w of the positions; None for feature vectors.
    """

    def __init__(self, arch: FourMArch, grid: tuple[int, int] | None) -> None:
        super().__init__()
        sizes = arch.decoder
        assert sizes is not None
        self.quantize = quantizer(arch)
        self.post_quant_proj = nn.Conv2d(arch.latent_dim, sizes.width, 1)
        self.decoder: nn.Module
        if isinstance(sizes, MLPSizes):
            self.decoder = BottleneckMLP(sizes.width, arch.out_channels, sizes)
        else:
            assert grid is not None
            self.decoder = ViTDecoder(arch.out_channels, sizes, grid)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return [B, C, H, W] of ids [B, T]; [B, C, h, w] or [B, C] for features."""
        return self.decoder(_pointwise(self.post_quant_proj, self.quantize.decode(ids)))


class _ViT(nn.Module):  # type: ignore[misc]
    """Position table and blocks; the table is resampled to the grid at hand."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        width = sizes.width
        self.pos_emb = nn.Parameter(torch.empty(1, width, sizes.grid, sizes.grid))
        self.blocks = nn.ModuleList(
            Block(width, sizes.heads, _MLP_RATIO * width, eps=_EPS) for _ in range(sizes.depth)
        )
        if sizes.post_mlp:
            self.norm_mlp = nn.LayerNorm(width, eps=_EPS)
            self.post_mlp = MLP(width, _MLP_RATIO * width, torch.tanh)
        self._has_post_mlp = sizes.post_mlp

    def run(self, x_BTD: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Return [B, T, D] of tokens that lie on a grid, row-major."""
        table_1Dhw = self.pos_emb
        if tuple(table_1Dhw.shape[2:]) != grid:
            table_1Dhw = F.interpolate(table_1Dhw, grid, mode="bicubic", align_corners=False)
        x_BTD = x_BTD + table_1Dhw.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        if self._has_post_mlp:
            x_BTD = x_BTD + self.post_mlp(self.norm_mlp(x_BTD))
        return x_BTD


class ViTEncoder(_ViT):
    """Images [B, C, H, W], or feature maps as images of patches of one pixel, to tokens."""

    def __init__(self, channels: int, sizes: ViTSizes) -> None:
        super().__init__(sizes)
        self.proj = nn.Conv2d(channels, sizes.width, sizes.patch, stride=sizes.patch)

    def forward(self, values_BCHW: torch.Tensor) -> torch.Tensor:
        """Return [B, T, D]."""
        x_BDhw = self.proj(values_BCHW.to(self.proj.weight.dtype))
        return self.run(x_BDhw.flatten(2).transpose(1, 2), tuple(x_BDhw.shape[2:]))


class ViTDecoder(_ViT):
    """Tokens to images [B, C, H, W]."""

    def __init__(self, channels: int, sizes: ViTSizes, grid: tuple[int, int]) -> None:
        super().__init__(sizes)
        self.out_proj = nn.Linear(sizes.width, channels * sizes.patch**2)
        if sizes.out_conv:
            self.out_conv = nn.Sequential(ConvNeXtBlock(channels), ConvNeXtBlock(channels))
        self._sizes, self._grid = sizes, grid

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return [B, C, H, W]."""
        patch, (height, width) = self._sizes.patch, self._grid
        patches_BTd = self.out_proj(self.run(x_BTD, self._grid))  # a patch is C, row, column
        tiles = patches_BTd.unflatten(2, (-1, patch, patch)).unflatten(1, (height, width))
        images = tiles.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return self.out_conv(images) if self._sizes.out_conv else images


class ConvNeXtBlock(nn.Module):  # type: ignore[misc]
    """Liu et al., 2022, arXiv:2201.03545: a depthwise convolution, then an MLP at every pixel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return [B, C, H, W]."""
        x_BHWC = self.norm(self.dwconv(x_BCHW).permute(0, 2, 3, 1))
        x_BHWC = self.gamma * self.pwconv2(F.gelu(self.pwconv1(x_BHWC)))
        return x_BCHW + x_BHWC.permute(0, 3, 1, 2)


class BottleneckMLP(nn.Module):  # type: ignore[misc]
    """Bachmann et al., 2023, "Scaling MLPs: A Tale of Inductive Bias", arXiv:2306.13575."""

    def __init__(self, dim_in: int, dim_out: int, sizes: MLPSizes) -> None:
        super().__init__()
        width = sizes.width
        self.linear_in = nn.Linear(dim_in, width)
        self.layernorms = nn.ModuleList(nn.LayerNorm(width) for _ in range(sizes.depth))
        self.blocks = nn.ModuleList(MLP(width, sizes.expansion * width) for _ in range(sizes.depth))
        self.linear_out = nn.Linear(width, dim_out)

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        """Return [B, dim_out]."""
        dtype = self.linear_in.weight.dtype
        x_BD = self.linear_in(x_BC.to(dtype)).float()
        for norm, block in zip(self.layernorms, self.blocks, strict=True):
            x_BD = x_BD + block(norm(x_BD))
        return self.linear_out(x_BD.to(dtype))


def quantizer(arch: FourMArch) -> Quantizer:
    """Build the quantizer of a model."""
    if arch.kind == "feature":
        return KeyedCodes(arch.codebook_size, arch.latent_dim, arch.num_codebooks)
    metric: Metric = "cosine" if arch.cosine else "euclidean"
    return VQ(arch.codebook_size, arch.latent_dim, metric=metric)


def _pointwise(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Apply a 1 x 1 convolution to channels that come last."""
    return F.linear(x.to(conv.weight.dtype), conv.weight.flatten(1), conv.bias)
