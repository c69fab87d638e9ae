"""Images/s of every image tokenizer at a published size, with random weights.

Three figures each, taken in one run, one after another in every round:

- bare: the encoder and its quantizer on ready float tensors, as plain PyTorch (inference mode, the
  same dtype, channels last for convolutions), what the others are held against;
- operator: the operator on ready bytes [B, H, W, 3];
- run: a job from JPEG files in WebDataset tars to Arrow shards, with the authors' own resize and
  crop, on the inline engine; its clock runs from the first commit to the last.

On a CPU all have one thread for the model, as a worker has.

On a GPU also the share of the chip's matrix product rate, measured in the same run, that the bare
encoder reaches, by the floating-point operations that torch counts.

    python benchmarks/image_tokenizers.py                   # all, the smallest published sizes
    python benchmarks/image_tokenizers.py titok ibq --device cuda --dtype bfloat16 --batch 64
"""

import argparse
import io
import json
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from operators import registry
from operators.base import FieldSpec
from operators.image_tokenizers.base import ImageTokenizer, Published
from operators.image_tokenizers.nn.precision import float32_arithmetic

JPEG_SIDES = (500, 375)  # the average of ImageNet
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", help="operators; all by default")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=3, help="batches per figure and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-run", action="store_true", help="leave out the end to end figure")
    parser.add_argument("--cpu-threads", type=int, default=1, help="for decoding, of a run")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(1)  # as a worker does
    names = args.names or sorted(
        name for name, cls in registry.all_classes().items() if issubclass(cls, ImageTokenizer)
    )
    chip = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    rate = matmul_rate(args.device, args.dtype)
    head = {
        "device": chip,
        "cores": torch.get_num_threads(),
        "dtype": args.dtype,
        "compile": args.compile,
        "batch": args.batch,
        "matmul_tflops": round(rate / 1e12, 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(head))
    print(
        f"{'operator':<14} {'size':<20} {'tokens':>6} {'GFLOP':>7} {'bare':>8} {'operator':>8} "
        f"{'run':>8} {'op/bare':>7} {'run/op':>7} {'of matmul':>9}  the run's limit"
    )
    found = []
    for name in names:
        figures = measure(name, args, rate)
        found.append(figures)
        share = f"{figures['matmul_share']:.2f}"
        run, ratio = figures.get("run"), figures.get("run_per_operator")
        print(
            f"{name:<14} {figures['size']:<20} {figures['tokens']:>6} {figures['gflop']:>7.1f} "
            f"{figures['bare']:>8.2f} {figures['operator']:>8.2f} "
            f"{f'{run:.2f}' if run else '-':>8} {figures['operator_per_bare']:>7.3f} "
            f"{f'{ratio:.3f}' if ratio else '-':>7} {share:>9}  {figures.get('limit', '')}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({**head, "figures": found}, indent=1), encoding="utf-8")


def measure(name: str, args: argparse.Namespace, rate: float) -> Figures:
    """Return the figures of one tokenizer."""
    cls: Any = registry.get(name)
    published = smallest(cls)
    options = {
        "weights": {"random_seed": 0, "size": published.size},
        "device": args.device,
        "dtype": args.dtype,
        "compile": args.compile,
    }
    op = cls(cls.Config.model_validate({"name": name, **options}))
    side = published.side
    op.bind({"image": FieldSpec("uint8", (side, side, 3))})
    op.setup(args.device)
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (args.batch, side, side, 3), dtype=np.uint8)
    ).to(args.device)
    images = op.prepare(pixels)
    gflop = flops(op, images) / args.batch / 1e9

    calls = (bare_call(op, images), partial(op, {"image": pixels}))
    for call in calls:
        call()
    rounds = [in_turns(calls, args) for _ in range(args.rounds)]
    figures: Figures = {
        "operator_name": name,
        "size": published.size,
        "tokens": published.tokens,
        "gflop": gflop,
        "bare": statistics.median(bare for bare, _ in rounds),
        "operator": statistics.median(operator for _, operator in rounds),
        "operator_per_bare": statistics.median(operator / bare for bare, operator in rounds),
    }
    figures["matmul_share"] = figures["bare"] * gflop * 1e9 / rate
    del op, calls
    if not args.no_run:
        figures.update(end_to_end(name, cls, options, side, args))
        figures["run_per_operator"] = figures["run"] / figures["operator"]
    return figures


