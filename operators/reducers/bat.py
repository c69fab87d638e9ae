"""BAT: match the attentive tokens, cluster the others."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.errors import ContractError
from operators.reducers.attention import class_scores
from operators.reducers.base import (
    TINY,
    Keep,
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    merge,
    share,
    top_k,
)
from operators.reducers.clustering import among, nearest, squared_distances
from operators.reducers.dpc_knn import peaks
from operators.reducers.tome import match

if TYPE_CHECKING:
    import torch


class BatConfig(ReducerConfig):
    """What a job may say about BAT."""

    name: Literal["bat"] = "bat"
    keep: Annotated[Keep, Field(description="Rows that are left, or their share.")] = 0.5
    attentive: Annotated[
        float,
        Field(ge=0, le=1, description="Attentive tokens, as a share of the rows that are left."),
    ] = 0.75
    matched: Annotated[
        float,
        Field(
            ge=0, le=0.5, description="Share of the attentive tokens that are merged into others."
        ),
    ] = 0.1
    neighbors: Annotated[
        int, Field(ge=1, le=64, description="Nearest tokens that the density is taken of.")
    ] = 5
    weights: Annotated[
        Literal["attention", "size"],
        Field(
            description="What merged tokens are weighted by: class attention times size, or size."
        ),
    ] = "attention"


class Bat(Reducer[BatConfig]):
    """Splits tokens by class attention; merges the attentive in pairs, the others in clusters.

    The tokens of the highest class attention (averaged over heads, last of ``attention_layers``)
    are attentive: ``attentive`` of the budget, at most all but one row of it. Those of even and odd
    place are matched by cosine as ToMe does, and the most alike are merged. The others are
    clustered by density peaks as DPC-KNN does: centres are tokens in a dense place far from any
    denser one, and every other token goes to the nearest centre. There are as many clusters as fill
    the budget. Rows: attentive ones in ToMe's order, then clusters by the score of their centre.

    Source: Long et al., "Beyond Attentive Tokens", section 3. There is no public code; the split,
    clusters and matches are the paper's, while its numbers of clusters and matches and its weights
    could not be checked: the defaults here are ours. The density counts the token itself, as in the
    published DPC-KNN of others; of equally dense tokens the first is the denser. Checked: a
    brute-force oracle.
    """

    Config = BatConfig
    paper = "arXiv:2211.11315"

    @property
    def signals(self) -> tuple[str, ...]:
        """Class attention."""
        return ("cls_attention",)

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens, half to even.

        Raises:
            ContractError: the tokens do not suffice for as many rows.
        """
        config = self.config
        kept = share(config.keep, num_tokens, config.name)
        attentive, merged = self._parts(kept)
        clusters = kept - attentive + merged
        if clusters > num_tokens - attentive:
            raise ContractError(
                f"bat: {kept} rows are {attentive - merged} attentive ones and {clusters} clusters "
                f"of {num_tokens - attentive} tokens",
                hint="keep fewer, or set matched to 0",
            )
        return kept

    def reduce(self, tokens: Tokens) -> Reduction:
        """Split, match, cluster, merge."""
        import torch

        scores = class_scores(tokens)
        num = scores.shape[1]
        kept = self.num_kept(num)
        attentive, merged = self._parts(kept)
        order = top_k(tokens.without_padding(scores), num)
        first = order[:, :attentive].sort(dim=1).values
        rest = order[:, attentive:].sort(dim=1).values
        token_map = torch.full_like(order, -1)
        if attentive:
            subset = _subset(tokens, first)
            token_map.scatter_(1, first, match(subset.features, merged, subset))
        left = attentive - merged
        clusters = density_peaks(_subset(tokens, rest), kept - left, self.config.neighbors)
        token_map.scatter_(1, rest, clusters + left)
        weights = tokens.sizes
        if self.config.weights == "attention":
            weights = weights * scores.clamp(min=TINY)
        return merge(tokens, token_map, kept, weights)

    def _parts(self, kept: int) -> tuple[int, int]:
        """Return the number of attentive tokens, and of those that are merged into others."""
        attentive = min(round(self.config.attentive * kept), kept - 1)
        return attentive, int(self.config.matched * attentive)


def density_peaks(tokens: Tokens, num_clusters: int, neighbors: int) -> "torch.Tensor":
    """Return int64 [B, N]: the cluster of each token, clusters by the score of their centre.

    Args:
        tokens: What is clustered, by Euclidean distance; padding belongs to any cluster.
        num_clusters: K.
        neighbors: Nearest tokens, itself among them, that the density is taken of.
    """
    squared = squared_distances(tokens.features, tokens.valid) / tokens.features.shape[2]
    squared = among(squared, tokens.valid)
    scores = peaks(squared, min(neighbors, squared.shape[1]))
    return nearest(squared, top_k(tokens.without_padding(scores), num_clusters))


def _subset(tokens: Tokens, index: "torch.Tensor") -> Tokens:
    """Return some tokens [B, K] of each row, with their features and sizes."""
    features = tokens.features
    return Tokens(
        features.gather(1, index[..., None].expand(-1, -1, features.shape[2])),
        tokens.sizes.gather(1, index),
        None if tokens.valid is None else tokens.valid.gather(1, index),
    )
