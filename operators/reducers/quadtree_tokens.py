"""Quadtree: large squares where an image is plain, small ones where it is not."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.reducers.base import Reducer, ReducerConfig, Reduction, Tokens, merge
from operators.reducers.pooling import square_side

if TYPE_CHECKING:
    import torch

IMAGE: Mapping[str, FieldSpec] = {"image": FieldSpec("uint8", (None, None, 3))}


class QuadtreeTokensConfig(ReducerConfig):
    """What a job may say about the quadtree."""

    name: Literal["quadtree_tokens"] = "quadtree_tokens"
    split_by: Annotated[
        Literal["features", "entropy"],
        Field(
            description="What a square is divided for. features: their variance in it, as a share "
            "of that of the image. entropy: that of the grey values of its pixels, in bits; reads "
            "`image`, the square picture that was encoded."
        ),
    ] = "features"
    threshold: Annotated[
        float, Field(gt=0, description="A square of more than this is divided into four.")
    ] = 0.5
    largest: Annotated[
        int, Field(ge=2, description="Side of the largest squares, tokens; a power of two.")
    ] = 8
    bins: Annotated[
        int | None,
        Field(ge=2, le=256, description="Of grey values, for entropy, of equal width; 32 if null."),
    ] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.largest & (self.largest - 1):
            raise ValueError(f"largest={self.largest} is no power of two")
        if self.bins is not None and self.split_by != "entropy":
            raise ValueError(f"bins={self.bins} is for split_by: entropy; leave it out")
        return self


class QuadtreeTokens(Reducer[QuadtreeTokensConfig]):
    """Averages the tokens of squares, which are divided until each is plain enough.

    A grid is cut into squares of ``largest`` tokens a side; one whose measure is above the
    threshold is divided into four, down to single tokens. Measures: the mean squared distance of
    the features from the square's mean, divided by that of all the image's; or the entropy of the
    grey values (0.299 R + 0.587 G + 0.114 B) of its pixels, with log2 of ``bins`` at most. How many
    tokens are left depends on the image. Rows: by the first token of each square, in raster order.

    Padding has no part in the features of a square, nor in its variance; pixels are taken as they
    are. No weights, no paper of its own: a baseline that spends tokens where there is detail.
    Checked: a recursion over squares, both measures.
    """

    Config = QuadtreeTokensConfig
    paper = "none: a baseline"
    is_adaptive = True
    needs_grid = True

    @property
    def further_inputs(self) -> Mapping[str, FieldSpec]:
        """The picture where entropy is asked for."""
        return IMAGE if self.config.split_by == "entropy" else {}

    def bind(self, fields: Mapping[str, FieldSpec]) -> None:
        """Take grid and picture from the job.

        Raises:
            ContractError: the tokens are no such grid, or the picture does not fit it.
        """
        super().bind(fields)
        image, features = fields.get("image"), fields.get("features")
        if not self.further_inputs or image is None or features is None:
            return
        if len(features.shape) == 3:
            raise ContractError(
                f"quadtree_tokens: entropy is of one picture, but features {features} are of crops",
                hint="set split_by: features",
            )
        height, width = image.shape[0], image.shape[1]
        side = square_side(self._num_tokens, "quadtree_tokens")
        if height is None or height != width or height % side:
            raise ContractError(
                f"quadtree_tokens: image {image} is no square of {side} x {side} equal patches",
                hint="read the very picture that the encoder reads",
            )

    def num_kept(self, num_tokens: int) -> int:
        """Return all tokens: the most that can be left.

        Raises:
            ContractError: the grid is no square, or not cut evenly.
        """
        side = square_side(num_tokens, "quadtree_tokens")
        if side % self.config.largest:
            fits = side & -side
            raise ContractError(
                f"quadtree_tokens: largest={self.config.largest} does not divide {side} x {side} "
                "tokens",
                hint=f"set largest to 2..{fits}" if fits > 1 else "use a grid of an even side",
            )
        return num_tokens

    def reduce(self, tokens: Tokens) -> Reduction:
        """Divide squares from the largest to the smallest."""
        import torch

        count, num = tokens.features.shape[:2]
        side = math.isqrt(num)
        device = tokens.features.device
        place = torch.arange(num, device=device).view(side, side)
        owner = place.expand(count, -1, -1)  # the first token of the square that each is in
        is_open = torch.ones((count, side, side), dtype=torch.bool, device=device)
        size = self.config.largest
        measures = self._measures(tokens, side)
        while size > 1:
            plain = measures[size] <= self.config.threshold
            first = place[::size, ::size].expand(count, -1, -1)
            is_plain, first = (
                grid.repeat_interleave(size, 1).repeat_interleave(size, 2)
                for grid in (plain, first)
            )
            owner = torch.where(is_open & is_plain, first, owner)
            is_open &= ~is_plain
            size //= 2
        owner = owner.flatten(1)
        is_first = owner == place.flatten()
        token_map = (is_first.cumsum(dim=1) - 1).gather(1, owner)
        if tokens.valid is None:  # so that squares of nothing count as none
            tokens = replace(tokens, valid=torch.ones_like(is_first))
        return merge(tokens, token_map, num)

    def _measures(self, tokens: Tokens, side: int) -> "dict[int, torch.Tensor]":
        """Return [B, S / size, S / size] of each size of squares."""
        import torch

        sizes = [1 << k for k in range(1, self.config.largest.bit_length())]
        if self.config.split_by == "entropy":
            counts = _histograms(tokens.more["image"], side, self.config.bins or 32)
            return {size: _entropy(_summed(counts, size)) for size in sizes}
        real = torch.ones_like(tokens.sizes) if tokens.valid is None else tokens.valid.float()
        features = tokens.features.float() * real[..., None]
        number = real.sum(dim=1)[:, None, None].clamp(min=1)
        mean = features.sum(dim=1, keepdim=True) / number
        features = (features - mean) * real[..., None]  # so that squares lose no digits
        of_one = features.square().sum(dim=2).unflatten(1, (side, side, 1))
        total = of_one.sum(dim=(1, 2)) / number[:, 0]
        grid, amounts = features.unflatten(1, (side, side)), real.unflatten(1, (side, side, 1))
        found = {}
        for size in sizes:
            amount = _summed(amounts, size).clamp(min=1)
            square = (_summed(grid, size) / amount).square().sum(dim=3)
            spread = (_summed(of_one, size) / amount)[..., 0] - square
            found[size] = spread.clamp(min=0) / total.clamp(min=1e-12)[:, None]
        return found


def _summed(grid: "torch.Tensor", size: int) -> "torch.Tensor":
    """Return [B, S / size, S / size, C]: sums over squares of [B, S, S, C]."""
    cut = grid.unflatten(1, (-1, size)).unflatten(3, (-1, size))
    found: torch.Tensor = cut.sum(dim=(2, 4))
    return found


def _histograms(image: "torch.Tensor", side: int, bins: int) -> "torch.Tensor":
    """Return float32 [B, S, S, bins]: pixels of each grey, by token, of uint8 [B, H, W, 3]."""
    import torch

    weights = torch.tensor([299, 587, 114], device=image.device)
    grey = (image.long() * weights).sum(dim=3) // 1000
    patch = image.shape[1] // side
    cut = (grey * bins // 256).unflatten(1, (side, patch)).unflatten(3, (side, patch))
    flat = cut.permute(0, 1, 3, 2, 4).flatten(3)
    found = [(flat == value).sum(dim=3) for value in range(bins)]
    return torch.stack(found, dim=3).float()


def _entropy(counts: "torch.Tensor") -> "torch.Tensor":
    """Return the entropy, bits, of counts [..., bins]."""
    import torch

    shares = counts / counts.sum(dim=-1, keepdim=True)
    bits: torch.Tensor = -torch.special.xlogy(shares, shares).sum(dim=-1) / math.log(2)
    return bits
