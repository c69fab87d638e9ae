"""Reduced features, put back where their tokens were, for dense use in training.

Shapes: B samples, V crops (views, frames) of each, M crops of all of them, K rows that are left, N
tokens of the encoder, C channels.
"""

from typing import Any

import torch

from pipeline.errors import ContractError
from pipeline.loader.ragged import RaggedBatch


def size_bias(sizes: torch.Tensor) -> torch.Tensor:
    """Return what proportional attention adds to the logits of every key: the log of its size.

    So a row that stands for three tokens is attended to as the three would be (Bolya et al., "Token
    Merging", section 3, "Tracking Token Size").

    Args:
        sizes: [B, K], as ``sizes.padded(0)`` gives ragged ones; 0 is padding.

    Returns:
        float32 [B, 1, 1, K], -inf for padding: the ``attn_mask`` of torch's
        ``scaled_dot_product_attention``.
    """
    return sizes.float().log()[:, None, None, :]


def unreduce(
    features: torch.Tensor | RaggedBatch,
    token_map: torch.Tensor | RaggedBatch,
    fill: float = 0.0,
) -> tuple[Any, Any]:  # tensors, or ragged as the map is: a union would have to be narrowed
    """Return features for every token of the encoder: those of the row that stands for it.

    Takes the fields ``features`` and ``token_map`` of a batch in any form that a reducer writes
    them. Gradients go back to ``features``; all is done on their device.

    Args:
        features: [B, K, C], or [B, V, K, C]; ragged where samples keep different numbers, or have
            different numbers of crops.
        token_map: int [B, N], or [B, V, N]; ragged [M, N] where samples have different numbers of
            crops. -1 is a token that was dropped.
        fill: What stands where a token was dropped.

    Returns:
        [B, N, C] or [B, V, N, C] of the dtype of ``features``, and a bool mask [B, N] or [B, V, N]:
        where a token is represented. Both ragged, a row for each crop, where the map is.

    Raises:
        ContractError: the two are not of the same samples.

    Example:
        >>> dense, mask = unreduce(batch["features"], batch["token_map"])
    """
    if len(features) != len(token_map):
        raise ContractError(
            f"unreduce: features of {len(features)} samples, token_map of {len(token_map)}",
            hint="give both fields of the same batch",
        )
    values = features.values if isinstance(features, RaggedBatch) else features
    table = values.flatten(0, -2)
    maps = token_map.values if isinstance(token_map, RaggedBatch) else token_map
    maps = maps.to(table.device).long()
    firsts = _first_rows(features, token_map).to(table.device)
    firsts = firsts.reshape(*firsts.shape, *[1] * (maps.dim() - firsts.dim()))
    mask = maps >= 0
    # One row behind the last, for what was dropped.
    padded = torch.cat([table, table.new_full((1, table.shape[1]), fill)])
    dense = padded[torch.where(mask, maps + firsts, len(table))]
    if isinstance(token_map, RaggedBatch):
        return RaggedBatch(dense, token_map.offsets), RaggedBatch(mask, token_map.offsets)
    return dense, mask


def _first_rows(
    features: torch.Tensor | RaggedBatch, token_map: torch.Tensor | RaggedBatch
) -> torch.Tensor:
    """Return int64 [B], [B, V] or [M]: the row of all features that 0 in a map means."""
    if isinstance(features, RaggedBatch) and features.values.dim() == 3:  # crops of K rows each
        return torch.arange(len(features.values)) * features.values.shape[1]
    if isinstance(features, RaggedBatch):
        firsts = features.offsets[:-1]
    else:
        *leading, kept, _ = features.shape
        firsts = (torch.arange(features.shape[:-2].numel()) * kept).reshape(leading)
    if isinstance(token_map, RaggedBatch):  # every crop of a sample counts from its first row
        firsts = firsts.repeat_interleave(token_map.lengths)
    return firsts
