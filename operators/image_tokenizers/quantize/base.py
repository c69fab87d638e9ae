"""The contract of quantizers: latents to ids, ids to vectors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from operators.errors import ContractError

_HALF = 1 << 63  # ids from here on are negative as int64


class Quantizer(nn.Module, ABC):  # type: ignore[misc]
    """Maps latents [..., D] to ids, and ids to vectors [..., D]; float32 whatever comes in.

    With one stream ids are [...], with S streams [..., S]. Ties go to the lowest id. Ids of a
    codebook of 2**64 are the int64 with the same bits.
    """

    @property
    @abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of ids, per stream."""

    @abstractmethod
    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return int64 ids of latents [..., D]."""

    @abstractmethod
    def vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 vectors [..., D] of int64 ids that are in range."""

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 vectors [..., D] of integer ids.

        Raises:
            ContractError: an id is out of range.
        """
        return self.vectors(check_ids(ids, self.codebook_sizes))


def only_stream(quantizer: Quantizer) -> int:
    """Return the codebook's size of a quantizer that gives one id.

    Raises:
        ValueError: it gives several.
    """
    sizes = quantizer.codebook_sizes
    if len(sizes) != 1:
        raise ValueError(f"{type(quantizer).__name__} has {len(sizes)} streams, expected one")
    return sizes[0]


def check_ids(ids: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return ids as int64 after checking their range.

    Args:
        ids: Integers [...], or [..., S] for S > 1 sizes.
        sizes: Number of ids, per stream.

    Raises:
        ContractError: an id is out of range.
    """
    wide = ids.long()
    least = [-_HALF if size > _HALF else 0 for size in sizes]
    most = [min(size, _HALF) - 1 for size in sizes]
    bounds = [torch.tensor(b[0] if len(b) == 1 else b, device=wide.device) for b in (least, most)]
    bad = (wide < bounds[0]) | (wide > bounds[1])
    if bool(bad.any()):
        expected = " or ".join(f"{size - 1:,}" for size in sorted(set(sizes)))
        raise ContractError(
            f"id {int(wide[bad][0])} is out of range, expected 0 to {expected}",
            hint="these tokens were not made by this model",
        )
    return wide
