"""CenterCLIP: medoids of the tokens of an image, or of several frames together."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.reducers.base import (
    Keep,
    Reducer,
    ReducerConfig,
    Reduction,
    Tokens,
    cosine,
    merge,
    share,
)
from operators.reducers.clustering import (
    FARTHER,
    among,
    keep_centres,
    move_medoids,
    nearest,
    raster,
    squared_distances,
)
from operators.reducers.divprune import farthest

if TYPE_CHECKING:
    import torch


class CenterCLIPConfig(ReducerConfig):
    """What a job may say about CenterCLIP."""

    name: Literal["centerclip"] = "centerclip"
    keep: Annotated[
        Keep, Field(description="Tokens that are left of a segment, or their share.")
    ] = 49
    frames: Annotated[
        int,
        Field(ge=1, description="Frames of a segment; divides how many `features` has in front."),
    ] = 1
    algorithm: Annotated[
        Literal["kmedoids", "spectral"],
        Field(description="What is clustered: features, or the spectrum of their graph."),
    ] = "kmedoids"
    distance: Annotated[
        Literal["euclidean", "cosine"],
        Field(description="Between features; the spectrum is always Euclidean."),
    ] = "euclidean"
    normalize: Annotated[
        bool, Field(description="Bring features to unit norm before anything else.")
    ] = False
    iterations: Annotated[
        int, Field(ge=1, le=1000, description="Rounds at most; it ends when no medoid moves.")
    ] = 100
    sigma: Annotated[
        float, Field(gt=0, description="Of the graph: weights exp(-distance^2 / (2 sigma^2)).")
    ] = 2.0
    neighbours: Annotated[
        int | None,
        Field(
            ge=1,
            description="Of the graph: edges to so many nearest tokens, itself one of them; by "
            "default 5 a frame, and 5 more from 100 tokens.",
        ),
    ] = None
    rows: Annotated[
        Literal["medoids", "means"],
        Field(description="What stands for a cluster: its medoid (the authors'), or its mean."),
    ] = "medoids"


class CenterCLIP(Reducer[CenterCLIPConfig]):
    """Keeps the medoids of clusters, in raster order; ``token_map`` says who is in which.

    ``features`` [T, N, C] are T frames: so many ``frames`` in a row are a segment, whose tokens are
    clustered together, frame by frame, and all of a video's medoids stand one after another. With
    one frame a segment, or [N, C], every frame is clustered by itself. Rows are not by frame: the
    map [T, N] counts them through.

    The start is greedy and needs no chance: the token of the largest norm, then always the one that
    is farthest from its nearest centre. A new medoid is the member with the smallest sum of
    distances to the members of its cluster.

    ``spectral`` does the same on the K smoothest eigenvectors of the graph's normalized Laplacian,
    with rows of unit norm. There the authors' first token is decided by rounding, here it is the
    first token; eigenvectors differ by device, so clusters that are not well apart may, too. It
    takes cubic time. Their mask of places and times, their learned cluster embedding and the sign
    of eigenvectors, which no distance depends on, are left out.

    The authors stop a whole batch when medoids move less than 1e-5 on average; here every row goes
    on until none moves. A medoid is always in its own cluster. A share is cut to a whole number.

    Source: Zhao et al., "CenterCLIP", section 3. Checked: the authors' medoids and assignments for
    both distances, their spectral partition, brute-force oracles.
    """

    Config = CenterCLIPConfig
    paper = "arXiv:2205.00823"
    is_joint = True

    def bind(self, fields: Mapping[str, FieldSpec]) -> None:
        """Check that the frames of a video are whole segments.

        Raises:
            ContractError: they are not, or there are no frames.
        """
        frames, features = self.config.frames, fields.get("features")
        if features is not None and frames > 1:
            there = features.shape[0] if len(features.shape) == 3 else None
            if there is None or there % frames:
                raise ContractError(
                    f"centerclip: frames={frames} does not divide the frames of features "
                    f"{features}",
                    hint="give features [T, N, C] with T a multiple of frames, or frames: 1",
                )
        super().bind(fields)

    def num_kept(self, num_tokens: int) -> int:
        """Return ``keep``, or its share of a segment's tokens, cut to a whole number; of all."""
        count = self._segments
        return count * self._kept_of(num_tokens // count)

    @property
    def _segments(self) -> int:
        """How many an image or video has."""
        return max(1, (self.joint_crops or 1) // self.config.frames)

    def _kept_of(self, num_tokens: int) -> int:
        """Return what is left of a segment."""
        return share(self.config.keep, num_tokens, self.config.name, rounding=int)

    def reduce(self, tokens: Tokens) -> Reduction:
        """Cluster every segment; their clusters stand one after another."""
        import torch

        count = self._segments
        segments = replace(
            tokens,
            features=tokens.features.unflatten(1, (count, -1)).flatten(0, 1),
            sizes=tokens.sizes.unflatten(1, (count, -1)).flatten(0, 1),
            valid=None
            if tokens.valid is None
            else tokens.valid.unflatten(1, (count, -1)).flatten(0, 1),
        )
        centres, slots = self._cluster(segments)
        num, kept = slots.shape[1], centres.shape[1]
        segment = torch.arange(count, device=centres.device)[:, None]
        centres = (centres.unflatten(0, (-1, count)) + segment * num).flatten(1)
        slots = (slots.unflatten(0, (-1, count)) + segment * kept).flatten(1)
        if self.config.rows == "means":
            return merge(tokens, slots, count * kept)
        return keep_centres(tokens, centres, slots)

    def _cluster(self, tokens: Tokens) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return int64 [S, K], the medoids of segments, and [S, N], whose cluster tokens are in."""
        import torch

        x, valid, num = tokens.features.float(), tokens.valid, tokens.features.shape[1]
        kept = self._kept_of(num)
        if self.config.normalize:
            x = unit(x)
        norms = tokens.without_padding(x.norm(dim=2))
        if self.config.algorithm == "spectral":
            x = spectrum(x, valid, kept, self.config.sigma, self._neighbours(num))
            norms = tokens.without_padding(torch.ones_like(norms))
            distances = squared_distances(x, valid).sqrt()
        elif self.config.distance == "cosine":
            distances = 1 - cosine(x, x)
            distances = (distances + distances.transpose(1, 2)) / 2  # so that a tie is one
        else:
            distances = squared_distances(x, valid).sqrt()
        centres = farthest(distances, tokens, kept, norms.argmax(dim=1, keepdim=True))
        finite = among(distances, valid)

        def costs(slots: "torch.Tensor") -> "torch.Tensor":
            together = slots[:, :, None] == slots[:, None, :]
            if valid is not None:
                together = together & valid[:, None, :]
            sums = (distances * together).sum(dim=2)
            return sums if valid is None else sums.masked_fill(~valid, FARTHER)

        centres = raster(move_medoids(finite, centres, costs, self.config.iterations), valid)
        return centres, nearest(finite, centres)

    def _neighbours(self, num_tokens: int) -> int:
        """How many the graph of a segment joins each token to."""
        default = 5 * self.config.frames + (5 if num_tokens >= 100 else 0)
        return min(self.config.neighbours or default, num_tokens)


def unit(x: "torch.Tensor") -> "torch.Tensor":
    """Return rows of norm one, as the authors make them: those near zero stay short."""
    return x / (x.norm(dim=-1, keepdim=True) + 1e-6)


def spectrum(
    x: "torch.Tensor", valid: "torch.Tensor | None", k: int, sigma: float, neighbours: int
) -> "torch.Tensor":
    """Return float32 [B, N, k]: for each token its place in the smoothest eigenvectors.

    Args:
        x: float32 [B, N, C].
        valid: bool [B, N] or None; padding is joined to nothing.
        k: How many eigenvectors.
        sigma: Width of the weights.
        neighbours: Two tokens are joined when either is among so many nearest of the other.
    """
    import torch

    squared = squared_distances(x, valid)
    weights = (-among(squared, valid) / (2 * sigma**2)).exp()  # 0 to padding
    order = among(squared, valid).sort(dim=2, stable=True).indices[..., :neighbours]
    is_near = torch.zeros_like(weights, dtype=torch.bool).scatter(2, order, True)
    weights = weights * (is_near | is_near.transpose(1, 2))
    degrees = weights.sum(dim=2)
    scale = degrees.clamp(min=1e-30).rsqrt()
    laplacian = torch.diag_embed(degrees) - weights
    laplacian = scale[:, :, None] * laplacian * scale[:, None, :]
    if valid is not None:  # eigenvalues above all others, which are at most 2
        laplacian = laplacian + torch.diag_embed(4.0 * ~valid)
    return unit(torch.linalg.eigh(laplacian).eigenvectors[..., :k])
