"""GigaTok: a 1D model of the authors' settings, one with its decoder, and the two kinds of 2D."""

from collections.abc import Mapping
from typing import Any

import torch

from tests.golden_tokenizer import GoldenModel


def authors_config(fixture: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put the constructor's arguments where the authors' configurations have them."""
    (name,) = (key for key in fixture if key.endswith("Args"))
    model = {"model_cls": name.removesuffix("Args"), "init_args": fixture[name]}
    return {**{key: value for key, value in fixture.items() if key != name}, "model": model}


def latents(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return outputs["prequant"].flatten(2).transpose(1, 2)


MODELS = tuple(
    GoldenModel(
        folder,
        "gigatok",
        file="VQ_SS256_e100.pt",
        under=under,
        config=authors_config,
        prequant=latents,
    )
    for folder, under in {
        "gigatok_1d": "ema",
        "gigatok_1d_whole": "model",
        "gigatok_2d": "ema",
        "gigatok_2d_query": "state_dict",
    }.items()
)
