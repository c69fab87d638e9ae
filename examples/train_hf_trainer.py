"""Train a tiny GPT-2 with Hugging Face's Trainer, and resume where its data stood.

    python examples/train_hf_trainer.py out/quickstart --steps 100

Needs the extra ``examples``. The same command with more steps goes on after the last batch.
"""

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tiny_gpt import IGNORED, LENGTH, view_of
from torch.utils.data import DataLoader
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from pipeline.loader import MixedDataset, Source, TokenDataset


class TokenTrainer(Trainer):
    """Takes its batches as the data set makes them."""

    def get_train_dataloader(self) -> DataLoader:
        """Return the data in workers: with batch_size=None, collate_fn gets a whole batch."""
        return DataLoader(
            self.train_dataset, batch_size=None, num_workers=2, collate_fn=self.data_collator
        )

    def get_eval_dataloader(self, *_: Any) -> DataLoader:
        """Return the batches to evaluate."""
        return DataLoader(self.eval_dataset, batch_size=None, collate_fn=self.data_collator)


class SaveData(TrainerCallback):
    """Saves where the data stands beside each checkpoint of the model."""

    def __init__(self, data: MixedDataset) -> None:
        self.data = data
        self.first_step = 0  # of this process

    def load(self, checkpoint: Path) -> None:
        """Let the data go on after the last batch of a checkpoint."""
        saved = json.loads((checkpoint / "data.json").read_text())
        self.data.load_state_dict(saved["data"])
        self.first_step = saved["step"]

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Workers have read ahead, so the step says how far the training is."""
        step = state.global_step
        saved = {"data": self.data.state_dict(step - self.first_step), "step": step}
        folder = Path(args.output_dir) / f"checkpoint-{step}"
        (folder / "data.json").write_text(json.dumps(saved))


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="output folder of a finished run")
    parser.add_argument("--field", default="caption_tokens", help="of ids")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--checkpoints", type=Path, default=Path("out/train_hf_trainer"))
    args = parser.parse_args()

    def collate(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        ids, mask = batch[args.field], batch["loss_mask"]
        # The model shifts labels itself and leaves out -100.
        return {"input_ids": ids, "labels": ids.masked_fill(~mask, IGNORED)}

    torch.manual_seed(0)
    # A mixture has no epochs: batches come as long as they are asked for. This one has a single
    # source; more of them would each have their weight.
    data = MixedDataset([Source(args.url, weight=1, view=view_of(args.field))], batch_size=8)
    # The first windows as they are stored; put your held-out data set here.
    held_out = TokenDataset(args.url, batch_size=8, view=view_of(args.field), shuffle=False)
    test = list(islice(held_out, 8))

    vocab_size = data.manifests[0].fields[args.field].vocab_size
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=LENGTH + 1,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    saving = SaveData(data)
    trainer = TokenTrainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(
            output_dir=args.checkpoints,
            max_steps=args.steps,
            save_steps=args.save_every,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            ignore_data_skip=True,  # the data goes on by itself
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=data,
        eval_dataset=test,
        data_collator=collate,
        callbacks=[saving],
    )
    print(f"untrained: evaluation loss {trainer.evaluate()['eval_loss']:.6f}", flush=True)
    last = get_last_checkpoint(args.checkpoints) if args.checkpoints.exists() else None
    if last is not None:
        saving.load(Path(last))
    trainer.train(resume_from_checkpoint=last)
    loss = trainer.evaluate()["eval_loss"]
    print(f"step {trainer.state.global_step}: evaluation loss {loss:.6f}")


if __name__ == "__main__":
    main()