def smallest(cls: Any) -> Published:
    """Return the smallest published model that makes ids of images."""
    found: list[tuple[int, int, Published]] = []
    for published in cls.published:
        config = {
            "name": cls.Config.model_fields["name"].default,
            "weights": {"random_seed": 0, "size": published.size},
            "device": "cpu",
        }
        op = cls(cls.Config.model_validate(config))
        if list(op.inputs) == ["image"] and published.codebook is not None:
            with torch.device("meta"):
                net = op.encoder_net()
            parameters = sum(tensor.numel() for tensor in net.state_dict().values())
            found.append((published.side, parameters, published))
    return min(found, key=lambda each: each[:2])[-1]


def bare_call(op: Any, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return the encoder and quantizer as plain PyTorch, on ready tensors."""
    half = op.config.dtype == "bfloat16"
    ready = images.to(torch.bfloat16) if half and not hasattr(op, "trace") else images
    if op.runs_channels_last:
        ready = ready.contiguous(memory_format=torch.channels_last)

    def call() -> torch.Tensor:
        with torch.inference_mode(), float32_arithmetic(tf32=half):
            if hasattr(op, "trace"):  # its net takes more than images
                return op.encode(ready)
            ids: torch.Tensor = op._encoder.quantize.encode(op._forward(ready))
            return ids

    return call


def in_turns(calls: Sequence[Callable[[], Any]], args: argparse.Namespace) -> list[float]:
    """Return images/s of each call, made in turns so that a drifting machine is fair to all."""
    took = [0.0] * len(calls)
    for _ in range(args.batches):
        for i, call in enumerate(calls):
            settle(args.device)
            began = time.perf_counter()
            call()
            settle(args.device)
            took[i] += time.perf_counter() - began
    return [args.batches * args.batch / each for each in took]


def settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def flops(op: Any, images: torch.Tensor) -> int:
    """Return the floating-point operations of the encoder, as torch counts them."""
    counter = FlopCounterMode(display=False)
    with counter:
        op.latents(images)
    total: int = counter.get_total_flops()
    return total


def matmul_rate(device: str, dtype: str) -> float:
    """Return the best of five matrix products, in operations/s."""
    side = 8192 if device == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))
    best = 0.0
    for _ in range(5):
        settle(device)
        began = time.perf_counter()
        a @ a
        settle(device)
        best = max(best, 2.0 * side**3 / (time.perf_counter() - began))
    return float(best)


def end_to_end(
    name: str, cls: Any, options: Figures, side: int, args: argparse.Namespace
) -> Figures:
    """Return images/s of a job over JPEG files, and what held it back."""
    from pipeline import runner
    from pipeline.spec import parse_job

    class Clock:
        def __init__(self) -> None:
            self.commits: list[float] = []

        def waiting(self, message: str) -> None: ...

        def decided(self, warning: str) -> None: ...

        def begin(self, partitions: object, done: object, engine: object) -> None: ...

        def committed(self, result: object) -> None:
            self.commits.append(time.perf_counter())

    count = args.batch * args.batches
    with tempfile.TemporaryDirectory() as folder:
        # One tar to warm up, as many again to measure.
        for tar in range(args.rounds + 1):
            make_tar(Path(folder) / "tars" / f"{tar}.tar", count, seed=tar)
        prepare = [{**s, **({"size": side} if "size" in s else {})} for s in cls.preprocessing]
        steps = [{"name": "decode_image"}, *prepare, {"name": name, **options}]
        job = {
            "name": name,
            "source": {
                "type": "webdataset",
                "urls": f"{folder}/tars/*.tar",
                "fields": {"image_bytes": "jpg"},
                "partition_bytes": 1,
            },
            "operators": steps,
            "batch_size": args.batch,
            "output": f"{folder}/out",
            "run": {"cpu_threads": args.cpu_threads},
            "shards": {"fields": [next(iter(cls(cls.Config.model_validate(steps[-1])).outputs))]},
        }
        clock = Clock()
        runner.run(
            runner.prepare(parse_job(json.dumps(job), name)),
            engine="inline",
            workers=1,
            listener=clock,
        )
        took = clock.commits[-1] - clock.commits[0]
        report = json.loads((Path(folder) / "out" / "report.json").read_text(encoding="utf-8"))
    return {
        "run": args.rounds * count / took,
        "limit": report["limit"]["step"] or report["limit"]["stage"],
    }


def make_tar(path: Path, count: int, seed: int) -> None:
    """Write JPEG files of smooth noise, which are about as large as photographs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            coarse = random.integers(0, 256, (47, 63, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(JPEG_SIDES, Image.Resampling.BICUBIC)
            noisy = np.asarray(image, np.int16) + random.integers(-6, 7, (375, 500, 1))
            data = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
            info = tarfile.TarInfo(f"{seed}_{number:05d}.jpg")
            info.size = len(data.getvalue())
            tar.addfile(info, io.BytesIO(data.getvalue()))


if __name__ == "__main__":
    main()
