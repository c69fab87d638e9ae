"""TokenFlow."""

from collections.abc import Mapping

import torch

from tests.golden_tokenizer import GoldenModel


def latents(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    pixels = outputs["pixel_feature"].flatten(2).transpose(1, 2)
    return torch.cat([outputs["semantic_feature"], pixels], dim=2)


MODELS = (
    GoldenModel(
        "tokenflow_siglip",
        "tokenflow",
        file="tokenflow_siglip_32k.pt",
        under="ema",
        prequant=latents,
    ),
)
