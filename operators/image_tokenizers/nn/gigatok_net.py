"""GigaTok: convolutions, a transformer, a codebook, and the way back.

Parameter names are those of the published files.

Shapes: B batch, C channels of the map, h w its sides, P = h * w its positions, L latents,
T tokens of any kind, D width of a transformer, K heads, d width of a head, E of a code.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from operators.image_tokenizers.nn.cnn import CNNDecoder, CNNEncoder
from operators.image_tokenizers.nn.gigatok_arch import GigaTokArch, TransformerArch
from operators.image_tokenizers.quantize.vq import VQ, Metric


class GigaTokEncoder(nn.Module):  # type: ignore[misc]
    """Images to latents, and the quantizer they go to."""

    def __init__(self, arch: GigaTokArch) -> None:
        super().__init__()
        self.encoder = CNNEncoder(arch.cnn)
        if arch.num_latents is None:
            self.s2dencoder = GridEncoder(arch)
        else:
            self.s2to1encoder = LatentEncoder(arch)
        self.quant_conv = nn.Conv2d(arch.cnn.z_channels, arch.code_dim, 1)
        self.quantize = _quantizer(arch)
        self._is_grid = arch.num_latents is None

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return latents [B, T, E]."""
        map_BPC = self.encoder(images_BCHW).flatten(2).transpose(1, 2)
        transformer = self.s2dencoder if self._is_grid else self.s2to1encoder
        return pointwise(self.quant_conv, transformer(map_BPC))


class GigaTokDecoder(nn.Module):  # type: ignore[misc]
    """Ids to images."""

    def __init__(self, arch: GigaTokArch) -> None:
        super().__init__()
        self.quantize = _quantizer(arch)
        self.post_quant_conv = nn.Conv2d(arch.code_dim, arch.cnn.z_channels, 1)
        if arch.num_latents is None:
            self.s2ddecoder = GridDecoder(arch)
        else:
            self.s1to2decoder = LatentDecoder(arch)
        self.decoder = CNNDecoder(arch.cnn)
        self._is_grid = arch.num_latents is None

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return images [B, 3, H, W]."""
        return self.decoder(self.map_of(ids_BT))

    def map_of(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return the map [B, C, h, w] that the convolutions draw."""
        latents_BTC = pointwise(self.post_quant_conv, self.quantize.decode(ids_BT))
        found: torch.Tensor = (self.s2ddecoder if self._is_grid else self.s1to2decoder)(latents_BTC)
        return found


class Attention(nn.Module):  # type: ignore[misc]
    """Multi-head attention with the parameters of ``torch.nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        self._heads = heads

    def forward(
        self, query_BTD: torch.Tensor, key_BTD: torch.Tensor, value_BTD: torch.Tensor
    ) -> torch.Tensor:
        """Return [B, T, D], T of the query; keys and values may be of other tokens."""
        width = self.out_proj.in_features
        inputs = (query_BTD, key_BTD, value_BTD)
        # Inputs that are the same share a product.
        shared = 3 if query_BTD is key_BTD is value_BTD else 2 if query_BTD is key_BTD else 1
        parts = (shared * width, *(width for _ in range(3 - shared)))
        weights, biases = self.in_proj_weight.split(parts), self.in_proj_bias.split(parts)
        products = [
            F.linear(*each) for each in zip(inputs[shared - 1 :], weights, biases, strict=True)
        ]
        projected = [*products[0].split(width, dim=-1), *products[1:]]
        heads_BKTd = [x.unflatten(2, (self._heads, -1)).transpose(1, 2) for x in projected]
        out_BKTd = F.scaled_dot_product_attention(*heads_BKTd)
        return self.out_proj(out_BKTd.transpose(1, 2).flatten(2))


class QueryLayer(nn.Module):  # type: ignore[misc]
    """DETR's decoder layer with norms in front: tokens attend to each other, then to a memory.

    Positions are added to queries and keys of every attention, not to values; the memory is
    taken as it is, without a norm.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.multihead_attn = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self,
        x_BTD: torch.Tensor,
        position_1TD: torch.Tensor,
        memory_BSD: torch.Tensor,
        keys_BSD: torch.Tensor,
    ) -> torch.Tensor:
        """Return [B, T, D]; ``keys_BSD`` is the memory with its positions."""
        normed = self.norm1(x_BTD)
        placed = normed + position_1TD
        x_BTD = x_BTD + self.self_attn(placed, placed, normed)
        x_BTD = x_BTD + self.multihead_attn(self.norm2(x_BTD) + position_1TD, keys_BSD, memory_BSD)
        return x_BTD + self.linear2(F.gelu(self.linear1(self.norm3(x_BTD))))


