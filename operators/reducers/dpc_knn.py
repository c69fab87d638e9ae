"""DPC-KNN: merge tokens around peaks of density."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.errors import ContractError
from operators.reducers.base import (
    Keep,
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    merge,
    share,
    top_k,
)
from operators.reducers.clustering import among, nearest, raster, squared_distances

if TYPE_CHECKING:
    import torch


class DPCKNNConfig(ReducerConfig):
    """What a job may say about DPC-KNN."""

    name: Literal["dpc_knn"] = "dpc_knn"
    keep: Annotated[Keep, Field(description="Tokens that are left, or their share.")] = 0.5
    neighbours: Annotated[
        int, Field(ge=1, description="How many nearest tokens, itself included, say how dense.")
    ] = 5
    order: Annotated[
        Literal["score", "raster"],
        Field(description="Of the rows: best centre first (the authors'), or as centres are read."),
    ] = "score"


class DPCKNN(Reducer[DPCKNNConfig]):
    """Merges every token into the nearest of the centres, weighted by size.

    Centres are dense, and far from what is denser: the score is density, exp(-mean squared distance
    to the nearest tokens, itself one of them), times the distance to the nearest denser token, or
    the largest distance of the image where none is. Distances are Euclidean over sqrt(C).

    The authors add noise below 1e-6 to the densities; here equal densities are told apart by place,
    the first being the denser. Scores are compared as logarithms, because exp underflows for
    features of large norm. Weights that the authors learn are left out; their weighted sum is over
    the sum of weights plus 1e-6, here it is the mean. As there, tokens go to the nearest centre,
    not along denser neighbours as in the textbook. A share is cut to a whole number.

    Source: Haurum et al., "Which Tokens to Use?", section 3 (DPC-KNN). Checked: the authors'
    centres, clusters and features, with weights and without; a brute-force oracle.
    """

    Config = DPCKNNConfig
    paper = "arXiv:2308.04657"

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens, cut to a whole number.

        Raises:
            ContractError: there are fewer tokens than ``neighbours``.
        """
        if self.config.neighbours > num_tokens:
            raise ContractError(
                f"dpc_knn: neighbours={self.config.neighbours} of {num_tokens} tokens",
                hint=f"neighbours between 1 and {num_tokens}",
            )
        return share(self.config.keep, num_tokens, self.config.name, rounding=int)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Find the centres and merge."""
        channels = tokens.features.shape[2]
        squared = among(squared_distances(tokens.features, tokens.valid) / channels, tokens.valid)
        scores = tokens.without_padding(peaks(squared, self.config.neighbours))
        kept = self.num_kept(squared.shape[1])
        centres = top_k(scores, kept)
        if self.config.order == "raster":
            centres = raster(centres, tokens.valid)
        return merge(tokens, nearest(squared, centres), kept)


def peaks(squared: "torch.Tensor", neighbours: int) -> "torch.Tensor":
    """Return float32 [B, N]: logarithm of density times distance to what is denser.

    Args:
        squared: Squared distances [B, N, N], infinite to padding.
        neighbours: How many say how dense; where fewer are no padding, all of them.
    """
    import torch

    near = squared.topk(neighbours, dim=2, largest=False).values
    is_there = near.isfinite()
    count = is_there.sum(dim=2).clamp(min=1)
    log_density = -near.masked_fill(~is_there, 0).sum(dim=2) / count
    num = squared.shape[1]
    row, column = log_density[:, :, None], log_density[:, None, :]
    is_before = torch.ones(num, num, dtype=torch.bool, device=squared.device).tril(-1)
    is_denser = (column > row) | ((column == row) & is_before)
    largest = squared.masked_fill(squared.isinf(), 0).amax(dim=(1, 2))
    away = squared.masked_fill(~is_denser, float("inf")).amin(dim=2)
    away = torch.where(away.isinf(), largest[:, None], away)
    return log_density + (away.log() / 2).clamp(min=-1e20)  # equal tokens are 0 apart
