"""K-Medoids: tokens that stand for the clusters around them."""

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
    share,
    top_k,
)
from operators.reducers.clustering import (
    FARTHER,
    among,
    drawn,
    keep_centres,
    move_medoids,
    nearest,
    raster,
    squared_distances,
)

if TYPE_CHECKING:
    import torch


class KMedoidsConfig(ReducerConfig):
    """What a job may say about K-Medoids."""

    name: Literal["kmedoids"] = "kmedoids"
    keep: Annotated[Keep, Field(description="Tokens that are left, or their share.")] = 0.5
    weights: Annotated[
        Literal["attention", "none"],
        Field(
            description="What starts and weighs the clusters: the attention that tokens receive "
            "from all tokens and the class token (the authors'), or nothing."
        ),
    ] = "attention"
    iterations: Annotated[
        int, Field(ge=1, le=100, description="Rounds of assignment and choice of medoids.")
    ] = 3
    seed: Annotated[
        int, Field(ge=0, description="Of the first centre where nothing weighs; with the key.")
    ] = 0
    order: Annotated[
        Literal["slot", "raster"],
        Field(description="Of the tokens that are left: by cluster (the authors'), or as read."),
    ] = "slot"


class KMedoids(Reducer[KMedoidsConfig]):
    """Keeps the medoids of clusters, copied, not averaged; ``token_map`` says who is in which.

    It starts from the tokens that receive the most attention, in that order. Without weights from
    one that is drawn from seed and key, and then always from the token whose distance to the
    *farthest* centre is largest. The map gives tokens to the nearest medoid (Euclidean), and a new
    medoid is the member with the smallest sum of distances, times its weight.

    As in the authors' code, not as in the textbook: that sum is over all tokens of the image, not
    over the cluster; a weighty token is the worse medoid; and the farthest, not the nearest centre
    counts at the start. Otherwise than there, the first centre is drawn for every image by itself,
    and a medoid is always in its own cluster: there clusters of equal tokens may be empty, and
    output token 0.

    Of several ``attention_layers`` the last is read, and summed over heads. A share is cut to a
    whole number.

    Source: Haurum et al., "Which Tokens to Use?", section 3 (K-Medoids). Checked: the authors'
    medoids, assignments and features, with weights and without; a brute-force oracle.
    """

    Config = KMedoidsConfig
    paper = "arXiv:2308.04657"

    @property
    def signals(self) -> tuple[str, ...]:
        """Attention of the class token and of all others, where it weighs."""
        return ("attention", "cls_attention") if self.config.weights == "attention" else ()

    @property
    def further_inputs(self) -> Mapping[str, FieldSpec]:
        """The key, where nothing says which centre is the first."""
        return {"key": FieldSpec("string")} if self.config.weights == "none" else {}

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of the tokens, cut to a whole number."""
        return share(self.config.keep, num_tokens, self.config.name, rounding=int)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Start, and move the medoids."""
        distances = squared_distances(tokens.features, tokens.valid).sqrt()
        kept = self.num_kept(distances.shape[1])
        to_all = distances if tokens.valid is None else distances * tokens.valid[:, None]
        sums = to_all.sum(dim=2)
        if self.signals:
            weights = received(tokens)
            sums = weights * sums
            centres = top_k(tokens.without_padding(weights), kept)
        else:
            first = drawn(tokens, self.config.seed, "kmedoids")
            centres = far_from_any(distances, first, tokens, kept)
        if tokens.valid is not None:
            sums = sums.masked_fill(~tokens.valid, FARTHER)
        finite = among(distances, tokens.valid)
        centres = move_medoids(finite, centres, lambda _: sums, self.config.iterations)
        if self.config.order == "raster":
            centres = raster(centres, tokens.valid)
        return keep_centres(tokens, centres, nearest(finite, centres))


def received(tokens: Tokens) -> "torch.Tensor":
    """Return float32 [B, N]: the attention of the last layer to every token, over all heads."""
    among_tokens = tokens.signal("attention")[:, -1]
    if tokens.valid is not None:
        among_tokens = among_tokens.masked_fill(~tokens.valid[:, None, :, None], 0)
    return among_tokens.sum(dim=(1, 2)) + tokens.signal("cls_attention")[:, -1].sum(dim=1)


def far_from_any(
    distances: "torch.Tensor", first: "torch.Tensor", tokens: Tokens, k: int
) -> "torch.Tensor":
    """Return int64 [B, k]: first, then always the token that is farthest from any of them.

    Args:
        distances: float32 [B, N, N].
        first: int64 [B, 1].
        tokens: Whose they are; padding is chosen last.
        k: How many.
    """
    import torch

    num = distances.shape[1]
    score = tokens.without_padding(distances.new_zeros(distances.shape[:2]))
    chosen = [first]
    for _ in range(k - 1):
        row = distances.gather(1, chosen[-1][..., None].expand(-1, -1, num))[:, 0]
        score = torch.maximum(score, tokens.without_padding(row))
        is_left = score.scatter(1, torch.cat(chosen, dim=1), float("-inf"))
        chosen.append(is_left.argmax(dim=1, keepdim=True))
    return torch.cat(chosen, dim=1)
