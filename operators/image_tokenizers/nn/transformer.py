"""Pre-norm transformer with normalised queries and keys, a gated MLP and optional adaLN.

Shapes: B batch, T tokens, D width, H heads, S segments of a sequence.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name


class Transformer(nn.Module):  # type: ignore[misc]
    """A stack of blocks; nothing before or after it.

    The residual stream stays in the dtype it comes in, norms are computed in float32, and
    matrix products in the dtype of the weights: ``trunk.to(torch.bfloat16)`` makes them bfloat16
    and leaves the stream float32.

    Args:
        dim: D.
        depth: Blocks.
        head_dim: Width of a head, divides ``dim``.
        hidden: Width inside the MLP.
        num_segments: S, the segments that adaLN tells apart; 0 is no adaLN.
    """

    def __init__(
        self, dim: int, depth: int, head_dim: int, hidden: int, *, num_segments: int = 0
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, head_dim, hidden, num_segments=num_segments) for _ in range(depth)
        )

    def forward(
        self,
        x_BTD: torch.Tensor,
        *,
        mask_TT: torch.Tensor | None = None,
        emb_BD: torch.Tensor | None = None,
        segment_T: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return [B, T, D].

        Args:
            x_BTD: Tokens.
            mask_TT: True where a query (row) sees a key (column); None is everywhere.
            emb_BD: What adaLN modulates by.
            segment_T: int64, segment of each token, for adaLN.
        """
        for block in self.blocks:
            x_BTD = block(x_BTD, mask_TT, emb_BD, segment_T)
        return x_BTD


class Block(nn.Module):  # type: ignore[misc]
    """``x += attn(norm(x))`` and ``x += mlp(norm(x))``, each with adaLN's shift, scale and gate."""

    def __init__(self, dim: int, head_dim: int, hidden: int, *, num_segments: int) -> None:
        super().__init__()
        self.attn = Attention(dim, head_dim)
        self.mlp = GatedMLP(dim, hidden)
        if num_segments:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, num_segments * 6 * dim))
        self._num_segments = num_segments

    def forward(
        self,
        x_BTD: torch.Tensor,
        mask_TT: torch.Tensor | None,
        emb_BD: torch.Tensor | None,
        segment_T: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return [B, T, D]."""
        if not self._num_segments:
            x_BTD = x_BTD + self.attn(layer_norm(x_BTD), mask_TT)
            return x_BTD + self.mlp(layer_norm(x_BTD))
        per_segment = self.adaLN_modulation(emb_BD).unflatten(-1, (self._num_segments, 6, -1))
        parts = per_segment[:, segment_T].unbind(dim=2)
        gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = parts
        attended = self.attn(layer_norm(x_BTD) * (1 + scale_attn) + shift_attn, mask_TT)
        x_BTD = x_BTD + gate_attn * attended
        return x_BTD + gate_mlp * self.mlp(layer_norm(x_BTD) * (1 + scale_mlp) + shift_mlp)


class Attention(nn.Module):  # type: ignore[misc]
    """Multi-head attention with layer-normalised queries and keys and softmax scale 8 / head_dim.

    The scale is that of maximal update parametrization; it equals 1 / sqrt(head_dim) at 64 only.
    """

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, dim, bias=False)
        self.wv = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self._head_dim = head_dim

    def forward(self, x_BTD: torch.Tensor, mask_TT: torch.Tensor | None) -> torch.Tensor:
        """Return [B, T, D] in the weights' dtype."""
        x_BTD = x_BTD.to(self.wq.weight.dtype)
        q, k, v = (
            w(x_BTD).unflatten(-1, (-1, self._head_dim)).transpose(1, 2)
            for w in (self.wq, self.wk, self.wv)
        )
        out_BHTd = F.scaled_dot_product_attention(
            layer_norm(q), layer_norm(k), v, attn_mask=mask_TT, scale=8 / self._head_dim
        )
        return self.proj(out_BHTd.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):  # type: ignore[misc]
    """``fc2(silu(fc1 x) * fc3 x)``, without biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)
        self.fc3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return [B, T, D] in the weights' dtype."""
        x_BTD = x_BTD.to(self.fc1.weight.dtype)
        return self.fc2(F.silu(self.fc1(x_BTD)) * self.fc3(x_BTD))


def layer_norm(x: torch.Tensor) -> torch.Tensor:
    """Return the parameter-free layer norm over the last axis, computed in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-5).to(x.dtype)


def causal_last_mask(num_prefix: int, num_last: int, device: torch.device) -> torch.Tensor:
    """Return bool [T, T], T = num_prefix + num_last: True where a query sees a key.

    Every token sees the whole prefix; the last ones see each other causally as well.
    """
    index = torch.arange(num_prefix + num_last, device=device)
    return (index < num_prefix) | (index <= index[:, None])
