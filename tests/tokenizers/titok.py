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
