"""What clustering reducers share: distances, nearest centres, medoids, reductions to them."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from operators.keyed_draws import draws_of_keys
from operators.reducers.base import Reduction, Tokens

if TYPE_CHECKING:
    import torch

FARTHER = 1e30
"""Above every cost; finite, so that of a slot of padding the first member is the medoid."""


def squared_distances(features: "torch.Tensor", valid: "torch.Tensor | None") -> "torch.Tensor":
    """Return squared Euclidean distances, float32 [B, N, N], symmetric, 0 on the diagonal.

    They are made of inner products of features around their mean, where less is lost to rounding.

    Args:
        features: [B, N, C].
        valid: bool [B, N] or None; padding has no part in the mean.
    """
    import torch

    x = features.float()
    weights = torch.ones_like(x[..., :1]) if valid is None else valid[..., None].float()
    mean = weights.transpose(1, 2) @ x / weights.sum(dim=1, keepdim=True).clamp(min=1)
    x = x - mean
    inner = x @ x.transpose(1, 2)
    norms = inner.diagonal(dim1=1, dim2=2)
    squared = norms[:, :, None] + norms[:, None, :] - inner - inner.transpose(1, 2)
    squared = squared.clamp(min=0)
    squared.diagonal(dim1=1, dim2=2).zero_()
    return squared


def among(distances: "torch.Tensor", valid: "torch.Tensor | None") -> "torch.Tensor":
    """Return distances [B, N, N] with infinity to and from padding."""
    if valid is None:
        return distances
    far = ~(valid[:, :, None] & valid[:, None, :])
    return distances.masked_fill(far, float("inf"))


def nearest(distances: "torch.Tensor", centres: "torch.Tensor") -> "torch.Tensor":
    """Return int64 [B, N]: the slot of each token's nearest centre, the first of equals.

    A centre is always in its own slot, so that no slot is empty.

    Args:
        distances: [B, N, N], infinite to padding.
        centres: int64 [B, K], different tokens.
    """
    import torch

    count, num = distances.shape[:2]
    to_centres = distances.gather(2, centres[:, None, :].expand(-1, num, -1))
    slots = torch.arange(centres.shape[1], device=centres.device).expand(count, -1)
    return to_centres.argmin(dim=2).scatter(1, centres, slots)


def medoids(costs: "torch.Tensor", slots: "torch.Tensor", num_slots: int) -> "torch.Tensor":
    """Return int64 [B, K]: the member of lowest cost of each slot, the first of equals.

    Args:
        costs: [B, N].
        slots: int64 [B, N], none of them empty.
        num_slots: K.
    """
    import torch

    is_member = slots[:, None, :] == torch.arange(num_slots, device=slots.device)[:, None]
    return costs[:, None, :].masked_fill(~is_member, float("inf")).argmin(dim=2)


def move_medoids(
    distances: "torch.Tensor",
    centres: "torch.Tensor",
    costs: "Callable[[torch.Tensor], torch.Tensor]",
    rounds: int,
) -> "torch.Tensor":
    """Return the medoids after at most so many rounds; it ends earlier when none moves.

    Args:
        distances: [B, N, N], infinite to padding.
        centres: int64 [B, K], different tokens.
        costs: Of every token [B, N] as the medoid of its slot, given all slots [B, N].
        rounds: Of assignment and choice.
    """
    import torch

    for _ in range(rounds):
        slots = nearest(distances, centres)
        moved = medoids(costs(slots), slots, centres.shape[1])
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def raster(centres: "torch.Tensor", valid: "torch.Tensor | None") -> "torch.Tensor":
    """Return centres [B, K] by their place, padding last."""
    import torch

    if valid is None:
        return centres.sort(dim=1).values
    num = valid.shape[1]
    is_padding = (~valid.gather(1, centres)).to(torch.int64)
    return (centres + is_padding * num).sort(dim=1).values % num


def names_of(tokens: Tokens) -> pa.Array:
    """Return what random numbers of each row depend on, large_string [B].

    It is the sample's key, and for the second crop on which one it is.
    """
    keys = tokens.more["key"]
    if tokens.crops is None:
        return keys
    return pa.array(
        [
            key if crop == 0 else f"{key}\0{crop}"  # no key has a NUL
            for key, count in zip(keys.to_pylist(), np.diff(tokens.crops), strict=True)
            for crop in range(count)
        ],
        pa.large_string(),
    )


def drawn(tokens: Tokens, seed: int, purpose: str) -> "torch.Tensor":
    """Return int64 [B, 1]: a token of each row, drawn from those that are no padding.

    Args:
        tokens: Whose keys, with the seed, are all that it depends on.
        seed: Of the job.
        purpose: Of the number; another one gives independent tokens.
    """
    import torch

    draws = torch.from_numpy(draws_of_keys(seed, purpose, names_of(tokens))[:, :1].copy())
    if tokens.valid is None:
        return (draws * tokens.features.shape[1]).long().to(tokens.features.device)
    order = (~tokens.valid).to(torch.int8).sort(dim=1, stable=True).indices
    counts = tokens.valid.sum(dim=1, keepdim=True)
    return order.gather(1, (draws.to(counts.device) * counts).long())


def keep_centres(tokens: Tokens, centres: "torch.Tensor", slots: "torch.Tensor") -> Reduction:
    """Return a reduction to copies of the centres, each of which stands for its slot.

    Args:
        tokens: What is given.
        centres: int64 [B, K], different tokens; rows of padding are left out.
        slots: int64 [B, N].
    """
    import torch

    lengths = None
    if tokens.valid is not None:
        is_padding = ~tokens.valid.gather(1, centres)
        order = is_padding.to(torch.int8).sort(dim=1, stable=True).indices
        centres = centres.gather(1, order)
        slots = order.argsort(dim=1).gather(1, slots).masked_fill(~tokens.valid, -1)
        lengths = (~is_padding).sum(dim=1)
    channels = tokens.features.shape[2]
    features = tokens.features.gather(1, centres[..., None].expand(-1, -1, channels))
    return Reduction(features, slots, lengths, centres)
