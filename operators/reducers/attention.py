"""How much attention tokens receive: what several reducers rank by."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

from operators.reducers.base import Tokens


def class_scores(tokens: Tokens, layer: int = -1) -> "torch.Tensor":
    """Return float32 [B, N]: what the class token attends to, averaged over heads."""
    return tokens.signal("cls_attention")[:, layer].float().mean(dim=1)


def received(
    attention: "torch.Tensor", tokens: Tokens, class_row: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """Return float32 [B, N]: attention that each token gets from all, averaged over heads.

    Args:
        attention: [B, H, N, N] of one layer, from row to column.
        tokens: Whose it is; padding asks for nothing.
        class_row: [B, N], what the class token attends to, where it counts among those that ask.
    """
    by_query = attention.float().mean(dim=1)
    if tokens.valid is not None:
        by_query = by_query.masked_fill(~tokens.valid[..., None], 0)
    total = by_query.sum(dim=1)
    return total if class_row is None else total + class_row
