"""4M's tokenizers of RGB, and of what is not an image (``tests/parity/test_fourm.py``)."""

from collections.abc import Mapping
from typing import Any

import torch

from tests.golden_tokenizer import GoldenModel


def published_config(golden: Mapping[str, Any]) -> dict[str, Any]:
    """Make config.json of a fixture's: one flat object."""
    return {**golden["VQVAE"], **golden["vit"], "enc_type": "vit_b_enc", "dec_type": "vit_b_dec"}


def grid_latents(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return outputs["prequant"].flatten(2).transpose(1, 2)


MODELS = (GoldenModel("fourm_vqvae", "fourm", config=published_config, prequant=grid_latents),)
