"""Sizes of the SEED-2 tokenizer, and what its checkpoint calls its parameters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from operators.errors import SetupError
from operators.image_tokenizers.published_config import ConfigSection, read_config


@dataclass(frozen=True, slots=True)
class Seed2Arch:
    """All sizes; the defaults are those of the published model.

    Attributes:
        side: Of the images, pixels.
        patch: Side of a patch, pixels.
        width: Of the vision transformer.
        depth: Its blocks.
        heads: Of its attention.
        hidden: Width inside its MLPs.
        queries: Tokens per image.
        query_width: Of the Q-Former.
        query_depth: Its layers.
        query_heads: Of its attention.
        query_hidden: Width inside its MLPs.
        cross_every: Of so many layers the first sees the image.
        codebook_size: K.
        code_dim: Width of a codebook entry.
        embedder_depth: Blocks between ids and the image embedding.
        embedding: Width of the image embedding.
    """

    side: int = 224
    patch: int = 14
    width: int = 1408
    depth: int = 39
    heads: int = 16
    hidden: int = 6144
    queries: int = 32
    query_width: int = 768
    query_depth: int = 12
    query_heads: int = 12
    query_hidden: int = 3072
    cross_every: int = 2
    codebook_size: int = 8192
    code_dim: int = 32
    embedder_depth: int = 4
    embedding: int = 1024


def arch_of_config(config: Mapping[str, Any], where: str) -> Seed2Arch:
    """Read the arguments of the authors' quantizer, vision transformer and Q-Former.

    Raises:
        SetupError: they are of another model.
    """
    model = read_config(config, where, "Blip2QformerQuantizer")
    vision, qformer = (read_config(config, where, name) for name in ("vision", "qformer"))
    model.expect("use_qformer_image", False)
    vision.expect("qkv_bias", True)
    vision.expect("norm_eps", 1e-6)
    vision.expect("ln_vision_eps", 1e-5)
    qformer.expect("layer_norm_eps", 1e-12)
    qformer.expect("hidden_act", "gelu")
    width = vision.integer("embed_dim")
    return Seed2Arch(
        side=model.integer("img_size", 224),
        patch=vision.integer("patch_size", 14),
        width=width,
        depth=vision.integer("depth"),
        heads=vision.integer("num_heads"),
        hidden=int(width * _ratio(vision, where)),
        queries=model.integer("num_query_token", 32),
        query_width=qformer.integer("hidden_size"),
        query_depth=qformer.integer("num_hidden_layers"),
        query_heads=qformer.integer("num_attention_heads"),
        query_hidden=qformer.integer("intermediate_size"),
        cross_every=model.integer("cross_attention_freq", 2),
        codebook_size=model.integer("n_embed", 8192),
        code_dim=model.integer("codebook_embed_dim", 32),
        embedder_depth=model.integer("decode_depth", 4),
        embedding=model.integer("image_features_dim", 1024),
    )


def _ratio(vision: ConfigSection, where: str) -> float:
    found = vision.get("mlp_ratio", 4.3637)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise SetupError(f"{where}: vision.mlp_ratio is {found!r}, supported: a number")
    return float(found)


_BERT = "Qformer.bert."
_LAYER = rf"{_BERT}encoder.layer.\1."
_NAMES = tuple(
    (re.compile(own), stored)
    for own, stored in (
        # The library's vision transformer.
        (r"^visual_encoder\.post_layernorm\.", "ln_vision."),
        (r"^visual_encoder\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
        (r"^visual_encoder\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
        (r"^visual_encoder\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
        (r"^visual_encoder\.encoder\.layers\.", "visual_encoder.blocks."),
        (r"\.self_attn\.qkv\.(q_bias|v_bias)$", r".attn.\1"),
        (r"\.self_attn\.qkv\.weight$", ".attn.qkv.weight"),
        (r"\.self_attn\.projection\.", ".attn.proj."),
        (r"\.layer_norm([12])\.", r".norm\1."),
        # The Q-Former of ``qformer.py``.
        (r"^qformer\.norm\.", f"{_BERT}embeddings.LayerNorm."),
        (r"^qformer\.layers\.(\d+)\.fc1\.", f"{_LAYER}intermediate_query.dense."),
        (r"^qformer\.layers\.(\d+)\.fc2\.", f"{_LAYER}output_query.dense."),
        (r"^qformer\.layers\.(\d+)\.norm\.", f"{_LAYER}output_query.LayerNorm."),
        (
            r"^qformer\.layers\.(\d+)\.(cross)?attention\.dense\.",
            rf"{_LAYER}\2attention.output.dense.",
        ),
        (
            r"^qformer\.layers\.(\d+)\.(cross)?attention\.norm\.",
            rf"{_LAYER}\2attention.output.LayerNorm.",
        ),
        (r"^qformer\.layers\.(\d+)\.(cross)?attention\.", rf"{_LAYER}\2attention.self."),
    )
)


def stored_name(name: str) -> str:
    """Return the checkpoint's name of a parameter."""
    for own, stored in _NAMES:
        name = own.sub(stored, name)
    return name
