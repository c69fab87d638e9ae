"""Random weights for runs without a checkpoint."""

import hashlib
import math
from typing import Any

import torch

from operators.image_tokenizers.nn.patches import sincos_table


def fill_random(module: Any, seed: int) -> None:
    """Give every parameter random values that depend on the seed and its name alone.

    Scaled so that activations keep about unit variance.

    Args:
        module: On any device, meta too; its tensors are replaced by ones on the CPU.
        seed: Of all of them.
    """
    filled = {}
    for name, parameter in module.state_dict().items():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        shape = tuple(parameter.shape)
        if name.endswith("posembs") and shape[-1] == shape[-2] and shape[1] % 4 == 0:
            filled[name] = sincos_table(shape[1], shape[-1])
        elif len(shape) == 1 and name.endswith("weight"):
            filled[name] = torch.ones(shape)
        elif name.endswith("bias"):
            filled[name] = torch.zeros(shape)
        else:
            fan_in = math.prod(shape[1:]) or 1
            filled[name] = torch.randn(shape, generator=generator) / math.sqrt(fan_in)
    module.load_state_dict(filled, assign=True)
