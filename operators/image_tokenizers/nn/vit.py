"""Plain pre-norm transformer blocks, named as in timm and the many models made of its parts.

Shapes: B batch, T tokens, D width, H heads, d width of a head.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

Activation = Callable[[torch.Tensor], torch.Tensor]


class Block(nn.Module):  # type: ignore[misc]
    """``x += attn(norm1(x))`` and ``x += mlp(norm2(x))``.

    The residual stream keeps the dtype it comes in, matrix products have the dtype of their
    weights: see ``linear_to_bfloat16``.

    Args:
        dim: D.
        num_heads: H, divides ``dim``.
        hidden: Width inside the MLP.
        eps: Of the norms.
        qkv_bias: Queries, keys and values have a bias.
    """

    def __init__(
        self, dim: int, num_heads: int, hidden: int, *, eps: float = 1e-6, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim, hidden)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return [B, T, D]."""
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Attention(nn.Module):  # type: ignore[misc]
    """Multi-head self-attention; queries, keys and values come from one matrix."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self._num_heads = num_heads

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return [B, T, D] in the weights' dtype."""
        qkv = self.qkv(x_BTD.to(self.qkv.weight.dtype)).unflatten(-1, (3, self._num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out_BHTd = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out_BHTd.transpose(1, 2).flatten(2))


class MLP(nn.Module):  # type: ignore[misc]
    """``fc2(activation(fc1(x)))``, with biases."""

    def __init__(self, dim: int, hidden: int, activation: Activation = F.gelu) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self._activation = activation

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return [B, T, D] in the weights' dtype."""
        return self.fc2(self._activation(self.fc1(x_BTD.to(self.fc1.weight.dtype))))


def linear_to_bfloat16(module: nn.Module) -> None:
    """Make the weights of all linear maps in ``module`` bfloat16, and leave the norms float32."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.to(torch.bfloat16)
