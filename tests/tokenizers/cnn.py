"""The convolutional tokenizers: LlamaGen, MaskGIT's VQGAN, Open-MAGVIT2, IBQ."""

from collections.abc import Mapping

import torch

from tests.golden_tokenizer import GoldenModel


def grid_latents(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return outputs["prequant"].flatten(2).transpose(1, 2)


MODELS = (
    GoldenModel(
        "llamagen_vq",
        "llamagen_vq",
        file="vq_ds16_c2i.pt",
        under="ema",
        prequant=grid_latents,
    ),
    GoldenModel(
        "maskgit_vq",
        "maskgit_vq",
        file="maskgit-vqgan-imagenet-f16-256.bin",
        prequant=grid_latents,
    ),
    GoldenModel(
        "open_magvit2",
        "open_magvit2",
        file="imagenet_256_L.ckpt",
        under="state_dict",
        prequant=grid_latents,
    ),
    GoldenModel(
        "ibq",
        "ibq",
        file="imagenet256_16384.ckpt",
        under="state_dict",
        prequant=grid_latents,
    ),
)
