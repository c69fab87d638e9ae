"""Convolutional encoder and decoder of the VQGAN family.

Esser et al., 2021, "Taming Transformers for High-Resolution Image Synthesis", arXiv:2012.09841, and
what later tokenizers changed in it (``CNNArch``).

Shapes: B batch, C channels, H W image sides, h w sides of the code, D width of a codebook entry.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from operators.image_tokenizers.nn.cnn_arch import CNNArch
from operators.image_tokenizers.quantize.base import Quantizer

_GROUPS = 32
_EPS = 1e-6


class GridEncoder(nn.Module):  # type: ignore[misc]
    """Images to latents of a grid, row-major, and the quantizer they go to.

    Args:
        arch: Of the convolutions.
        quantize: The quantizer.
        code_dim: D, reached by a 1 x 1 convolution; None is ``arch.z_channels`` without one.
    """

    def __init__(self, arch: CNNArch, quantize: Quantizer, code_dim: int | None = None) -> None:
        super().__init__()
        self.encoder = CNNEncoder(arch)
        if code_dim is not None:
            self.quant_conv = nn.Conv2d(arch.z_channels, code_dim, 1)
        self.quantize = quantize
        self._projects = code_dim is not None

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return latents [B, h * w, D]."""
        z_BChw = self.encoder(images_BCHW)
        if self._projects:
            z_BChw = self.quant_conv(z_BChw)
        return z_BChw.flatten(2).transpose(1, 2)


class GridDecoder(nn.Module):  # type: ignore[misc]
    """Ids of a grid to images; the arguments are those of ``GridEncoder``."""

    def __init__(self, arch: CNNArch, quantize: Quantizer, code_dim: int | None = None) -> None:
        super().__init__()
        self.decoder = CNNDecoder(arch)
        if code_dim is not None:
            self.post_quant_conv = nn.Conv2d(code_dim, arch.z_channels, 1)
        self.quantize = quantize
        self._projects = code_dim is not None

    def forward(self, ids_Bhw: torch.Tensor) -> torch.Tensor:
        """Return images [B, 3, H, W] of ids [B, h, w(, S)]."""
        z_BDhw = self.quantize.decode(ids_Bhw).permute(0, 3, 1, 2)
        if self._projects:
            z_BDhw = self.post_quant_conv(z_BDhw)
        return self.decoder(z_BDhw)


