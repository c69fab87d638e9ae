"""MustDrop, vision stage: merge windows of like tokens, mark the key tokens."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.errors import ContractError
from operators.reducers.attention import class_scores
from operators.reducers.base import (
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    merge,
    sum_by_map,
    top_k,
)
from operators.reducers.grid import GridWidth, grid

if TYPE_CHECKING:
    import torch


class MustDropConfig(ReducerConfig):
    """What a job may say about MustDrop."""

    name: Literal["mustdrop"] = "mustdrop"
    window: Annotated[int, Field(ge=2, le=16, description="Side of a window, in tokens.")] = 3
    threshold: Annotated[
        float,
        Field(ge=-1, le=1, description="Mean cosine within a window from which it is merged."),
    ] = 0.8
    key_share: Annotated[
        float, Field(gt=0, le=1, description="Share of the rows that are key tokens, rounded up.")
    ] = 0.08
    grid_width: GridWidth = None


class MustDrop(Reducer[MustDropConfig]):
    """Merges windows of the grid whose tokens are alike; how many depends on the image.

    Windows do not overlap; one is merged to its average where the mean cosine between two of its
    tokens reaches ``threshold`` (all or nothing: the paper speaks of similar neighbours, the
    authors' code merges whole windows). A window with padding is not merged. Rows: merged windows,
    from the most alike to the least, then the other tokens in raster order.

    Adds ``key_token`` bool [K]: the rows that the class token attends to most (averaged over heads,
    and over the tokens of a window, in the last of several ``attention_layers``), which later
    stages of the method, within a language model, must not drop.

    The authors merge before the second layer of the encoder, and as many windows of each image as
    the image of the batch with the fewest has; here features are those of the finished encoder, and
    every row merges its own windows.

    Source: Liu et al., "Multi-Stage Vision Token Dropping", section 3.2. Checked: the authors'
    features and sizes, a brute-force oracle.
    """

    Config = MustDropConfig
    paper = "arXiv:2411.10803"
    is_adaptive = True
    needs_grid = True

    @property
    def signals(self) -> tuple[str, ...]:
        """Class attention, for the key tokens."""
        return ("cls_attention",)

    @property
    def further_outputs(self) -> Mapping[str, str]:
        """Which rows are key tokens."""
        return {"key_token": "bool"}

    def num_kept(self, num_tokens: int) -> int:
        """Return all tokens: no window may be alike.

        Raises:
            ContractError: windows do not fill the grid.
        """
        window = self.config.window
        rows, columns = grid(num_tokens, self.config.grid_width, self.config.name)
        if rows % window or columns % window:
            raise ContractError(
                f"mustdrop: windows of {window} do not fill a grid of {rows} x {columns} tokens",
                hint="set window to a divisor of both",
            )
        return num_tokens

    def reduce(self, tokens: Tokens) -> Reduction:
        """Merge windows."""
        import torch

        num = tokens.features.shape[1]
        members = self._members(num).to(tokens.features.device)
        alike = self._alike(tokens, members)
        order = top_k(alike, alike.shape[1])
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        place = torch.empty_like(order).scatter(1, order, places)  # of each window
        is_merged = alike >= self.config.threshold
        window_of = torch.empty(num, dtype=torch.int64, device=order.device)
        window_of[members] = torch.arange(len(members), device=order.device)[:, None]
        goes = is_merged[:, window_of]
        is_single = ~goes if tokens.valid is None else ~goes & tokens.valid
        merged = is_merged.sum(dim=1, keepdim=True)
        single = merged + is_single.cumsum(dim=1) - 1
        token_map = torch.where(goes, place[:, window_of], torch.where(is_single, single, -1))
        lengths = merged[:, 0] + is_single.sum(dim=1)
        found = merge(tokens, token_map, num)
        is_key = self._key_tokens(tokens, token_map, lengths)
        return replace(found, lengths=lengths, more={"key_token": is_key})

    def _members(self, num: int) -> "torch.Tensor":
        """Return int64 [W, M]: the tokens of each window, windows in raster order."""
        import torch

        rows, columns = grid(num, self.config.grid_width, self.config.name)
        side = self.config.window
        tiles = torch.arange(num).reshape(rows // side, side, columns // side, side)
        return tiles.transpose(1, 2).reshape(-1, side * side)

    def _alike(self, tokens: Tokens, members: "torch.Tensor") -> "torch.Tensor":
        """Return float32 [B, W]: the mean cosine of a window's pairs; -2 with padding in it."""
        import torch

        unit = torch.nn.functional.normalize(tokens.features.float(), dim=2, eps=1e-8)
        inside = unit[:, members]  # [B, W, M, C]
        own = (inside**2).sum(dim=(2, 3))
        size = members.shape[1]
        alike = ((inside.sum(dim=2) ** 2).sum(dim=2) - own) / (size * (size - 1))
        if tokens.valid is None:
            return alike
        return alike.masked_fill(~tokens.valid[:, members].all(dim=2), -2)

    def _key_tokens(
        self, tokens: Tokens, token_map: "torch.Tensor", lengths: "torch.Tensor"
    ) -> "torch.Tensor":
        """Return bool [B, K]: the rows of the highest class attention."""
        import torch

        num = token_map.shape[1]
        total = sum_by_map(tokens.sizes[..., None], token_map, num)
        scores = sum_by_map((class_scores(tokens) * tokens.sizes)[..., None], token_map, num)
        scores = (scores / total.clamp(min=1))[..., 0]
        rows = torch.arange(num, device=scores.device)
        scores = scores.masked_fill(rows >= lengths[:, None], float("-inf"))
        chosen = (lengths.double() * self.config.key_share).ceil()
        is_key = rows < chosen[:, None]
        return torch.zeros_like(is_key).scatter(1, top_k(scores, num), is_key)
