"""Put reduced features back where their tokens were."""

import numpy as np


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
