"""An attention of transformers that is fused everywhere, and notes what is asked of some layers.

Shapes: B images, H heads, T tokens of the model, N of them image tokens, D channels a head.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "noted_sdpa"
"""What models call it: ``attn_implementation``."""


@dataclass(slots=True)
class Notes:
    """What is asked of layers, and what was found in one forward pass.

    Attributes:
        asked: Attention module -> which of ``cls_attention``, ``cls_logits``, ``attention``,
            ``received_attention``, ``keys`` and ``values`` are wanted of it.
        prefix: Tokens in front of the image's.
        found: (attention module, what) -> the tensor, of image tokens alone.
        seen: The modules that were called, and heads and channels a head of each.
    """

    asked: Mapping[Any, frozenset[str]]
    prefix: int
    found: dict[tuple[Any, str], torch.Tensor] = field(default_factory=dict)
    seen: dict[Any, tuple[int, int]] = field(default_factory=dict)


_NOTES: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextmanager
def noting(notes: Notes) -> Iterator[None]:
    """Fill ``notes`` for the length of a block."""
    token = _NOTES.set(notes)
    try:
        yield
    finally:
        _NOTES.reset(token)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' sdpa does; queries, keys and values are [B, H, T, D]."""
    biases = (attention_mask, more.get("position_bias"))
    note(module, query, key, value, biases, scaling)
    attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **more
    )
    return attended


def note(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    biases: tuple[torch.Tensor | None, ...],
    scaling: float | None,
) -> None:
    """Note what is asked of an attention whose queries, keys and values are [B, H, T, D]."""
    notes = _NOTES.get()
    if notes is None:
        return
    notes.seen[module] = (key.shape[1], key.shape[3])
    for what in notes.asked.get(module, ()):
        tensor = key if what == "keys" else value
        if what in ("keys", "values"):
            found = tensor[:, :, notes.prefix :].transpose(1, 2)
        else:
            found = _weights(what, query, key, biases, scaling, notes.prefix)
        notes.found[module, what] = found


def _weights(
    what: str,
    query: torch.Tensor,
    key: torch.Tensor,
    biases: tuple[torch.Tensor | None, ...],
    scaling: float | None,
    prefix: int,
) -> torch.Tensor:
    """Return float32 rows of the softmax, without the prefix, not normalised again.

    ``cls_attention`` [B, H, N] is the first token's row alone, ``cls_logits`` that before the
    softmax; ``attention`` [B, H, N, N] the rows of all image tokens, ``received_attention``
    [B, H, N] their mean.
    """
    is_first = what in ("cls_attention", "cls_logits")
    rows = slice(0, 1) if is_first else slice(prefix, None)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query[:, :, rows].float() @ key.float().transpose(2, 3) * scale
    for bias in biases:
        if bias is None:
            continue
        of_rows = bias[..., rows, :] if bias.shape[-2] > 1 else bias
        if of_rows.dtype == torch.bool:
            scores = scores.masked_fill(~of_rows, float("-inf"))
        else:
            scores = scores + of_rows
    weights = (scores if what == "cls_logits" else scores.softmax(dim=-1))[..., prefix:]
    if what == "attention":
        return weights
    return weights[:, :, 0] if is_first else weights.mean(dim=2)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
