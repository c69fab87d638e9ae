"""Put reduced features back where their tokens were."""

from typing import Any

import numpy as np

Array = Any  # numpy or torch: they share no useful base


def unreduce(
    features: np.ndarray, token_map: np.ndarray, fill: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return features for every token of the encoder: those of the row that stands for it.

    Args:
        features: [K, C] of one image, or [V, K, C] of its crops.
        token_map: int [N] or [V, N], as a reducer writes it: rows of ``features`` (of those of the
            same crop where they have V in front), -1 for dropped.
        fill: What stands where a token was dropped.

    Returns:
        [N, C] or [V, N, C], and bool [N] or [V, N]: where a token is represented.
    """
    is_there = token_map >= 0
    dense = np.full((*token_map.shape, features.shape[-1]), fill, features.dtype)
    if features.ndim == 3:
        crops, _ = np.nonzero(is_there)
        dense[is_there] = features[crops, token_map[is_there]]
    else:
        dense[is_there] = features[token_map[is_there]]
    return dense, is_there


def reconstruct(features: Array, index: Array, weights: Array) -> Array:
    """Return features for every token of the encoder: weighted sums of the rows around it.

    For reducers that write ``reconstruction_index`` and ``reconstruction_weights`` (``expedit``,
    ``super_tokens``). ``features`` may be what a model made of the reduced ones, of any width.

    Args:
        features: [*, K, C], numpy or torch.
        index: int [*, N, k], as written.
        weights: float [*, N, k], as written.

    Returns:
        [*, N, C] of the dtype of ``features``.
    """
    if isinstance(features, np.ndarray):
        places, shares = np.asarray(index, np.int64), np.asarray(weights)
        dense = np.zeros((*places.shape[:-1], features.shape[-1]), np.float32)
        for i in range(places.shape[-1]):  # one neighbour at a time: k times less memory
            rows = np.take_along_axis(features, places[..., i, None], axis=-2)
            dense += shares[..., i, None] * rows
        return dense.astype(features.dtype)
    import torch

    near = index.long()
    found = torch.zeros((*near.shape[:-1], features.shape[-1]), device=features.device)
    for i in range(near.shape[-1]):
        found = found + weights[..., i, None] * torch.take_along_dim(
            features, near[..., i, None], dim=-2
        )
    return found.to(features.dtype)
