"""Top-K: the tokens that the class token attends to most."""

from typing import Annotated, Literal

from pydantic import Field

from operators.reducers.base import (
    Keep,
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    select,
    share,
    top_k,
)


class TopKConfig(ReducerConfig):
    """What a job may say about Top-K."""

    name: Literal["topk"] = "topk"
    keep: Annotated[Keep, Field(description="Tokens that are left, or their share.")] = 0.5
    order: Annotated[
        Literal["score", "raster"],
        Field(description="Of the tokens that are left: highest first (the authors'), or as read."),
    ] = "score"


class TopK(Reducer[TopKConfig]):
    """Keeps the tokens of the highest class attention, averaged over the heads of a layer.

    Of several ``attention_layers`` the last is read. A share is cut to a whole number, as the
    authors' code does.

    Source: Haurum et al., "Which Tokens to Use?", section 3 (Top-K). Checked: the authors' indices
    and features, a brute-force oracle.
    """

    Config = TopKConfig
    paper = "arXiv:2308.04657"

    @property
    def signals(self) -> tuple[str, ...]:
        """Class attention."""
        return ("cls_attention",)

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens, cut to a whole number."""
        return share(self.config.keep, num_tokens, self.config.name, rounding=int)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Select by score."""
        scores = tokens.signal("cls_attention")[:, -1].mean(dim=1)
        index = top_k(tokens.without_padding(scores), self.num_kept(scores.shape[1]))
        if self.config.order == "raster":
            index = index.sort(dim=1).values
        return select(tokens, index)
