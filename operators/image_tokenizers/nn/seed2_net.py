"""Encoder of the SEED-2 tokenizer, and the way from its ids to an image embedding.

Shapes: B batch, Q queries, D width of a query, T tokens of the image, C their width, L width of a
latent, E width of the image embedding.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from operators.image_tokenizers.nn.qformer import QFormer
from operators.image_tokenizers.nn.seed2_arch import Seed2Arch
from operators.image_tokenizers.nn.vit import Block
from operators.image_tokenizers.quantize.vq import VQ

_CAUSAL_QUERIES = 32
"""The authors' code masks exactly as many queries, and no other number."""
_VISION_NORM_EPS = 1e-5
_EMBEDDER_HEADS = 12
_DOWN = (256, 128, 32)


class Seed2Encoder(nn.Module):  # type: ignore[misc]
    """Images to latents of ordered queries, and the quantizer they go to."""

    def __init__(self, arch: Seed2Arch) -> None:
        super().__init__()
        self.visual_encoder = _vision(arch)
        self.query_tokens = nn.Parameter(torch.empty(1, arch.queries, arch.query_width))
        self.qformer = QFormer(
            arch.query_width,
            arch.query_depth,
            arch.query_heads,
            arch.query_hidden,
            context_dim=arch.width,
            cross_every=arch.cross_every,
            causal=arch.queries == _CAUSAL_QUERIES,
        )
        self.encode_task_layer = _two_layers(arch.query_width, arch.query_width, arch.code_dim)
        self.quantize = VQ(arch.codebook_size, arch.code_dim)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return latents [B, Q, L]."""
        return self.encode_task_layer(self.queries_of(self.tokens_of(images_BCHW)))

    def tokens_of(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return what the vision transformer makes of images, [B, T, C]."""
        vision = self.visual_encoder
        x_BTC = vision.embeddings(images_BCHW)
        for layer in vision.encoder.layers:
            x_BTC = layer(x_BTC)
        return vision.post_layernorm(x_BTC)

    def queries_of(self, image_BTC: torch.Tensor) -> torch.Tensor:
        """Return what the queries gather of it, [B, Q, D]."""
        return self.qformer(self.query_tokens, image_BTC.to(self.query_tokens.dtype))


class Seed2Embedder(nn.Module):  # type: ignore[misc]
    """Ids to the image embedding that the authors' unCLIP model draws from."""

    def __init__(self, arch: Seed2Arch) -> None:
        super().__init__()
        dim = arch.query_width
        self.quantize = VQ(arch.codebook_size, arch.code_dim)
        self.decode_task_layer = _two_layers(arch.code_dim, arch.code_dim, dim)
        self.pos_embed_image = nn.Parameter(torch.empty(1, arch.queries, dim))
        self.blocks_image = nn.ModuleList(
            Block(dim, _EMBEDDER_HEADS, 4 * dim) for _ in range(arch.embedder_depth)
        )
        down: list[nn.Module] = []
        for before, after in zip((dim, *_DOWN), _DOWN, strict=False):
            down += [nn.Linear(before, after, bias=False), nn.ReLU()]
        self.image_down = nn.Sequential(*down[:-1])
        self.distill_image_proj = nn.Linear(arch.queries * _DOWN[-1], arch.embedding)

    def forward(self, ids_BQ: torch.Tensor) -> torch.Tensor:
        """Return [B, E]."""
        x_BQD = self.decode_task_layer(self.quantize.decode(ids_BQ)) + self.pos_embed_image
        for block in self.blocks_image:
            x_BQD = block(x_BQD)
        return self.distill_image_proj(self.image_down(x_BQD).flatten(1))


class _QKV(nn.Linear):  # type: ignore[misc]
    """Queries, keys and values from one matrix; keys have no bias."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.empty(dim))
        self.v_bias = nn.Parameter(torch.empty(dim))

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x_BTC, self.weight, bias)


def _vision(arch: Seed2Arch) -> Any:
    """Build EVA's ViT of BLIP-2, whose last norm has another epsilon here."""
    from transformers import Blip2VisionConfig, Blip2VisionModel

    config = Blip2VisionConfig(
        hidden_size=arch.width,
        intermediate_size=arch.hidden,
        num_hidden_layers=arch.depth,
        num_attention_heads=arch.heads,
        image_size=arch.side,
        patch_size=arch.patch,
        qkv_bias=False,
        attn_implementation="sdpa",
    )
    vision = Blip2VisionModel(config)
    for layer in vision.encoder.layers:
        layer.self_attn.qkv = _QKV(arch.width)
    vision.post_layernorm.eps = _VISION_NORM_EPS
    return vision


def _two_layers(before: int, between: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, between), nn.Tanh(), nn.Linear(between, after))
