"""How exact float32 arithmetic is on a GPU, for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_arithmetic(*, tf32: bool) -> Iterator[None]:
    """Run float32 convolutions and matrix products as IEEE float32, or with TF32 inputs.

    Convolutions are deterministic and not tuned by trial, so that a batch gives the same bytes
    twice. The settings are torch's own, of the whole process; they are put back at the end.

    Args:
        tf32: Round inputs to 10 bits of mantissa, several times faster; torch's default for
            convolutions, but not for matrix products.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.conv.fp32_precision, matmul.fp32_precision)
    before_tuning = (cudnn.deterministic, cudnn.benchmark)
    cudnn.conv.fp32_precision = matmul.fp32_precision = "tf32" if tf32 else "ieee"
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.conv.fp32_precision, matmul.fp32_precision = before
        cudnn.deterministic, cudnn.benchmark = before_tuning
