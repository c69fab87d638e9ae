"""GlobalCom2: the thumbnail says how much of each crop is kept, and which tokens with it."""

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
)
from operators.reducers.crop_grid import CROP_GRID, Places, grid_faults, offsets_of, places_of

if TYPE_CHECKING:
    import torch


class GlobalCom2Config(ReducerConfig):
    """What a job may say about GlobalCom2."""

    name: Literal["globalcom2"] = "globalcom2"
    keep: Annotated[
        float, Field(gt=0, le=1, description="Share of the thumbnail's tokens; of a crop's, about.")
    ] = 0.25
    temperature: Annotated[
        float, Field(gt=0, description="The lower, the more crops differ in what is kept of them.")
    ] = 10.0
    variant: Annotated[
        Literal["authors", "paper"],
        Field(
            description="What scores tokens. authors: `cls_logits`, before the softmax. paper: "
            "`cls_attention`."
        ),
    ] = "authors"


class GlobalCom2(Reducer[GlobalCom2Config]):
    """Keeps tokens by their own crop's scores and by the thumbnail's, in crops that matter more.

    Reads all crops of an image, thumbnail first, and ``crop_grid``. Scores are averaged over the
    heads of the last of ``attention_layers``. A crop keeps the share
    ``keep * (1 + w - mean(w))``, w being the softmax over crops of the thumbnail's scores summed
    over the crop's cell; of its tokens those of the highest sum of its own scores and those of the
    thumbnail, enlarged to the size of the picture. Tokens in the padding that made the picture fit
    the crops are dropped. Rows: the thumbnail's from the highest score to the lowest, then crop
    after crop, each in raster order.

    The authors' code writes the kept tokens to wrong places where there is padding, and adds
    newline vectors; here they are where they were, and newlines are the model's business.

    Source: Liu et al., "GlobalCom2", section 3. Checked: the authors' indices, shares and features,
    a brute-force oracle.
    """

    Config = GlobalCom2Config
    paper = "arXiv:2501.05179"
    is_adaptive = True
    needs_grid = True
    needs_crops = True

    @property
    def signals(self) -> tuple[str, ...]:
        """Scores of the class token, before or after the softmax."""
        return ("cls_logits" if self.config.variant == "authors" else "cls_attention",)

    @property
    def further_inputs(self) -> Mapping[str, FieldSpec]:
        """The crop grid."""
        return CROP_GRID

    def num_kept(self, num_tokens: int) -> int:
        """Return all tokens of a crop: the most that can be left.

        Raises:
            ContractError: the crops are no squares, or nothing would be left of a thumbnail.
        """
        if math.isqrt(num_tokens) ** 2 != num_tokens:
            raise ContractError(
                f"globalcom2: {num_tokens} tokens are no square", hint="use square crops"
            )
        if int(num_tokens * self.config.keep) < 1:
            raise ContractError(
                f"globalcom2: keep={self.config.keep} is none of {num_tokens} tokens",
                hint=f"keep at least {1 / num_tokens:.3g}",
            )
        return num_tokens

    def faults(self, tokens: Tokens) -> Mapping[int, str]:
        """Name images whose crop grid does not fit."""
        return grid_faults(tokens)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Divide the budget, then select by both scores."""
        import torch

        scores = tokens.signal(self.signals[0])[:, -1].mean(dim=1)
        num = scores.shape[1]
        places = places_of(tokens)
        is_thumbnail = places.number < 0
        area = _Area(tokens.more["crop_grid"].long().clamp(min=1)[places.image], places, num)
        is_there = area.is_inside | is_thumbnail[:, None]
        if tokens.valid is not None:
            is_there &= tokens.valid
        guides = tokens.without_padding(scores)[places.thumbnail]
        if tokens.valid is not None:  # padding of a thumbnail guides nobody
            guides = guides.masked_fill(~tokens.valid[places.thumbnail], 0)
        both = _unit(scores, is_there) + _unit(area.enlarged(guides), is_there)
        ranked = torch.where(is_thumbnail[:, None], scores, both)
        ranked = ranked.masked_fill(~is_there, -torch.inf)
        order = ranked.sort(dim=1, descending=True, stable=True).indices

        shares = self.shares(guides, area, places, offsets_of(tokens))
        lengths = (is_there.sum(dim=1) * shares).long()
        thumbnails = torch.full_like(lengths, int(num * self.config.keep))
        lengths = torch.where(is_thumbnail, torch.minimum(thumbnails, is_there.sum(dim=1)), lengths)
        kept_first = torch.arange(num, device=order.device) < lengths[:, None]
        is_kept = torch.zeros_like(is_there).scatter_(1, order, kept_first)
        index = torch.where(is_thumbnail[:, None], order, in_raster_order(is_kept))
        return select_some(tokens, index, lengths)

    def shares(
        self, guides: "torch.Tensor", area: "_Area", places: Places, offsets: np.ndarray
    ) -> "torch.Tensor":
        """Return float64 [B]: which share of each crop's tokens is kept."""
        import torch

        mass = (guides.double() * area.is_cell).sum(dim=1)
        counts = np.diff(offsets)
        device = guides.device
        most = max(int(counts.max(initial=1)) - 1, 1)
        which = torch.arange(most, device=device)
        there = which < torch.from_numpy(counts - 1).to(device)[:, None]
        rows = torch.from_numpy(offsets[:-1] + 1).to(device)[:, None] + which
        mass = mass[rows.clamp(max=len(mass) - 1)].masked_fill(~there, -torch.inf)
        scaled = mass / self.config.temperature
        highest = scaled.amax(dim=1, keepdim=True).nan_to_num(neginf=0.0)
        raised = (scaled - highest).exp()
        weights = raised / (raised.sum(dim=1, keepdim=True) + 1e-8)
        mean = weights.sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True).clamp(min=1)
        shares = (self.config.keep * (1 + weights - mean)).clamp(max=1)
        return shares[places.image, places.number.clamp(min=0)]


