"""SigLIP's vision tower (Zhai et al., 2023, arXiv:2303.15343), of layers of transformers."""

import torch
from torch import nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from operators.image_tokenizers.nn.siglip_arch import SiglipArch


class SiglipTower(nn.Module):  # type: ignore[misc]
    """Images [B, 3, H, W] in [-1, 1] to what the first layers make of their patches.

    Parameters are called as in ``vision_model`` of transformers 4. Its own class is not used since
    that has the whole tower, and tables that are in no checkpoint.

    Args:
        arch: Sizes of the whole tower.
        num_layers: How many layers to run.
    """

    def __init__(self, arch: SiglipArch, num_layers: int) -> None:
        super().__init__()
        patches = nn.Conv2d(3, arch.width, arch.patch, stride=arch.patch)
        positions = nn.Embedding(arch.grid**2, arch.width)
        self.embeddings = nn.ModuleDict(
            {"patch_embedding": patches, "position_embedding": positions}
        )
        self.encoder = SiglipEncoder(
            SiglipVisionConfig(
                hidden_size=arch.width,
                intermediate_size=arch.hidden,
                num_hidden_layers=num_layers,
                num_attention_heads=arch.num_heads,
                attn_implementation="sdpa",
            )
        )

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return [B, N, width], patches row-major; after no norm."""
        patches_BNW = self.embeddings["patch_embedding"](images_BCHW).flatten(2).transpose(1, 2)
        tokens_BNW = patches_BNW + self.embeddings["position_embedding"].weight
        for layer in self.encoder.layers:
            tokens_BNW = layer(tokens_BNW, attention_mask=None)
        return tokens_BNW
