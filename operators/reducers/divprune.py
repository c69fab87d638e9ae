"""DivPrune: the most diverse subset of tokens."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

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

if TYPE_CHECKING:
    import torch


class DivPruneConfig(ReducerConfig):
    """What a job may say about DivPrune."""

    name: Literal["divprune"] = "divprune"
    keep: Annotated[
        Keep, Field(description="Tokens that are left, or their share (56 of 576 in the paper).")
    ] = 0.098
    order: Annotated[
        Literal["raster", "selection"],
        Field(
            description="Of the tokens that are left: as read (the authors'), or as chosen, where "
            "every prefix is the result for a smaller budget."
        ),
    ] = "raster"


class DivPrune(Reducer[DivPruneConfig]):
    """Keeps tokens so that the closest two are as far apart as a greedy choice can make them.

    First the token whose nearest neighbour is farthest; then always the one whose nearest chosen
    token is farthest, by cosine distance. The authors may choose one of several equal tokens twice;
    here a token is chosen once.

    Source: Alvar et al., "DivPrune", section 3.2. Checked: the authors' indices and features, a
    brute-force oracle of the greedy rule.
    """

    Config = DivPruneConfig
    paper = "arXiv:2503.02175"

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens, half to even."""
        return share(self.config.keep, num_tokens, self.config.name)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Select greedily."""
        features = tokens.features
        distances = 1 - cosine(features, features)
        distances = (distances + distances.transpose(1, 2)) / 2  # so that a tie is one
        index = farthest(distances, tokens, self.num_kept(features.shape[1]))
        return select(tokens, index.sort(dim=1).values if self.config.order == "raster" else index)


def farthest(
    distances: "torch.Tensor", tokens: Tokens, k: int, first: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """Return int64 [B, k]: tokens in the order of the greedy max-min choice, padding last.

    Args:
        distances: float32 [B, N, N], symmetric.
        tokens: Whose they are.
        k: How many.
        first: int64 [B, 1], the first; without it the one whose nearest neighbour is farthest.
    """
    import torch

    num = distances.shape[1]
    if first is None:
        far = torch.eye(num, dtype=torch.bool, device=distances.device)  # no token is near itself
        if tokens.valid is not None:
            far = far | ~tokens.valid[:, None, :]
        nearest = distances.masked_fill(far, float("inf")).amin(dim=2)
        first = tokens.without_padding(nearest).argmax(dim=1, keepdim=True)
    chosen = first
    score = tokens.without_padding(torch.full_like(distances[:, 0], float("inf")))
    index = [chosen]
    for _ in range(k - 1):
        row = distances.gather(1, chosen[..., None].expand(-1, -1, num))[:, 0]
        score = torch.minimum(score, row).scatter(1, chosen, float("-inf"))
        chosen = score.argmax(dim=1, keepdim=True)
        index.append(chosen)
    return torch.cat(index, dim=1)
