"""Expedit: soft clusters of neighbouring tokens, and the layer that undoes them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.reducers.base import Reducer, ReducerConfig, Reduction, Tokens
from operators.reducers.grids import (
    Grid,
    reconstruction_columns,
    reconstruction_fields,
    token_grid,
)

if TYPE_CHECKING:
    import torch


class ExpeditConfig(ReducerConfig):
    """What a job may say about Expedit."""

    name: Literal["expedit"] = "expedit"
    clusters: Annotated[Grid, Field(description="Rows and columns of clusters.")] = (10, 10)
    grid: Annotated[
        Grid | None, Field(description="Rows and columns of the encoder's tokens, else a square.")
    ] = None
    iterations: Annotated[int, Field(ge=1, le=100, description="Of assignment and average.")] = 5
    temperature: Annotated[
        float, Field(gt=0, description="Multiplies squared distances (in the paper it divides).")
    ] = 0.01
    radius: Annotated[
        int,
        Field(ge=0, description="Tokens join clusters up to so many rows and columns away."),
    ] = 2
    neighbours: Annotated[
        int, Field(ge=1, description="Clusters that a token is reconstructed from, at most.")
    ] = 20
    variant: Annotated[
        Literal["authors", "paper"],
        Field(description="Weights of the reconstruction: of L2 norm one, or of sum one."),
    ] = "authors"


class Expedit(Reducer[ExpeditConfig]):
    """Replaces a grid of tokens by a smaller grid of averages, in raster order.

    It starts from adaptive average pooling. Then every token belongs to all clusters around its own
    cell a little, by softmax over -temperature * squared distance, and every cluster becomes the
    average of its tokens. ``token_map`` is the nearest of *all* clusters in the end (ties: the
    first), as theirs; a cluster may be nobody's nearest.

    ``reconstruct`` (``unreduce.py``) undoes it, as their reconstruction layer does after a model:
    write ``reconstruction_index`` and ``reconstruction_weights`` for it, which are made of features
    and clusters here, so that features need not be stored: for every token its nearest clusters and
    exp(-temperature * squared distance), brought to L2 norm one (so they sum to more than one) or,
    in the paper's variant, to sum one. Of clusters that are equally near at the cut the authors
    keep all, here the first; and where all their weights underflow to zero, here none does.
    Both fields are about the rows of this operator: a later reducer leaves them as they are.

    SAM's 14 x 14 windows, 10 x 10 clusters each, temperature 0.005, are crops here.

    Source: Liang et al., "Expediting Large-Scale Vision Transformer", sections 3.2, 3.3. Checked:
    the authors' clusters, labels and reconstructions, a brute-force oracle.
    """

    Config = ExpeditConfig
    paper = "arXiv:2210.01035"
    needs_grid = True

    @property
    def needs_whole(self) -> bool:
        """Padding has no place in a grid."""
        return True

    @property
    def extras(self) -> Mapping[str, tuple[FieldSpec, str]]:
        """What ``reconstruct`` needs."""
        rows, columns = self.config.clusters
        return reconstruction_fields(self._num_tokens, min(self.config.neighbours, rows * columns))

    def num_kept(self, num_tokens: int) -> int:
        """Return how many clusters there are.

        Raises:
            ContractError: more than tokens, or tokens are no such grid.
        """
        height, width = token_grid(self.config.grid, num_tokens, self.config.name)
        rows, columns = self.config.clusters
        if rows > height or columns > width:
            raise ContractError(
                f"expedit: clusters={[rows, columns]} of a grid of {[height, width]} tokens",
                hint="as many rows and columns of clusters as of tokens, or fewer",
            )
        return rows * columns

    def reduce(self, tokens: Tokens) -> Reduction:
        """Cluster, and weigh for the reconstruction."""
        import torch

        config = self.config
        x = tokens.features.float()
        mean = x.mean(dim=1, keepdim=True)  # distances around it lose less to rounding
        x = x - mean
        height, width = token_grid(config.grid, x.shape[1], config.name)
        centres = pooled(x, (height, width), config.clusters)
        is_far = too_far((height, width), config.clusters, config.radius).to(x.device)
        for _ in range(config.iterations):
            logits = -config.temperature * squared_to(x, centres)
            shares = logits.masked_fill(is_far, float("-inf")).softmax(dim=2).transpose(1, 2)
            centres = shares @ x / shares.sum(dim=2, keepdim=True).clamp(min=1e-16)
        squared = squared_to(x, centres)
        near = squared.clamp(min=0).sort(dim=2, stable=True)
        count = min(config.neighbours, centres.shape[1])
        nearest = near.values[..., :count]
        weights = (-config.temperature * (nearest - nearest[..., :1])).exp()
        order = 2 if config.variant == "authors" else 1
        weights = weights / torch.linalg.vector_norm(weights, ord=order, dim=2, keepdim=True)
        return Reduction(
            (centres + mean).to(tokens.features.dtype),
            squared.argmin(dim=2),
            extra=reconstruction_columns(near.indices[..., :count], weights),
        )


def pooled(x: "torch.Tensor", grid: Grid, clusters: Grid) -> "torch.Tensor":
    """Return the averages over cells of a grid that may overlap, [B, K, C] of [B, N, C]."""
    import torch

    # Contiguous, for a single image of other strides is summed in another order than a batch.
    image = x.transpose(1, 2).contiguous().unflatten(2, grid)
    found: torch.Tensor = torch.nn.functional.adaptive_avg_pool2d(image, clusters)
    return found.flatten(2).transpose(1, 2).contiguous()


def too_far(grid: Grid, clusters: Grid, radius: int) -> "torch.Tensor":
    """Return bool [N, K]: which clusters a token cannot belong to."""
    import torch

    def along(tokens: int, cells: int) -> torch.Tensor:
        """Bool [tokens, cells] of one axis."""
        scale = torch.tensor(cells / tokens, dtype=torch.float32)  # as nearest upsampling rounds
        home = (torch.arange(tokens) * scale).floor().long().clamp(max=cells - 1)
        return (home[:, None] - torch.arange(cells)).abs() > radius

    rows, columns = along(grid[0], clusters[0]), along(grid[1], clusters[1])
    far = rows[:, None, :, None] | columns[None, :, None, :]
    return far.flatten(2).flatten(0, 1)


def squared_to(x: "torch.Tensor", centres: "torch.Tensor") -> "torch.Tensor":
    """Return squared distances [B, N, K] from [B, N, C] to [B, K, C]."""
    norms = (x * x).sum(dim=2)[:, :, None] + (centres * centres).sum(dim=2)[:, None, :]
    return norms - 2 * (x @ centres.transpose(1, 2))
