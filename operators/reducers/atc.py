"""ATC: agglomerative clustering of tokens."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.reducers.base import (
    Keep,
    Reduction,
    Tokens,
    cosine,
    merge,
    share,
)
from operators.reducers.clustering import among
from operators.reducers.key_metric import KeyMetricConfig, KeyMetricReducer

if TYPE_CHECKING:
    import torch

Linkage = Literal["single", "average", "complete"]


class ATCConfig(KeyMetricConfig):
    """What a job may say about ATC."""

    name: Literal["atc"] = "atc"
    keep: Annotated[Keep, Field(description="Tokens that are left, or their share.")] = 0.5
    linkage: Annotated[
        Linkage,
        Field(
            description="How far clusters are apart: their nearest tokens, the average over all "
            "pairs, or their farthest (the authors choose by task)."
        ),
    ] = "average"


class ATC(KeyMetricReducer[ATCConfig]):
    """Merges the two nearest clusters until as many are left as wanted; means by size.

    Distances are 1 - cosine. As in the authors' code, sizes of an earlier reducer weigh the means
    but not the average linkage. Rows stand in the order of the first token of each cluster; the
    authors' order comes from a heap of nodes and means nothing. Of pairs that are equally near the
    first by place is merged, where theirs follows SciPy. A share is cut to a whole number.

    Time is cubic in the number of tokens: one search of all pairs a merge.

    Source: Haurum et al., "Agglomerative Token Clustering", section 3. Checked: the authors'
    partitions and features, SciPy's trees, a brute-force oracle.
    """

    Config = ATCConfig
    paper = "arXiv:2409.11923"

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens, cut to a whole number."""
        return share(self.config.keep, num_tokens, self.config.name, rounding=int)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Build the trees and cut them."""
        metric = self.metric_of(tokens)
        distances = 1 - cosine(metric, metric)
        distances = (distances + distances.transpose(1, 2)) / 2  # so that a tie is one
        kept = self.num_kept(metric.shape[1])
        token_map = agglomerate(distances, kept, self.config.linkage, tokens.valid)
        return merge(tokens, token_map, kept)


def agglomerate(
    distances: "torch.Tensor", kept: int, linkage: Linkage, valid: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """Return int64 [B, N]: the cluster of each token, numbered by their first tokens.

    A cluster is called by its first token while it grows; the updates are those of Lance and
    Williams.

    Args:
        distances: float32 [B, N, N], symmetric.
        kept: How many clusters are left; all tokens, where fewer are no padding.
        linkage: How far clusters are apart.
        valid: bool [B, N] or None; padding is merged with nothing.
    """
    import torch

    count, num = distances.shape[:2]
    device = distances.device
    rows = torch.arange(count, device=device)
    tokens = torch.arange(num, device=device)
    far = among(distances, valid).clone()
    far.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    sizes = torch.ones(count, num, device=device)
    cluster = tokens.expand(count, num).clone()
    real = torch.full((count,), num, device=device) if valid is None else valid.sum(dim=1)
    for done in range(num - kept):
        is_on = real - kept > done
        one = far.amin(dim=2).argmin(dim=1)  # of equal pairs the first by place
        other = far[rows, one].argmin(dim=1)  # comes later, for the matrix is symmetric
        to_one, to_other = far[rows, one], far[rows, other]
        if linkage == "single":
            joined = torch.minimum(to_one, to_other)
        elif linkage == "complete":
            joined = torch.maximum(to_one, to_other)
        else:
            n_one, n_other = sizes[rows, one][:, None], sizes[rows, other][:, None]
            joined = (n_one * to_one + n_other * to_other) / (n_one + n_other)
        is_end = (tokens == one[:, None]) | (tokens == other[:, None])
        joined = joined.masked_fill(is_end, float("inf"))
        joined = torch.where(is_on[:, None], joined, to_one)
        gone = to_other.masked_fill(is_on[:, None], float("inf"))
        far[rows, other] = gone
        far[rows, :, other] = gone
        far[rows, one] = joined
        far[rows, :, one] = joined
        grown = sizes[rows, one] + sizes[rows, other] * is_on
        sizes[rows, one] = grown
        cluster = torch.where((cluster == other[:, None]) & is_on[:, None], one[:, None], cluster)
    is_first = cluster == tokens
    if valid is not None:
        is_first = is_first & valid
    return (is_first.cumsum(dim=1) - 1).clamp(min=0).gather(1, cluster)
