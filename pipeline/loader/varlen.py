"""Where documents begin in a batch, in the form of attention kernels for varying lengths."""

import torch


def varlen(position_ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return ``cu_seqlens`` and ``max_seqlen`` of rows of ``position_ids``.

    For what is no longer the batch that a view made: some of its rows, or rows of several.

    Args:
        position_ids: [B, L] or [B * L], from 0 in each document and at the start of each row.

    Returns:
        int32 [K + 1], where the K documents begin in the flattened rows and where the last ends,
        and the tokens of the longest.

    Example:
        >>> varlen(torch.tensor([[0, 1, 2, 0], [0, 0, 1, 2]]))
        (tensor([0, 3, 4, 5, 8], dtype=torch.int32), 3)
    """
    flat = position_ids.flatten()
    starts = torch.nonzero(flat == 0).flatten()
    bounds = torch.cat([starts, starts.new_tensor([len(flat)])]).to(torch.int32)
    return bounds, int(bounds.diff().max()) if len(starts) else 0
