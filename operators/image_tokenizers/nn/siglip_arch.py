"""Sizes of SigLIP's vision tower."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SiglipArch:
    """One tower; the defaults are those of google/siglip-so400m-patch14-384.

    Attributes:
        width: Of a token.
        hidden: Width inside the feed-forward layers.
        num_layers: Those that the published tower has.
        num_heads: Of attention.
        side: Of the images, pixels.
        patch: Side of a patch, pixels; what is left over at the right and bottom is not read.
    """

    width: int = 1152
    hidden: int = 4304
    num_layers: int = 27
    num_heads: int = 16
    side: int = 384
    patch: int = 14

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.side // self.patch