class PlainLayer(nn.Module):  # type: ignore[misc]
    """Attention and MLP with norms in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return [B, T, D]."""
        normed = self.norm1(x_BTD)
        x_BTD = x_BTD + self.self_attn(normed, normed, normed)
        return x_BTD + self.linear2(F.gelu(self.linear1(self.norm2(x_BTD))))


class _Trunk(nn.Module):  # type: ignore[misc]
    """What the four transformers share."""

    def __init__(
        self, arch: GigaTokArch, size: TransformerArch, layer: type[nn.Module], conv_out: nn.Module
    ) -> None:
        super().__init__()
        self.ln_pre = nn.LayerNorm(arch.cnn.z_channels)
        self.positional_embedding = _table(arch.grid**2, size.width)
        self.transformer = nn.ModuleList(layer(size.width, size.heads) for _ in range(size.layers))
        self.ln_post = nn.LayerNorm(size.width)
        self.conv_out = conv_out
        self._grid = arch.grid

    @property
    def _position_1PD(self) -> torch.Tensor:  # noqa: N802 - a shape
        return self.positional_embedding.transpose(0, 1)

    def _on_grid(self, x_BPD: torch.Tensor) -> torch.Tensor:
        if isinstance(self.transformer[0], PlainLayer):
            x_BPD = x_BPD + self._position_1PD
            for layer in self.transformer:
                x_BPD = layer(x_BPD)
            return x_BPD
        for layer in self.transformer:  # the memory is what the layer is given
            x_BPD = layer(x_BPD, self._position_1PD, x_BPD, x_BPD + self._position_1PD)
        return x_BPD

    def _to_latents(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return pointwise(self.conv_out, self.ln_post(x_BTD))

    def _to_map(self, x_BPD: torch.Tensor) -> torch.Tensor:
        map_BDhw = self.ln_post(x_BPD).transpose(1, 2).unflatten(2, (self._grid, self._grid))
        return self.conv_out(map_BDhw)


class LatentEncoder(_Trunk):
    """A map to L latents: pools of the map attend to it."""

    def __init__(self, arch: GigaTokArch) -> None:
        width = arch.encoder.width
        super().__init__(arch, arch.encoder, QueryLayer, nn.Conv2d(width, arch.cnn.z_channels, 1))
        self.encoder_embed = nn.Linear(arch.cnn.z_channels, width)
        self.latent_token_positional_embedding = _table(arch.num_tokens, width)
        self.global_proj = nn.Linear(width, width)

    def forward(self, map_BPC: torch.Tensor) -> torch.Tensor:
        """Return latents [B, L, C]."""
        memory_BPD = self.encoder_embed(self.ln_pre(map_BPC))
        keys_BPD = memory_BPD + self._position_1PD
        position_1LD = self.latent_token_positional_embedding.transpose(0, 1)
        map_BhwD = memory_BPD.unflatten(1, (self._grid, self._grid))
        x_BLD = self.global_proj(pools(map_BhwD, position_1LD.shape[1]))
        for layer in self.transformer:
            x_BLD = layer(x_BLD, position_1LD, memory_BPD, keys_BPD)
        return self._to_latents(x_BLD)


class LatentDecoder(_Trunk):
    """L latents to a map: every position starts from the first latent, and attends to all."""

    def __init__(self, arch: GigaTokArch) -> None:
        width = arch.decoder.width
        conv_out = nn.Conv2d(width, arch.cnn.z_channels, 3, padding=1)
        super().__init__(arch, arch.decoder, QueryLayer, conv_out)
        self.decoder_embed = nn.Linear(arch.cnn.z_channels, width)
        self.latent_token_positional_embedding = _table(arch.num_tokens, width)

    def forward(self, latents_BLC: torch.Tensor) -> torch.Tensor:
        """Return a map [B, C, h, w]."""
        memory_BLD = self.decoder_embed(self.ln_pre(latents_BLC))
        keys_BLD = memory_BLD + self.latent_token_positional_embedding.transpose(0, 1)
        x_BPD = memory_BLD[:, :1].expand(-1, self._grid**2, -1)
        for layer in self.transformer:
            x_BPD = layer(x_BPD, self._position_1PD, memory_BLD, keys_BLD)
        return self._to_map(x_BPD)


class GridEncoder(_Trunk):
    """A map to one latent for each of its positions."""

    def __init__(self, arch: GigaTokArch) -> None:
        width = arch.encoder.width
        conv_out = nn.Conv2d(width, arch.cnn.z_channels, 1)
        super().__init__(arch, arch.encoder, _grid_layer(arch), conv_out)
        self.encoder_embed = nn.Linear(arch.cnn.z_channels, width)

    def forward(self, map_BPC: torch.Tensor) -> torch.Tensor:
        """Return latents [B, P, C]."""
        return self._to_latents(self._on_grid(self.encoder_embed(self.ln_pre(map_BPC))))


class GridDecoder(_Trunk):
    """One latent for each position to a map."""

    def __init__(self, arch: GigaTokArch) -> None:
        width = arch.decoder.width
        conv_out = nn.Conv2d(width, arch.cnn.z_channels, 3, padding=1)
        super().__init__(arch, arch.decoder, _grid_layer(arch), conv_out)
        self.decoder_embed = nn.Linear(arch.cnn.z_channels, width)

    def forward(self, latents_BPC: torch.Tensor) -> torch.Tensor:
        """Return a map [B, C, h, w]."""
        return self._to_map(self._on_grid(self.decoder_embed(self.ln_pre(latents_BPC))))


def pools(map_BhwD: torch.Tensor, num: int) -> torch.Tensor:
    """Return [B, num, D]: means of the map and of ever smaller blocks of it.

    The whole map comes twice, then its halves (left and right), quarters, eighths and so on up to
    ``num / 2`` blocks, each level row-major.

    Args:
        map_BhwD: A square map.
        num: A power of two.
    """
    levels = [map_BhwD.mean(dim=(1, 2))[:, None]]
    for level in range(num.bit_length() - 1):
        rows, columns = 2 ** (level // 2), 2 ** ((level + 1) // 2)
        blocks = map_BhwD.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
        levels.append(blocks.mean(dim=(2, 4)).flatten(1, 2))
    return torch.cat(levels, dim=1)


def pointwise(conv: nn.Conv2d, rows_BTC: torch.Tensor) -> torch.Tensor:
    """Apply a 1 x 1 convolution to rows."""
    return F.linear(rows_BTC, conv.weight.flatten(1), conv.bias)


def _quantizer(arch: GigaTokArch) -> VQ:
    metric: Metric = "cosine" if arch.unit_codes else "euclidean"
    return VQ(arch.codebook_size, arch.code_dim, metric=metric, normalized=arch.unit_codes)


def _grid_layer(arch: GigaTokArch) -> type[nn.Module]:
    return PlainLayer if arch.layer == "TransformerLayer" else QueryLayer


def _table(num: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(num, 1, width))
