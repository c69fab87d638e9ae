"""Time of every token reducer, as a share of the encoder's forward pass before it.

A call of the operator is timed on ready tensors, as it stands between encoder and writer: checks,
reduction, map and sizes; the best of some rounds. On a CPU it is processor time, all threads
together, because others may be at work on the machine; on a GPU it is time by the clock.
Features are random, [batch, 576, 1024]; methods of several crops get theirs, and all is counted for
one crop of 576 tokens. The encoders are transformers' own classes with random weights; on a CPU one
image is encoded, since the time is the same for each.

``naive`` is the paper's pseudo-code written down in plain Python, with loops over images and
tokens, for three typical methods: measured on fewer tokens and channels and extrapolated by the
number of its operations.

    python -m benchmarks.reducers --batch 4                                      # here
    python -m benchmarks.reducers --device cuda --dtype bfloat16                 # batches of 64
    python -m benchmarks.reducers divprune tome --keep 64 --no-encoder
"""

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.reducer_chain import Chain, Encoder, build_chain, reducer_names
from operators import registry
from operators.base import Ragged

Rows = list[list[float]]
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", help="reducers; all by default")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=64, help="images, or crops of images")
    parser.add_argument("--keep", type=int, nargs="+", default=[64, 192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU")
    parser.add_argument("--no-encoder", action="store_true", help="leave out the shares")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chip = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    head = {
        "device": chip,
        "threads": args.threads,
        "dtype": args.dtype,
        "batch": args.batch,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(head))
    encoders = {} if args.no_encoder else encoder_times(args)
    for name, took in encoders.items():
        print(f"{name}: {1e3 * took:.2f} ms an image")
    naive = {name: naive_time(name, args.keep[0]) for name in NAIVE}
    head_cells = ["reducer", "keep", "left", "ms", *(f"of {each}" for each in encoders)]
    head_cells += ["peak MB an image", "naive / this"]
    print(f"| {' | '.join(head_cells)} |\n|{' --- |' * len(head_cells)}")
    found = []
    for name in args.names or reducer_names():
        for keep in args.keep:
            figures = measure(name, keep, args)
            if figures is None:
                print(f"{name}: no options give {keep} of 576 tokens")
                continue
            figures["shares"] = {each: figures["seconds"] / took for each, took in encoders.items()}
            if name in naive:
                figures["naive"] = naive[name] / figures["seconds"]
            found.append(figures)
            print(line(figures), flush=True)
    print("* cubic time, of the algorithm or of one of its choices: see its description")
    if args.json:
        figures = {**head, "encoders": encoders, "figures": found}
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def line(figures: Figures) -> str:
    """Return a line of the table."""
    label = f"`{figures['reducer']}`" + (f" x{figures['calls']}" if figures["calls"] > 1 else "")
    cells = [
        label + (" *" if figures["cubic"] else ""),
        f"{figures['keep']}",
        f"{figures['left']}",
        f"{1e3 * figures['seconds']:.3g}",
        *(f"{share:.2%}" for share in figures["shares"].values()),
        f"{figures['peak_bytes'] / figures['batch'] / 1e6:.1f}",
        f"{figures['naive']:,.0f}" if "naive" in figures else "",
    ]
    return f"| {' | '.join(cells)} |"


def measure(name: str, keep: int, args: argparse.Namespace) -> Figures | None:
    """Return the figures of one reducer; None where no options give such a budget."""
    encoder = Encoder(dtype=args.dtype, device=args.device)
    chain = build_chain(name, keep, encoder)
    if chain is None:
        return None
    images = max(1, args.batch // chain.views)
    batch = chain.batch(images)
    rows = chain(batch)["features"]
    tokens = rows.values.shape[:-1] if isinstance(rows, Ragged) else rows.shape[:-1]
    peak = peak_bytes(chain, batch, args.device)
    took = []
    for _ in range(args.rounds):
        began = clock(args.device)
        chain(batch)
        took.append(clock(args.device) - began)
    about = " ".join((registry.get(name).__doc__ or "").split())
    return {
        "reducer": name,
        "keep": keep,
        "left": round(math.prod(tokens) / (images * chain.views)),
        "calls": len(chain.steps),
        "cubic": "cubic" in about,
        "batch": images * chain.views,
        "seconds": min(took) / (images * chain.views),
        "peak_bytes": peak,
    }


def peak_bytes(chain: Chain, batch: Mapping[str, Any], device: str) -> int:
    """Return the most bytes of tensors that a call holds beside its inputs."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        chain(batch)
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        chain(batch)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def clock(device: str) -> float:
    """Return seconds: of the processor, or by the clock once the GPU is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def encoder_times(args: argparse.Namespace) -> dict[str, float]:
    """Return seconds an image of the encoders' forward passes."""
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    siglip = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )
    clip = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    kinds = {
        "SigLIP-so400m/14-384": (SiglipVisionModel, siglip),
        "ViT-L/14-336": (CLIPVisionModel, clip),
    }
    found = {}
    for name, (cls, config) in kinds.items():
        model = cls(config).to(args.device, getattr(torch, args.dtype)).eval()
        images = args.batch if args.device == "cuda" else 1
        side = config.image_size
        pixels = torch.randn(images, 3, side, side, device=args.device)
        pixels = pixels.to(getattr(torch, args.dtype))
        took = []
        with torch.inference_mode():
            for _ in range(args.rounds + 1):
                began = clock(args.device)
                model(pixels)
                took.append(clock(args.device) - began)
        found[name] = min(took[1:]) / images
        del model
    return found


# --- the papers' pseudo-code, word for word -------------------------------------------------------


def naive_topk(features: Rows, attention: Rows, keep: int) -> Rows:
    """Keep the tokens that the class token attends to most."""
    scores = [sum(head[n] for head in attention) / len(attention) for n in range(len(features))]
    best = sorted(range(len(features)), key=lambda n: -scores[n])[:keep]
    return [list(features[n]) for n in best]


def naive_divprune(features: Rows, keep: int) -> Rows:
    """Add the token that is farthest from those that were added."""
    count = len(features)
    distance = [[1 - naive_cosine(a, b) for b in features] for a in features]
    nearest = [min(distance[n][m] for m in range(count) if m != n) for n in range(count)]
    chosen = [max(range(count), key=lambda n: nearest[n])]
    while len(chosen) < keep:
        left = [n for n in range(count) if n not in chosen]
        chosen.append(max(left, key=lambda n: min(distance[n][m] for m in chosen)))
    return [list(features[n]) for n in sorted(chosen)]


def naive_tome(features: Rows, keep: int) -> Rows:
    """Match tokens of even places with those of odd places and merge the best matches."""
    sizes = [1] * len(features)
    while len(features) > keep:
        even, odd = range(0, len(features), 2), range(1, len(features), 2)
        matches = []
        for a in even:
            alike = [naive_cosine(features[a], features[b]) for b in odd]
            best = max(range(len(alike)), key=lambda i: alike[i])
            matches.append((alike[best], a, odd[best]))
        matches.sort(reverse=True)
        merged = [list(row) for row in features]
        totals = list(sizes)
        gone = set()
        for _, a, b in matches[: min(len(features) // 2, len(features) - keep)]:
            for c in range(len(merged[b])):
                summed = merged[b][c] * totals[b] + features[a][c] * sizes[a]
                merged[b][c] = summed / (totals[b] + sizes[a])
            totals[b] += sizes[a]
            gone.add(a)
        stays = [n for n in range(len(features)) if n not in gone]
        features, sizes = [merged[n] for n in stays], [totals[n] for n in stays]
    return features


def naive_cosine(a: list[float], b: list[float]) -> float:
    product = norm_a = norm_b = 0.0
    for x, y in zip(a, b, strict=True):
        product += x * y
        norm_a += x * x
        norm_b += y * y
    return product / math.sqrt(norm_a * norm_b)


NAIVE: Mapping[str, Callable[..., Rows]] = {
    "topk": naive_topk,
    "divprune": naive_divprune,
    "tome": naive_tome,
}


def naive_time(name: str, keep: int) -> float:
    """Return seconds an image of 576 tokens of 1,024 channels; ToMe and DivPrune extrapolated."""
    draw = random.Random(0).gauss
    tokens, channels = (576, 1024) if name == "topk" else (96, 64)
    features = [[draw(0, 1) for _ in range(channels)] for _ in range(tokens)]
    kept = keep * tokens // 576
    began = time.process_time()
    if name == "topk":
        naive_topk(features, [[draw(0, 1) for _ in range(tokens)] for _ in range(16)], kept)
    else:
        NAIVE[name](features, kept)
    took = time.process_time() - began
    return took * (576 / tokens) ** 2 * (1024 / channels) if name != "topk" else took


if __name__ == "__main__":
    main()
