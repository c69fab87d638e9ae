"""EViT: the tokens that the class token attends to most, and one that fuses the others."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.reducers.attention import class_scores
from operators.reducers.base import (
    Keep,
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    share,
    top_k,
)

if TYPE_CHECKING:
    import torch


class EViTConfig(ReducerConfig):
    """What a job may say about EViT."""

    name: Literal["evit"] = "evit"
    keep: Annotated[
        Keep,
        Field(description="Attentive tokens that are left, or their share; the fused one is more."),
    ] = 0.7
    order: Annotated[
        Literal["score", "raster"],
        Field(description="Of the attentive tokens: highest first (the authors'), or as read."),
    ] = "score"


class EViT(Reducer[EViTConfig]):
    """Keeps the tokens of the highest class attention and fuses the others into one more.

    The fused token comes last. It is the sum of the others times their attention, not their
    average, so it is short: what they would add to the class token. Where nothing is left to fuse,
    there is no such token. Class attention is averaged over the heads of the last of several
    ``attention_layers``; a share is cut to a whole number, as the authors' code does.

    Source: Liang et al., "Not All Patches Are What You Need", section 3.2. Checked: the indices and
    features of a public re-implementation that the benchmark "Which Tokens to Use?" is measured
    with, a brute-force oracle.
    """

    Config = EViTConfig
    paper = "arXiv:2202.07800"

    @property
    def signals(self) -> tuple[str, ...]:
        """Class attention."""
        return ("cls_attention",)

    def num_kept(self, num_tokens: int) -> int:
        """Return the attentive tokens, and one more unless they are all."""
        return min(self._num_attentive(num_tokens) + 1, num_tokens)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Select by score, fuse the rest."""
        import torch

        scores = class_scores(tokens)
        num = scores.shape[1]
        attentive = self._num_attentive(num)
        index = top_k(tokens.without_padding(scores), attentive)
        if self.config.order == "raster":
            index = _raster(index, tokens)
        is_fused = torch.ones_like(scores, dtype=torch.bool).scatter(1, index, False)
        token_map = torch.full_like(index[:, :1], attentive).repeat(1, num)
        token_map.scatter_(1, index, torch.arange(attentive, device=index.device).expand_as(index))
        lengths = None
        if tokens.valid is not None:
            is_fused &= tokens.valid
            token_map = token_map.masked_fill(~tokens.valid, -1)
            lengths = tokens.valid.sum(dim=1).clamp(max=attentive) + is_fused.any(dim=1)
        weights = torch.where(is_fused, scores, 0)[:, None]
        features = tokens.features
        rows = features.gather(1, index[..., None].expand(-1, -1, features.shape[2]))
        if attentive < num:
            fused = (weights @ features.float()).to(features.dtype)
            rows = torch.cat([rows, fused], dim=1)
        return Reduction(rows, token_map, lengths)

    def _num_attentive(self, num_tokens: int) -> int:
        return share(self.config.keep, num_tokens, self.config.name, rounding=int)


def _raster(index: "torch.Tensor", tokens: Tokens) -> "torch.Tensor":
    """Return selected tokens [B, K] in raster order, padding last."""
    index = index.sort(dim=1).values
    if tokens.valid is None:
        return index
    is_padding = (~tokens.valid.gather(1, index)).to(dtype=index.dtype)
    return index.gather(1, is_padding.sort(dim=1, stable=True).indices)
