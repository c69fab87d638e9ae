"""ToDRE, first stage: a diverse subset of tokens around one that matters."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.base import FieldSpec
from operators.reducers.base import (
    Keep,
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    cosine,
    select,
    share,
)
from operators.reducers.clustering import drawn
from operators.reducers.divprune import farthest

if TYPE_CHECKING:
    import torch


class ToDREConfig(ReducerConfig):
    """What a job may say about ToDRE."""

    name: Literal["todre"] = "todre"
    keep: Annotated[
        Keep, Field(description="Tokens that are left, or their share (10 and 25 % in the paper).")
    ] = 0.1
    rule: Annotated[
        Literal["max_sum", "k_center"],
        Field(
            description="What is added next: the token least similar to all chosen ones together, "
            "or (the paper's first version) the one whose nearest chosen token is farthest."
        ),
    ] = "max_sum"
    pivot: Annotated[
        Literal["cls_attention", "random"],
        Field(
            description="Which token is first: of the highest class attention, or, for encoders "
            "without a class token, one drawn from seed and key."
        ),
    ] = "cls_attention"
    seed: Annotated[int, Field(ge=0, description="Of the random pivot, with the key.")] = 0
    order: Annotated[
        Literal["raster", "selection"],
        Field(
            description="Of the tokens that are left: as read, or as chosen, where every prefix is "
            "the result for a smaller budget."
        ),
    ] = "raster"


class ToDRE(Reducer[ToDREConfig]):
    """Keeps the token of the highest class attention, and then whatever is unlike the chosen ones.

    ``max_sum``, of the paper's second version, adds the token whose cosines with all chosen tokens
    sum to the least; ``k_center``, of the first, is the choice of ``divprune`` from another start.
    Class attention is the mean over heads of the last of ``attention_layers``.

    No code was published: this follows the text. Tokens of several crops are chosen crop by crop,
    where the paper starts in the thumbnail and chooses among all crops together, and a share is
    rounded half to even, of which it says nothing. The second stage works inside a language model
    and is no operator.

    Source: Li et al., "ToDRE", section 4.1 of version 2; the abstract of version 1. Checked:
    brute-force oracles of both rules.
    """

    Config = ToDREConfig
    paper = "arXiv:2505.18757"

    @property
    def signals(self) -> tuple[str, ...]:
        """Class attention, unless the pivot is drawn."""
        return ("cls_attention",) if self.config.pivot == "cls_attention" else ()

    @property
    def further_inputs(self) -> Mapping[str, FieldSpec]:
        """The key, where the pivot is drawn."""
        return {"key": FieldSpec("string")} if self.config.pivot == "random" else {}

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens, half to even."""
        return share(self.config.keep, num_tokens, self.config.name)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Select greedily."""
        features = tokens.features
        alike = cosine(features, features)
        alike = (alike + alike.transpose(1, 2)) / 2  # so that a tie is one
        if self.signals:
            scores = tokens.signal("cls_attention")[:, -1].mean(dim=1)
            pivot = tokens.without_padding(scores).argmax(dim=1, keepdim=True)
        else:
            pivot = drawn(tokens, self.config.seed, self.config.name)
        kept = self.num_kept(features.shape[1])
        if self.config.rule == "k_center":
            index = farthest(1 - alike, tokens, kept, pivot)
        else:
            index = least_alike(alike, tokens, kept, pivot)
        return select(tokens, index.sort(dim=1).values if self.config.order == "raster" else index)


def least_alike(
    alike: "torch.Tensor", tokens: Tokens, k: int, first: "torch.Tensor"
) -> "torch.Tensor":
    """Return int64 [B, k]: first, then always the token least alike to all chosen ones together.

    Args:
        alike: float32 [B, N, N], symmetric.
        tokens: Whose they are; padding is chosen last.
        k: How many.
        first: int64 [B, 1].
    """
    import torch

    num = alike.shape[1]
    unlike = tokens.without_padding(alike.new_zeros(alike.shape[:2]))
    index = [first]
    for _ in range(k - 1):
        row = alike.gather(1, index[-1][..., None].expand(-1, -1, num))[:, 0]
        unlike = tokens.without_padding(unlike - row).scatter(1, index[-1], float("-inf"))
        index.append(unlike.argmax(dim=1, keepdim=True))
    return torch.cat(index, dim=1)
