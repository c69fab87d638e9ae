"""Average windows of a grid of tokens."""

import math

import numpy as np

from operators.errors import ContractError
from operators.reducers.base import Reduction, Tokens


def square_side(num_tokens: int, name: str) -> int:
    """Return the side of a square of tokens.

    Raises:
        ContractError: they are none.
    """
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ContractError(
            f"{name}: {num_tokens} tokens are no square",
            hint="use a vision encoder's patches, without class token, of square images",
        )
    return side


def cells(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return bool [R * Q, S * S]: tokens of a square grid that each window holds.

    Args:
        rows: bool [R, S], the lines that each row of windows holds.
        columns: bool [Q, S], likewise.
    """
    windows: np.ndarray = rows[:, None, :, None] & columns[None, :, None, :]
    return windows.reshape(len(rows) * len(columns), -1)


def average(tokens: Tokens, windows: np.ndarray, token_map: np.ndarray) -> Reduction:
    """Average the tokens of windows; windows of nothing but padding are left out.

    Args:
        tokens: What is given, each token being one of the encoder's.
        windows: bool [K, N], the tokens of each; they may overlap.
        token_map: int64 [N], the window that stands for each token, -1 for none.
    """
    import torch

    device = tokens.features.device
    members = torch.from_numpy(windows).to(device).float()
    number = torch.from_numpy(token_map).to(device).expand(tokens.features.shape[:2])
    features = tokens.features.float()
    if tokens.valid is None:
        sizes = members.sum(dim=1).expand(len(features), -1)
        pooled = (members @ features) / sizes[..., None]
        return Reduction(pooled.to(tokens.features.dtype), number, sizes=sizes)
    real = tokens.valid.float()[..., None]
    sizes = members @ real
    pooled = (members @ (features * real)) / sizes.clamp(min=1)
    is_empty = sizes[..., 0] == 0
    order = is_empty.to(torch.int8).sort(dim=1, stable=True).indices
    place = order.argsort(dim=1)
    moved = place.gather(1, number.clamp(min=0))
    number = torch.where((number >= 0) & tokens.valid, moved, -1)
    pooled = pooled.gather(1, order[..., None].expand(-1, -1, pooled.shape[2]))
    lengths = (~is_empty).sum(dim=1)
    dtype = tokens.features.dtype
    return Reduction(pooled.to(dtype), number, lengths, sizes=sizes[..., 0].gather(1, order))
