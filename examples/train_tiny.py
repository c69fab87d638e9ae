"""Train a two-layer transformer on a finished data set: the shortest way from shards to a loss.

    python examples/train_tiny.py out/quickstart --steps 200

Plain PyTorch on a CPU. The vocabulary may be large (65k ids), so the model is narrow, input and
output share one embedding, and the loss is taken at a few positions of every batch.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from pipeline.loader import TokenDataset


class TinyTransformer(nn.Module):  # type: ignore[misc]
    """A causal transformer. B rows, T positions, D width, V ids."""

    def __init__(self, vocab_size: int, context: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.ids_VD = nn.Embedding(vocab_size, width)
        self.positions_TD = nn.Embedding(context, width)
        nn.init.normal_(self.ids_VD.weight, std=0.02)
        nn.init.normal_(self.positions_TD.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=4 * width, dropout=0.0, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return what is known at every position, [B, T, D]; times ``ids_VD`` it is logits."""
        length = ids_BT.shape[1]
        hidden_BTD = self.ids_VD(ids_BT) + self.positions_TD.weight[:length]
        mask_TT = nn.Transformer.generate_square_subsequent_mask(length)
        return self.norm(self.layers(hidden_BTD, mask=mask_TT, is_causal=True))


def train(
    url: str,
    *,
    steps: int = 200,
    field: str = "sequence",
    batch_size: int = 8,
    context: int = 256,
    positions: int = 256,
    learning_rate: float = 3e-3,
    allow_random_weights: bool = False,
    log_every: int = 20,
) -> list[float]:
    """Train and return the loss of every step, in nats per id.

    Args:
        url: Output folder of a finished run.
        steps: Optimizer steps; epochs are repeated as needed.
        field: A field of ids with a row length that may vary.
        batch_size: Rows per step.
        context: Longer rows are cut to this many ids, and one more to predict.
        positions: Positions of a batch at which the loss is taken, at random.
        learning_rate: Of AdamW.
        allow_random_weights: Train on tokens that mean nothing.
        log_every: Print the loss every so many steps; 0 prints nothing.
    """
    torch.manual_seed(0)
    data = TokenDataset(
        url, batch_size=batch_size, fields=[field], allow_random_weights=allow_random_weights
    )
    vocab_size = data.manifest.fields[field].vocab_size
    if vocab_size is None:
        raise SystemExit(f"field {field!r} of {url} holds no ids; the manifest names its fields")
    model = TinyTransformer(vocab_size, context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses: list[float] = []
    started = time.perf_counter()
    for (ids_BT, mask_BT), step in zip(
        _rows(data, field, context + 1), range(1, steps + 1), strict=False
    ):
        hidden_BTD = model(ids_BT[:, :-1])
        rows, columns = mask_BT[:, 1:].nonzero(as_tuple=True)
        chosen = torch.randperm(len(rows))[:positions]
        rows, columns = rows[chosen], columns[chosen]
        logits = hidden_BTD[rows, columns] @ model.ids_VD.weight.T
        loss = functional.cross_entropy(logits, ids_BT[rows, columns + 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if log_every and step % log_every == 0:
            spent_s = time.perf_counter() - started
            print(f"step {step:5d}   loss {loss.item():6.3f}   {spent_s:5.1f} s", flush=True)
    return losses


def _rows(
    data: TokenDataset, field: str, length: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield int64 ids [B, T] and a mask [B, T], epoch after epoch."""
    epoch = 0
    while True:
        data.set_epoch(epoch)
        for batch in data:
            ids = batch[field]
            if isinstance(ids, torch.Tensor):
                ids_BT = ids[:, :length]
                mask_BT = torch.ones(ids_BT.shape, dtype=torch.bool)
            else:
                ids_BT, mask_BT = ids.padded(0, min(length, int(ids.lengths.max())))
            yield ids_BT.long(), mask_BT
        epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="output folder of a finished run")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--field", default="sequence")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--allow-random-weights", action="store_true")
    args = parser.parse_args()
    losses = train(
        args.url,
        steps=args.steps,
        field=args.field,
        batch_size=args.batch_size,
        context=args.context,
        allow_random_weights=args.allow_random_weights,
    )
    few = max(1, min(20, len(losses) // 2))
    first, last = sum(losses[:few]) / few, sum(losses[-few:]) / few
    print(f"mean loss of the first {few} steps {first:.3f}, of the last {few} {last:.3f}")


if __name__ == "__main__":
    main()
