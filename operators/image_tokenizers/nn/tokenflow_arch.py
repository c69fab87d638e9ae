"""Sizes of TokenFlow's models."""

from dataclasses import dataclass, field

from operators.image_tokenizers.nn.cnn_arch import CNNArch
from operators.image_tokenizers.nn.siglip_arch import SiglipArch

SIGLIP_SCALES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27)


@dataclass(frozen=True, slots=True)
class TokenFlowArch:
    """One model; the defaults are those of tokenflow_siglip_32k.

    Attributes:
        siglip: The tower that semantic latents are made of; its last layer is not used.
        cnn: The autoencoder of pixels.
        scales: Sides of the grids of ids.
        codebook_size: K, pairs of entries.
        semantic_dim: Width of a semantic entry.
        pixel_dim: Width of a pixel entry.
    """

    siglip: SiglipArch = field(default_factory=SiglipArch)
    cnn: CNNArch = field(default_factory=lambda: CNNArch(attention_levels=(4,)))
    scales: tuple[int, ...] = SIGLIP_SCALES
    codebook_size: int = 32_768
    semantic_dim: int = 32
    pixel_dim: int = 8
