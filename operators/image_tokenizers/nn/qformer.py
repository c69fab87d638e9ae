"""Q-Former whose queries see one another causally: learned tokens that gather an image in order.

Li et al., 2023, "BLIP-2", arXiv:2301.12597; causal in SEED, arXiv:2307.08041.

Shapes: B batch, Q queries, T tokens of the image, D width, C width of the image's tokens.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

_EPS = 1e-12


class QFormer(nn.Module):  # type: ignore[misc]
    """Post-norm layers (BERT's) over queries.

    Args:
        dim: D.
        depth: Layers.
        num_heads: Of attention.
        hidden: Width inside the MLPs.
        context_dim: C.
        cross_every: Of so many layers the first attends to the image.
        causal: A query sees itself and those before it, else all of them.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        hidden: int,
        *,
        context_dim: int,
        cross_every: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.layers = nn.ModuleList(
            _Layer(dim, num_heads, hidden, None if i % cross_every else context_dim, causal=causal)
            for i in range(depth)
        )

    def forward(self, queries_1QD: torch.Tensor, image_BTC: torch.Tensor) -> torch.Tensor:
        """Return [B, Q, D]."""
        x_BQD = self.norm(queries_1QD).expand(len(image_BTC), -1, -1)
        for layer in self.layers:
            x_BQD = layer(x_BQD, image_BTC)
        return x_BQD


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(
        self, dim: int, num_heads: int, hidden: int, context_dim: int | None, *, causal: bool
    ) -> None:
        super().__init__()
        self.attention = _Attention(dim, num_heads, dim, causal=causal)
        if context_dim is not None:
            self.crossattention = _Attention(dim, num_heads, context_dim, causal=False)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self._sees_image = context_dim is not None

    def forward(self, x_BQD: torch.Tensor, image_BTC: torch.Tensor) -> torch.Tensor:
        x_BQD = self.attention(x_BQD, x_BQD)
        if self._sees_image:
            x_BQD = self.crossattention(x_BQD, image_BTC)
        return self.norm(x_BQD + self.fc2(F.gelu(self.fc1(x_BQD))))


class _Attention(nn.Module):  # type: ignore[misc]
    """``norm(x + dense(attention))``."""

    def __init__(self, dim: int, num_heads: int, context_dim: int, *, causal: bool) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(context_dim, dim)
        self.value = nn.Linear(context_dim, dim)
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self._num_heads, self._causal = num_heads, causal

    def forward(self, x_BQD: torch.Tensor, context_BTC: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            each.unflatten(-1, (self._num_heads, -1)).transpose(1, 2)
            for each in (self.query(x_BQD), self.key(context_BTC), self.value(context_BTC))
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self._causal)
        return self.norm(x_BQD + self.dense(out.transpose(1, 2).flatten(2)))
