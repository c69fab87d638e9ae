"""Pre-norm vision transformer with latent tokens: images to latents, and latents to patches.

Shapes: B batch, T tokens, W width, H heads, g patches along a side, P = g * g patches, L latents,
C channels of a latent.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from operators.image_tokenizers.nn.latent_vit_arch import ViTSize

_MLP_RATIO = 4


class LatentEncoder(nn.Module):  # type: ignore[misc]
    """Reads an image into latents: the sequence is a class token, the patches, the latents.

    Args:
        size: Of the trunk.
        patch: Patch side, pixels.
        grid: g.
        num_latents: L.
        channels: C.
        interleaved: The last layer takes the latents' [L, W] values as if they were [W, L], so that
            every output mixes all latents: a slip that some published models are trained with.
    """

    def __init__(
        self,
        size: ViTSize,
        *,
        patch: int,
        grid: int,
        num_latents: int,
        channels: int,
        interleaved: bool,
    ) -> None:
        super().__init__()
        width = size.width
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.positional_embedding = nn.Parameter(torch.empty(grid**2 + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(num_latents, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Trunk(size)
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, channels, 1)
        self.num_latents, self.interleaved = num_latents, interleaved

    def forward(self, images: torch.Tensor, latents_LW: torch.Tensor) -> torch.Tensor:
        """Return latents [B, L, C].

        Args:
            images: [B, 3, H, W].
            latents_LW: What the latents start as.
        """
        patches_BPW = self.patch_embed(images).flatten(2).transpose(1, 2)
        start_BLW = latents_LW + self.latent_token_positional_embedding
        x_BTW = torch.cat(
            [
                _rows(self.class_embedding + self.positional_embedding[:1], patches_BPW),
                patches_BPW + self.positional_embedding[1:],
                _rows(start_BLW, patches_BPW),
            ],
            dim=1,
        )
        read_BLW = self.transformer(self.ln_pre(x_BTW), slice(-self.num_latents, None))
        return self.project(self.ln_post(read_BLW))

    def project(self, read_BLW: torch.Tensor) -> torch.Tensor:
        """Return [B, L, C] of what the trunk has read into the latents."""
        if self.interleaved:
            read_BLW = read_BLW.reshape(len(read_BLW), -1, self.num_latents).transpose(1, 2)
        return F.linear(read_BLW, self.conv_out.weight.flatten(1), self.conv_out.bias)


class LatentDecoder(nn.Module):  # type: ignore[misc]
    """Draws a map of patches from latents: a class token, g * g mask tokens, the latents.

    Fewer latents than L make a shorter sequence. Subclasses add what turns the map into an image.

    Args:
        size: Of the trunk.
        grid: g.
        num_latents: L, at most.
        channels: C.
    """

    def __init__(self, size: ViTSize, *, grid: int, num_latents: int, channels: int) -> None:
        super().__init__()
        width = size.width
        self.decoder_embed = nn.Linear(channels, width)
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.positional_embedding = nn.Parameter(torch.empty(grid**2 + 1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(num_latents, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Trunk(size)
        self.ln_post = nn.LayerNorm(width)
        self.grid = grid

    def draw(
        self, latents_BLC: torch.Tensor, context_BTW: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return a map [B, W, g, g].

        Args:
            latents_BLC: As many as wanted, up to L.
            context_BTW: More tokens to look at, after the latents.
        """
        embedded_BLW = self.decoder_embed(latents_BLC)
        embedded_BLW = embedded_BLW + self.latent_token_positional_embedding[: latents_BLC.shape[1]]
        blank_PW = self.mask_token[0].expand(self.grid**2, -1)
        fixed_TW = torch.cat([self.class_embedding, blank_PW]) + self.positional_embedding
        tokens = [_rows(fixed_TW, embedded_BLW), embedded_BLW]
        if context_BTW is not None:
            tokens.append(context_BTW)
        patches = slice(1, 1 + self.grid**2)
        drawn_BPW = self.ln_post(self.transformer(self.ln_pre(torch.cat(tokens, dim=1)), patches))
        return drawn_BPW.transpose(1, 2).unflatten(2, (self.grid, self.grid))


class Trunk(nn.ModuleList):  # type: ignore[misc]
    """Pre-norm blocks with full attention and biases everywhere."""

    def __init__(self, size: ViTSize) -> None:
        super().__init__(Block(size.width, size.heads) for _ in range(size.layers))

    def forward(self, x_BTW: torch.Tensor, wanted: slice) -> torch.Tensor:
        """Return the ``wanted`` tokens; the last block computes no others."""
        *early, last = self
        for block in early:
            x_BTW = block(x_BTW)
        return last(x_BTW, wanted)


class Block(nn.Module):  # type: ignore[misc]
    """``x += attn(ln_1(x))`` and ``x += mlp(ln_2(x))``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x_BTW: torch.Tensor, wanted: slice = slice(None)) -> torch.Tensor:
        """Return the ``wanted`` tokens, having looked at all."""
        x_BtW = x_BTW[:, wanted] + self.attn(self.ln_1(x_BTW), wanted)
        return x_BtW + self.mlp(self.ln_2(x_BtW))


class Attention(nn.Module):  # type: ignore[misc]
    """Multi-head attention, its projections stored in one as torch's own module does."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        self._width, self._heads = width, heads

    def forward(self, x_BTW: torch.Tensor, wanted: slice) -> torch.Tensor:
        """Return what the ``wanted`` tokens see in all."""
        if wanted == slice(None):
            query, key, value = F.linear(x_BTW, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            split = (self._width, 2 * self._width)
            weights, biases = self.in_proj_weight.split(split), self.in_proj_bias.split(split)
            query = F.linear(x_BTW[:, wanted], weights[0], biases[0])
            key, value = F.linear(x_BTW, weights[1], biases[1]).chunk(2, -1)
        heads = (
            part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in (query, key, value)
        )
        seen_BHtd = F.scaled_dot_product_attention(*heads)
        return self.out_proj(seen_BHtd.transpose(1, 2).flatten(2))


class MLP(nn.Module):  # type: ignore[misc]
    """Two layers with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, _MLP_RATIO * width)
        self.c_proj = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, x_BTW: torch.Tensor) -> torch.Tensor:
        """Return [B, T, W]."""
        return self.c_proj(F.gelu(self.c_fc(x_BTW)))


def _rows(tokens_TW: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return tokens_TW.to(like.dtype).expand(len(like), -1, -1)
