"""Train a tiny GPT with Lightning, which saves where the data stands in its own checkpoints.

    python examples/train_lightning.py out/quickstart --steps 100

Needs the extra ``examples``. The same command with more steps goes on after the last batch.
"""

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_gpt import TinyGPT, evaluate, loss_of, view_of
from torch.utils.data import DataLoader

from pipeline.loader import MixedDataset, Source, TokenDataset


class Training(lightning.LightningModule):
    """A model and its data, in one checkpoint."""

    def __init__(self, url: str, field: str) -> None:
        super().__init__()
        # A mixture has no epochs: batches come as long as they are asked for. This one has a
        # single source; more of them would each have their weight.
        self.data = MixedDataset([Source(url, weight=1, view=view_of(field))], batch_size=8)
        self.field = field
        self.first_step = 0  # of this process
        vocab_size = self.data.manifests[0].fields[field].vocab_size
        assert vocab_size is not None, f"{field} holds no ids"
        self.model = TinyGPT(vocab_size)

    def train_dataloader(self) -> DataLoader:
        """Return batches that the data set makes, so batch_size is None here."""
        return DataLoader(self.data, batch_size=None, num_workers=2)

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the loss."""
        return loss_of(self.model, batch, self.field)

    def transfer_batch_to_device(self, batch: Any, *_: Any) -> Any:
        """Leave the batch where it is: this example trains on the CPU."""
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save where the data stands; workers have read ahead, so the step says how far we are."""
        checkpoint["data"] = self.data.state_dict(self.global_step - self.first_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the data go on after the last batch of the checkpoint."""
        self.data.load_state_dict(checkpoint["data"])
        self.first_step = checkpoint["global_step"]


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="output folder of a finished run")
    parser.add_argument("--field", default="caption_tokens", help="of ids")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--checkpoints", type=Path, default=Path("out/train_lightning"))
    args = parser.parse_args()

    lightning.seed_everything(0)
    training = Training(args.url, args.field)
    # The first windows as they are stored; put your held-out data set here.
    held_out = TokenDataset(args.url, batch_size=8, view=view_of(args.field), shuffle=False)
    test = list(islice(held_out, 8))
    print(
        f"untrained: evaluation loss {evaluate(training.model, test, args.field):.6f}", flush=True
    )

    saving = ModelCheckpoint(args.checkpoints, save_last=True, every_n_train_steps=args.save_every)
    trainer = lightning.Trainer(
        max_steps=args.steps,
        accelerator="cpu",
        callbacks=[saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = args.checkpoints / "last.ckpt"
    trainer.fit(training, ckpt_path=last if last.exists() else None)
    loss = evaluate(training.model, test, args.field)
    print(f"step {trainer.global_step}: evaluation loss {loss:.6f}")


if __name__ == "__main__":
    main()
