"""A tiny GPT, and what all examples share: windows of ids in, inputs and targets out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipeline.loader import Windows

LENGTH = 128  # ids that a window has
IGNORED = -100  # target of a place that holds no id


class TinyGPT(nn.Module):
    """A causal transformer. B rows, T positions, D width, V ids."""

    def __init__(self, vocab_size: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.ids_VD = nn.Embedding(vocab_size, width)
        self.positions_TD = nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=4 * width, dropout=0.0, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.logits_DV = nn.Linear(width, vocab_size)

    def forward(self, inputs_BT: torch.Tensor) -> torch.Tensor:
        """Return logits [B, T, V]."""
        length = inputs_BT.shape[1]
        hidden_BTD = self.ids_VD(inputs_BT) + self.positions_TD.weight[:length]
        mask_TT = nn.Transformer.generate_square_subsequent_mask(length)
        return self.logits_DV(self.norm(self.layers(hidden_BTD, mask=mask_TT, is_causal=True)))


def view_of(field: str) -> Windows:
    """Return windows of ``LENGTH`` ids and one more: the last input has a target, too."""
    return Windows(field, LENGTH, extra=1)


def inputs_and_targets(batch: Mapping[str, Any], field: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int64 [B, T] twice: ids, and the id that follows each, or ``IGNORED``."""
    ids, mask = batch[field], batch["loss_mask"]  # False behind the end of the data
    return ids[:, :-1], ids[:, 1:].masked_fill(~mask[:, 1:], IGNORED)


def loss_of(model: nn.Module, batch: Mapping[str, Any], field: str) -> torch.Tensor:
    """Return the mean loss of a batch in nats per id."""
    inputs_BT, targets_BT = inputs_and_targets(batch, field)
    logits_BTV = model(inputs_BT)
    return functional.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED
    )


@torch.no_grad()
def evaluate(model: nn.Module, batches: Sequence[Mapping[str, Any]], field: str) -> float:
    """Return the mean loss over some batches."""
    losses = [loss_of(model, batch, field).item() for batch in batches]
    return sum(losses) / len(losses)
