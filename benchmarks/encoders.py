"""Images/s of ``vision_encoder`` at published sizes with random weights, and what signals cost.

All on ready batches, one after another in every round, float32 or bfloat16 throughout:

- usual: transformers' model with sdpa and ``output_hidden_states``, as one would call it;
- bare: the same model without the layers that are not needed, as plain PyTorch;
- operator: the operator on ready bytes [B, H, W, 3], nothing asked of it;
- cls, map: the operator, asked for ``cls_attention``, or for ``attention``, of one layer;
- eager: transformers' model with eager attention and ``output_attentions``, which is how maps are
  had otherwise.

    python -m benchmarks.encoders
    python -m benchmarks.encoders siglip_so400m_14_384 --device cuda --dtype bfloat16 --batch 64
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.image_tokenizers import in_turns
from operators.base import FieldSpec
from operators.encoders.families import PUBLISHED
from operators.encoders.vision_encoder import VisionEncoder, VisionEncoderConfig
from operators.image_tokenizers.nn.precision import float32_arithmetic

CALLS = ("usual", "bare", "operator", "cls", "map", "eager")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("sizes", nargs="*", default=["siglip_base_16_224", "dinov2_base"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=2, help="batches per figure and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(1)  # as a worker does
    head = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "dtype": args.dtype,
        "batch": args.batch,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(head))
    print(f"{'size':<28} {'tokens':>6} " + " ".join(f"{name:>8}" for name in CALLS))
    found = []
    for size in args.sizes:
        figures = measure(size, args)
        found.append(figures)
        rates = " ".join(f"{figures[name]:>8.2f}" for name in CALLS)
        print(f"{size:<28} {figures['tokens']:>6} {rates}", flush=True)
        ratios = {name: round(figures[name] / figures["bare"], 3) for name in CALLS}
        print(f"{'':<28} of bare {json.dumps(ratios)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({**head, "figures": found}, indent=1), encoding="utf-8")


def measure(size: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one published size."""
    side = PUBLISHED[size].side  # type: ignore[index]
    shape = (args.batch, side, side, 3)
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8)).to(args.device)
    plain = operator(size, side, args)
    received = {} if "cls" in plain.offers else {"cls_attention": "received"}
    asking = {name: (name, received) for name in ("cls_attention", "attention")}
    cls, maps = (operator(size, side, args, name, **more) for name, more in asking.values())
    normalised = plain._preparation.normalization.of(pixels.permute(0, 3, 1, 2).contiguous())
    normalised = normalised.to(getattr(torch, args.dtype))
    assert plain._tower is not None
    calls: dict[str, Callable[[], Any]] = {
        "usual": usual(plain, normalised, args, "sdpa", output_hidden_states=True),
        "bare": plainly(plain._tower._call, normalised, args),
        "operator": partial(plain, {"image": pixels}),
        "cls": partial(cls, {"image": pixels}),
        "map": partial(maps, {"image": pixels}),
        "eager": usual(
            plain, normalised, args, "eager", output_hidden_states=True, output_attentions=True
        ),
    }
    for call in calls.values():
        call()
    rounds = [in_turns(list(calls.values()), args) for _ in range(args.rounds)]
    medians = [statistics.median(each) for each in zip(*rounds, strict=True)]
    tokens = plain.outputs["features"].shape[0]
    return {"size": size, "tokens": tokens, **dict(zip(calls, medians, strict=True))}


def operator(size: str, side: int, args: argparse.Namespace, *asked: str, **more: Any) -> Any:
    """Return the operator, set up; its model is given whole batches."""
    settings = {"device": args.device, "dtype": args.dtype, "tower_batch": args.batch, **more}
    weights = {"random_seed": 0, "size": size}
    op = VisionEncoder(VisionEncoderConfig.model_validate({"weights": weights, **settings}))
    op.provide(frozenset(asked))
    op.bind({"image": FieldSpec("uint8", (side, side, 3))})
    op.setup(args.device)
    return op


def usual(
    op: Any, normalised: torch.Tensor, args: argparse.Namespace, attention: str, **options: Any
) -> Callable[[], Any]:
    """Return a whole model of transformers, called with options."""
    model = transformers.AutoModel.from_config(op._config, attn_implementation=attention).eval()
    model.to(device=args.device, dtype=normalised.dtype)
    return plainly(partial(model, **options), normalised, args)


def plainly(
    call: Callable[[Any], Any], normalised: torch.Tensor, args: argparse.Namespace
) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode(), float32_arithmetic(tf32=args.dtype == "bfloat16"):
            return call(normalised)

    return run


if __name__ == "__main__":
    main()