class CNNEncoder(nn.Module):  # type: ignore[misc]
    """Images [B, 3, H, W] to [B, z_channels, h, w]."""

    def __init__(self, arch: CNNArch) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, arch.width, 3, padding=1, bias=arch.biases)
        self.down = nn.ModuleList()
        before = arch.width
        for level in range(arch.num_levels):
            channels, last = arch.channels(level), level == arch.num_levels - 1
            parts = _level(arch, level, before, arch.num_blocks)
            if not last and arch.downsample != "pool":
                parts["downsample"] = Downsample(channels, padded=arch.downsample == "padded")
            elif not last:
                parts["downsample"] = nn.AvgPool2d(2)
            self.down.append(parts)
            before = channels
        self.mid = _middle(arch, before)
        self.norm_out = group_norm(before)
        kernel = arch.head_kernel
        self.conv_out = nn.Conv2d(before, arch.z_channels, kernel, padding=kernel // 2)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return [B, z_channels, h, w]."""
        x = self.conv_in(x_BCHW)
        for level in self.down:
            x = _run_level(level, x)
            if "downsample" in level:
                x = level["downsample"](x)
        for part in self.mid:
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class CNNDecoder(nn.Module):  # type: ignore[misc]
    """Codes [B, z_channels, h, w] to images [B, 3, H, W]."""

    def __init__(self, arch: CNNArch) -> None:
        super().__init__()
        before = arch.channels(arch.num_levels - 1)
        self.conv_in = nn.Conv2d(arch.z_channels, before, 3, padding=1)
        self.mid = _middle(arch, before)
        levels = []
        if arch.adaptive:
            self.adaptive = nn.ModuleList()
        for level in reversed(range(arch.num_levels)):
            if arch.adaptive:
                self.adaptive.insert(0, AdaptiveGroupNorm(arch.z_channels, before))
            parts = _level(arch, level, before, arch.num_decoder_blocks)
            before = arch.channels(level)
            if level > 0:
                parts["upsample"] = Upsample(before, to_space=arch.upsample == "depth_to_space")
            levels.append(parts)
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = group_norm(before)
        self.conv_out = nn.Conv2d(before, 3, 3, padding=1)
        self._adapts = arch.adaptive

    def forward(self, z_BChw: torch.Tensor) -> torch.Tensor:
        """Return [B, 3, H, W]."""
        # Rows of a grid come as channels last, and torch's group norm of that is inexact on a CPU.
        x = self.conv_in(z_BChw.contiguous())
        for part in self.mid:
            x = part(x)
        for level in reversed(range(len(self.up))):
            if self._adapts:
                x = self.adaptive[level](x, z_BChw)
            x = _run_level(self.up[level], x)
            if "upsample" in self.up[level]:
                x = self.up[level]["upsample"](x)
        return self.conv_out(F.silu(self.norm_out(x)))


class ResBlock(nn.Module):  # type: ignore[misc]
    """Two convolutions, each after a group norm and SiLU, and a shortcut."""

    def __init__(self, arch: CNNArch, before: int, after: int) -> None:
        super().__init__()
        self.norm1 = group_norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=arch.biases)
        self.norm2 = group_norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=arch.biases)
        self._changes, self._of_branch = before != after, arch.shortcut_of_branch
        if self._changes:
            source = after if arch.shortcut_of_branch else before
            self.nin_shortcut = nn.Conv2d(source, after, 1, bias=arch.biases)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, after, h, w]."""
        branch = self.conv1(F.silu(self.norm1(x)))
        branch = self.conv2(F.silu(self.norm2(branch)))
        if not self._changes:
            return x + branch
        return branch + self.nin_shortcut(branch if self._of_branch else x)


class GridAttention(nn.Module):  # type: ignore[misc]
    """Attention between the positions of a map, with one head, after a group norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BChw: torch.Tensor) -> torch.Tensor:
        """Return [B, C, h, w]."""
        normed = self.norm(x_BChw)
        q, k, v = (
            part(normed).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x_BChw + self.proj_out(mixed.unflatten(2, x_BChw.shape[2:]))


class Downsample(nn.Module):  # type: ignore[misc]
    """A convolution of stride 2."""

    def __init__(self, channels: int, *, padded: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if padded else 1)
        self._padded = padded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map at half the resolution."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self._padded else x)


class Upsample(nn.Module):  # type: ignore[misc]
    """Twice the resolution: each pixel repeated, or four times the channels spread out."""

    def __init__(self, channels: int, *, to_space: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * (4 if to_space else 1), 3, padding=1)
        self._to_space = to_space

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map at twice the resolution."""
        if not self._to_space:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        wide = self.conv(x).unflatten(1, (2, 2, -1))  # B row column C h w
        return wide.permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)


class AdaptiveGroupNorm(nn.Module):  # type: ignore[misc]
    """Group norm whose scale and shift are made from the code's statistics over the grid."""

    def __init__(self, z_channels: int, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(z_channels, channels)
        self.beta = nn.Linear(z_channels, channels)

    def forward(self, x_BChw: torch.Tensor, z_BChw: torch.Tensor) -> torch.Tensor:
        """Return [B, C, h, w]."""
        flat = z_BChw.flatten(2)
        scale = self.gamma((flat.var(dim=2) + _EPS).sqrt())
        shift = self.beta(flat.mean(dim=2))
        normed = F.group_norm(x_BChw, _GROUPS, eps=_EPS)
        return normed * scale[..., None, None] + shift[..., None, None]


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the group norm of this family."""
    return nn.GroupNorm(_GROUPS, channels, eps=_EPS)


def _level(arch: CNNArch, level: int, before: int, num_blocks: int) -> nn.ModuleDict:
    after = arch.channels(level)
    blocks = [ResBlock(arch, before if i == 0 else after, after) for i in range(num_blocks)]
    parts = nn.ModuleDict({"block": nn.ModuleList(blocks)})
    if level in arch.attention_levels:
        parts["attn"] = nn.ModuleList(GridAttention(after) for _ in range(num_blocks))
    return parts


def _run_level(level: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    for i, block in enumerate(level["block"]):
        x = block(x)
        if "attn" in level:
            x = level["attn"][i](x)
    return x


def _middle(arch: CNNArch, channels: int) -> nn.ModuleList:
    def block() -> ResBlock:
        return ResBlock(arch, channels, channels)

    if arch.mid == "attention":
        return nn.ModuleList([block(), GridAttention(channels), block()])
    return nn.ModuleList(block() for _ in range(2 if arch.mid == "pair" else arch.num_blocks))
