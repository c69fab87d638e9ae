"""HiRED: a budget for each crop from what the thumbnail attends to, then the best of each."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.reducers.base import (
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    in_raster_order,
    select_some,
    top_k,
)
from operators.reducers.crop_grid import CROP_GRID, Places, grid_faults, offsets_of, places_of

if TYPE_CHECKING:
    import torch


class HiREDConfig(ReducerConfig):
    """What a job may say about HiRED."""

    name: Literal["hired"] = "hired"
    keep: Annotated[
        float, Field(gt=0, le=1, description="Share of the tokens of all crops; never more.")
    ] = 0.2
    alpha: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of the budget that the thumbnail gets; of its tokens, the share "
            "1 - alpha decides on the other crops' (variant authors).",
        ),
    ] = 0.5
    variant: Annotated[
        Literal["authors", "paper"],
        Field(
            description="What a crop's budget follows. authors: how many of the thumbnail's best "
            "tokens lie in its horizontal strip, one strip for each crop. paper: the attention of "
            "the region of the thumbnail that the crop shows; reads `crop_grid`."
        ),
    ] = "authors"


class HiRED(Reducer[HiREDConfig]):
    """Keeps the tokens of high class attention, more of them in crops that matter to the thumbnail.

    Reads all crops of an image, thumbnail first, and class attention, summed over the heads, of
    two layers: the first of ``attention_layers`` (the authors': 0) says which part of the thumbnail
    matters, the last (the authors': 22 of 24) which tokens of each crop are kept. Rows: crop after
    crop, each in raster order. The authors' model reads the crops' rows in raster order of the
    whole picture instead, cut to the original's aspect ratio; ``token_map`` gives that order.

    Budgets are cut to whole numbers, so a few tokens less than ``keep`` may be left. The authors'
    strips need tokens that the crops divide; here strips differ by one token where they do not.

    Source: Arif et al., "HiRED", section 4. Checked: the authors' masks, a brute-force oracle.
    """

    Config = HiREDConfig
    paper = "arXiv:2408.10945"
    is_adaptive = True
    needs_grid = True
    needs_crops = True

    @property
    def signals(self) -> tuple[str, ...]:
        """Class attention."""
        return ("cls_attention",)

    @property
    def further_inputs(self) -> Mapping[str, FieldSpec]:
        """The crop grid where regions are asked for."""
        return CROP_GRID if self.config.variant == "paper" else {}

    def check_signal(self, name: str, spec: FieldSpec) -> None:
        """Check that there are two layers."""
        if spec.shape[-3] == 1:
            raise ContractError(
                f"hired: {name} {spec} is of one layer, expected an early and a late one",
                hint="set the encoder's attention_layers to two, such as [0, 22] of 24",
            )

    def num_kept(self, num_tokens: int) -> int:
        """Return all tokens of a crop: the most that can be left.

        Raises:
            ContractError: regions of a thumbnail that is no square.
        """
        if self.config.variant == "paper" and math.isqrt(num_tokens) ** 2 != num_tokens:
            raise ContractError(
                f"hired: {num_tokens} tokens are no square", hint="use square crops"
            )
        return num_tokens

    def faults(self, tokens: Tokens) -> Mapping[int, str]:
        """Name images whose crop grid does not fit."""
        return grid_faults(tokens) if self.further_inputs else {}

    def reduce(self, tokens: Tokens) -> Reduction:
        """Divide the budget, then select by score."""
        import torch

        attention = tokens.signal("cls_attention").sum(dim=2)
        early, late = (tokens.without_padding(attention[:, layer]) for layer in (0, -1))
        budgets = self._budgets(tokens, early)
        order = top_k(late, late.shape[1])
        ranks = torch.empty_like(order)
        ranks.scatter_(1, order, torch.arange(late.shape[1], device=late.device).expand_as(order))
        is_kept = ranks < budgets[:, None]
        if tokens.valid is not None:
            is_kept &= tokens.valid
        return select_some(tokens, in_raster_order(is_kept), is_kept.sum(dim=1))

    def _budgets(self, tokens: Tokens, early: "torch.Tensor") -> "torch.Tensor":
        """Return int64 [B]: how many tokens of each crop may be left."""
        import torch

        num, alpha = early.shape[1], self.config.alpha
        crops = np.diff(offsets_of(tokens))
        total = (crops * num * self.config.keep).astype(np.int64)
        thumbnails = np.minimum((total * alpha).astype(np.int64), num)
        others = np.minimum(total - thumbnails, (crops - 1) * num)
        places = places_of(tokens)
        if self.config.variant == "authors":
            best = top_k(early, int(num * (1 - alpha)))
            weights = torch.zeros_like(early).scatter_(1, best, 1.0)
            is_of = self._strips(places, num)
        else:
            weights = early if tokens.valid is None else early.masked_fill(~tokens.valid, 0)
            is_of = self._regions(places, num, tokens)
        weights = weights[places.thumbnail]
        shares = (weights * is_of).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-30)
        for_others = torch.from_numpy(others).to(early.device)[places.image]
        for_thumbnail = torch.from_numpy(thumbnails).to(early.device)[places.image]
        budgets = (for_others.float() * shares).long().clamp(max=num)
        return torch.where(places.number < 0, for_thumbnail, budgets)

    def _strips(self, places: Places, num: int) -> "torch.Tensor":
        """Return bool [B, N]: the thumbnail's tokens in the run that the code gives to a crop."""
        import torch

        raster = torch.arange(num, device=places.image.device)
        is_of: torch.Tensor = raster * places.others[:, None] // num == places.number[:, None]
        return is_of

    def _regions(self, places: Places, num: int, tokens: Tokens) -> "torch.Tensor":
        """Return bool [B, N]: the thumbnail's tokens in the region that a crop shows."""
        import torch

        side = math.isqrt(num)
        grids = tokens.more["crop_grid"].long().clamp(min=1)[places.image]
        rows, columns = grids[:, 0, None], grids[:, 1, None]
        raster = torch.arange(num, device=grids.device)
        region = (raster // side * rows // side) * columns + raster % side * columns // side
        is_of: torch.Tensor = region == places.number[:, None]
        return is_of
