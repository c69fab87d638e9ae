"""The contract of quantizers: latents to ids, ids to vectors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from operators.errors import ContractError


class Quantizer(nn.Module, ABC):  # type: ignore[misc]
    """Maps latents [..., D] to ids, and ids to vectors [..., D]; float32 whatever comes in.

    With one stream ids are [...], with S streams [..., S]. Ties go to the lowest id.
    """

    @property
    @abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of ids, per stream."""

    @abstractmethod
    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return int64 ids of latents [..., D]."""

    @abstractmethod
    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 vectors [..., D] of integer ids.

        Raises:
            ContractError: an id is out of range.
        """


def check_ids(ids: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return ids as int64 after checking their range.

    Args:
        ids: Integers [...], or [..., S] for S > 1 sizes.
        sizes: Number of ids, per stream.

    Raises:
        ContractError: an id is out of range.
    """
    wide = ids.long()
    most = torch.tensor(sizes[0] if len(sizes) == 1 else list(sizes), device=wide.device)
    bad = (wide < 0) | (wide >= most)
    if bool(bad.any()):
        expected = " or ".join(f"{size - 1:,}" for size in sorted(set(sizes)))
        raise ContractError(
            f"id {int(wide[bad][0])} is out of range, expected 0 to {expected}",
            hint="these tokens were not made by this model",
        )
    return wide
