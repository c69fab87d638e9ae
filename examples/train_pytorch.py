"""Train a tiny GPT in plain PyTorch: epochs, DataLoader workers, a checkpoint, exact resume.

    python examples/train_pytorch.py out/quickstart --steps 100

The same command with more steps goes on after the last batch of the checkpoint.
"""

import argparse
from itertools import islice
from pathlib import Path

import torch
from tiny_gpt import TinyGPT, evaluate, loss_of, view_of
from torch.utils.data import DataLoader

from pipeline.loader import TokenDataset


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="output folder of a finished run")
    parser.add_argument("--field", default="caption_tokens", help="of ids")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--checkpoints", type=Path, default=Path("out/train_pytorch"))
    args = parser.parse_args()

    torch.manual_seed(0)
    data = TokenDataset(args.url, batch_size=8, view=view_of(args.field))
    # batch_size=None: the data set makes the batches. Any number of workers yields the same.
    loader = DataLoader(data, batch_size=None, num_workers=2)
    # The first windows as they are stored; put your held-out data set here.
    held_out = TokenDataset(args.url, batch_size=8, view=view_of(args.field), shuffle=False)
    test = list(islice(held_out, 8))

    vocab_size = data.manifest.fields[args.field].vocab_size
    assert vocab_size is not None, f"{args.field} holds no ids"
    model = TinyGPT(vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    step = 0
    if checkpoints := sorted(args.checkpoints.glob("*.pt")):
        saved = torch.load(checkpoints[-1])
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        data.load_state_dict(saved["data"])
        step = saved["step"]
    print(f"step {step}: evaluation loss {evaluate(model, test, args.field):.6f}", flush=True)

    while step < args.steps:
        # The epoch from its beginning, or what is left of it after load_state_dict.
        for num_batches, batch in enumerate(islice(loader, args.steps - step), start=1):
            loss = loss_of(model, batch, args.field)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % args.save_every == 0 or step == args.steps:
                # Workers have read ahead, so the data set is told how far the loop is.
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "data": data.state_dict(num_batches),
                    "step": step,
                }
                args.checkpoints.mkdir(parents=True, exist_ok=True)
                torch.save(state, args.checkpoints / f"step-{step:06d}.pt")
        data.set_epoch(data.epoch + 1)
    print(f"step {step}: evaluation loss {evaluate(model, test, args.field):.6f}")


if __name__ == "__main__":
    main()
