"""Sizes of vision transformers with latent tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

from operators.image_tokenizers.published_config import ConfigSection


@dataclass(frozen=True, slots=True)
class ViTSize:
    """Sizes of a trunk.

    Attributes:
        width: Of a token.
        layers: Blocks.
        heads: Of attention; divides ``width``.
    """

    width: int
    layers: int
    heads: int


VIT_SIZES: Mapping[str, ViTSize] = {
    "small": ViTSize(512, 8, 8),
    "base": ViTSize(768, 12, 12),
    "large": ViTSize(1024, 24, 16),
}


def vit_size(config: ConfigSection, name: str) -> ViTSize:
    """Read a size: one of ``VIT_SIZES``, or, which is ours, an object with a size's fields.

    Raises:
        SetupError: it is neither.
    """
    if isinstance(config.get(name), Mapping):
        sizes = config.section(name)
        return ViTSize(*(sizes.integer(field) for field in ("width", "layers", "heads")))
    return VIT_SIZES[config.expect(name, *VIT_SIZES)]
