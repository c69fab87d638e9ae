"""The tokenizers with rows of latents: TiTok, legacy, later and continuous, and One-D-Piece."""

from collections.abc import Mapping
from typing import Any

import torch

from tests.golden_tokenizer import GoldenModel


def with_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Spell out the sizes that the fixture adds to the authors' tables."""
    model = dict(config["model"]["vq_model"])
    for part in ("vit_enc_model_size", "vit_dec_model_size"):
        model[part] = config["_fixture"]["size_table"][model[part]]
    model["pixel_decoder"] = config["_fixture"]["pixel_decoder"]
    return {**config, "model": {**config["model"], "vq_model": model}}


def latents(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return outputs["prequant"][:, :, 0].transpose(1, 2)


MODELS = tuple(
    GoldenModel(folder, operator, config=with_sizes, prequant=latents)
    for folder, operator in (
        ("titok_legacy", "titok"),
        ("titok_vq_nonlegacy", "titok"),
        ("titok_vae", "titok"),
        ("one_d_piece", "one_d_piece"),
    )
)


def text_aware(model: GoldenModel) -> dict[str, torch.Tensor]:
    """Return the model's weights with what TA-TiTok adds to them."""
    width = model.tensors("weights")["decoder.mask_token"].shape[-1]
    random = torch.Generator().manual_seed(0)
    return {
        **model.tensors("weights"),
        "decoder.text_guidance_proj.weight": torch.randn(width, 768, generator=random) / 28,
        "decoder.text_guidance_proj.bias": torch.randn(width, generator=random),
        "decoder.text_guidance_positional_embedding": torch.randn(77, width, generator=random),
        "quantize.embed_prob": torch.zeros(128),
    }
