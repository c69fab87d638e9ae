"""Tokenizers whose ids lie on a grid over an image of any size."""

from abc import abstractmethod
from typing import TYPE_CHECKING, TypeVar

from operators.errors import ContractError
from operators.image_tokenizers.base import ArchT, ImageTokenizer, ImageTokenizerConfig
from operators.image_tokenizers.layout import TokenLayout

if TYPE_CHECKING:
    import torch

ConfigT = TypeVar("ConfigT", bound=ImageTokenizerConfig)


class GridTokenizer(ImageTokenizer[ConfigT, ArchT]):
    """Convolutional: takes the images of the job, whatever their size, a multiple of the stride."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels per position, along one side."""

    @property
    def default_side(self) -> int:
        """Side of the images where the job does not say: that of the published models."""
        return 256

    @property
    @abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """Ids per stream."""

    @property
    def image_sides(self) -> tuple[int, int]:
        """Those of the job's images.

        Raises:
            ContractError: they are no multiples of the stride.
        """
        sides = self.given_sides or (self.default_side, self.default_side)
        if any(side % self.stride for side in sides):
            raise ContractError(
                f"{self.config.name}: images of {sides[0]} x {sides[1]}, expected multiples of "
                f"{self.stride} pixels",
                hint="resize or crop them to such a size first, say "
                f"{max(side // self.stride * self.stride for side in sides) or self.stride}",
            )
        return sides

    @property
    def layout(self) -> TokenLayout:
        """A row-major grid."""
        height, width = (side // self.stride for side in self.image_sides)
        return TokenLayout(height * width, self.codebook_sizes, grid=(height, width))

    def decoder_ids(self, ids: "torch.Tensor") -> "torch.Tensor":
        """Return ids [B, h, w(, S)]."""
        grid = self.layout.grid
        assert grid is not None
        return ids.unflatten(1, grid)