class _Area:
    """Which of the tokens of each crop show the picture, and which of the thumbnail show the crop.

    Attributes:
        is_inside: bool [B, N], tokens that are no padding.
        is_cell: bool [B, N], tokens of the thumbnail that belong to the crop.
    """

    def __init__(self, grids: "torch.Tensor", places: Places, num: int) -> None:
        import torch

        side = math.isqrt(num)
        rows, columns, height, width = grids.T
        full_height, full_width = rows * side, columns * side
        is_wide = width * full_height > full_width * height
        inner_height = torch.where(is_wide, height * full_width // width, full_height)
        inner_width = torch.where(is_wide, full_width, width * full_height // height)
        above = (full_height - inner_height) // 2
        left = (full_width - inner_width) // 2
        number = places.number.clamp(min=0)
        self._side = side
        raster = torch.arange(side, device=grids.device)
        self._vertical = _Axis(number // columns * side, raster, above, full_height - 2 * above)
        self._horizontal = _Axis(number % columns * side, raster, left, full_width - 2 * left)
        inside = self._vertical.is_inside[:, :, None] & self._horizontal.is_inside[:, None]
        self.is_inside = inside.flatten(1)
        cell_rows = torch.minimum(raster // (side // rows).clamp(min=1)[:, None], rows[:, None] - 1)
        cell_columns = torch.minimum(
            raster // (side // columns).clamp(min=1)[:, None], columns[:, None] - 1
        )
        cells = cell_rows[:, :, None] * columns[:, None, None] + cell_columns[:, None]
        self.is_cell = cells.flatten(1) == places.number[:, None]

    def enlarged(self, scores: "torch.Tensor") -> "torch.Tensor":
        """Return float32 [B, N]: the thumbnail's [B, N] at the places of a crop's tokens."""
        maps = scores.unflatten(1, (self._side, self._side))
        found = self._vertical.weights @ maps @ self._horizontal.weights.transpose(1, 2)
        flat: torch.Tensor = found.flatten(1)
        return flat


class _Axis:
    """Height or width of a picture that is laid over crops.

    Attributes:
        is_inside: bool [B, S], which lines of each crop show the picture.
        weights: float32 [B, S, S], how much a line of a crop has of each of the thumbnail's.
    """

    def __init__(
        self,
        first: "torch.Tensor",
        raster: "torch.Tensor",
        before: "torch.Tensor",
        length: "torch.Tensor",
    ) -> None:
        side = len(raster)
        line = first[:, None] + raster - before[:, None]
        self.is_inside = (line >= 0) & (line < length[:, None])
        scale = side / length.clamp(min=1).float()
        place = ((line.float() + 0.5) * scale[:, None] - 0.5).clamp(min=0, max=side - 1)
        self.weights = (1 - (place[..., None] - raster).abs()).clamp(min=0)


def _unit(scores: "torch.Tensor", is_there: "torch.Tensor") -> "torch.Tensor":
    """Return scores [B, N] of unit length over the tokens that are there, else 0."""
    import torch

    return torch.nn.functional.normalize(scores.masked_fill(~is_there, 0), dim=1)
