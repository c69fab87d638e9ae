"""Noise that depends on a seed and a name alone: the same for any worker, batch or order."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    import torch


def normal(seed: int, purpose: str, shape: Sequence[int]) -> np.ndarray:
    """Return standard normal float32 values that depend on nothing but the arguments.

    Args:
        seed: Of the job.
        purpose: What the noise is for; another purpose gives independent noise.
        shape: Of the result.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


def normal_of_keys(
    seed: int,
    keys: "pa.Array | Sequence[str]",
    shape: Sequence[int],
    device: "torch.device | str",
    view: int = 0,
) -> "torch.Tensor":
    """Return the noise that each sample's posterior is sampled with, float32 [N, *shape].

    Args:
        seed: Of the job.
        keys: Of the samples.
        shape: Per sample.
        device: Where the result is wanted.
        view: Which of a sample's views; each has noise of its own.
    """
    import torch

    names = keys if isinstance(keys, Sequence) else keys.to_pylist()
    of_view = f"\0{view}" if view else ""  # no key has a NUL
    rows = [normal(seed, f"posterior/{name}{of_view}", shape) for name in names]
    return torch.from_numpy(np.stack(rows)).to(device)
