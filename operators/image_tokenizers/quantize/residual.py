"""Residual quantization: each stage quantizes what those before it left over."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from operators.errors import ContractError
from operators.image_tokenizers.quantize.base import Quantizer, only_stream


class Residual(Quantizer):
    """Stages at one place (Lee et al., 2022, arXiv:2203.01941): ids [..., depth], coarse to fine.

    Args:
        depth: Number of stages, at least 2.
        stages: Quantizers of one stream: one for each stage, or one that serves all.

    Attributes:
        stages: Parameters are ``stages.0.*``, ...
    """

    def __init__(self, depth: int, stages: Sequence[Quantizer]) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth {depth}: expected at least 2")
        self.stages = _stages(stages, depth)
        self._sizes = tuple(only_stream(_at(self.stages, number)) for number in range(depth))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Of every stage."""
        return self._sizes

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [..., depth] of latents [..., D]."""
        rest, ids = latents.float(), []
        for number in range(len(self._sizes)):
            stage = _at(self.stages, number)
            ids.append(stage.encode(rest))
            rest = rest - stage.vectors(ids[-1])
        return torch.stack(ids, dim=-1)

    def vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 [..., D], the sum of all stages, of int64 ids [..., depth]."""
        streams = enumerate(ids.unbind(dim=-1))
        return sum(_at(self.stages, number).vectors(stream) for number, stream in streams)


class MultiScale(Quantizer):
    """Stages from a coarse grid to a fine one (Tian et al., 2024, arXiv:2404.02905).

    Every stage averages what is left over down to its own grid, quantizes that, and takes the
    bicubically enlarged vectors off. Latents are a square grid [..., h * w, D], row-major; ids
    [..., T] are those of the scales one after another, each row-major.

    Args:
        sides: Of the grids; the last one's is that of the latents.
        stages: Quantizers of one stream: one for each scale, or one that serves all.

    Attributes:
        stages: Parameters are ``stages.0.*``, ...
    """

    def __init__(self, sides: Sequence[int], stages: Sequence[Quantizer]) -> None:
        super().__init__()
        self.sides = tuple(sides)
        self.stages = _stages(stages, len(self.sides))
        sizes = {only_stream(stage) for stage in stages}
        if len(sizes) != 1:
            raise ValueError(f"codebooks of {sorted(sizes)} ids, expected one size for all scales")
        self._size = sizes.pop()

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """That of all scales."""
        return (self._size,)

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return int64 ids [..., T] of latents [..., h * w, D]."""
        lead = latents.shape[:-2]
        rest_BDhw = _map_of(latents.float().reshape(-1, *latents.shape[-2:]), self.sides[-1])
        ids = []
        for number, side in enumerate(self.sides):
            pooled_BDss = F.interpolate(rest_BDhw, (side, side), mode="area")
            found_BN = _at(self.stages, number).encode(pooled_BDss.flatten(2).transpose(1, 2))
            ids.append(found_BN)
            if number + 1 < len(self.sides):
                rest_BDhw = rest_BDhw - self._enlarged(number, found_BN)
        return torch.cat(ids, dim=1).unflatten(0, lead)

    def vectors(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 [..., h * w, D] of int64 ids [..., T], or of those of the first scales.

        Raises:
            ContractError: the ids end within a scale.
        """
        flat_BT, lengths = ids.reshape(-1, ids.shape[-1]), [side**2 for side in self.sides]
        ends = list(accumulate(lengths))
        if ids.shape[-1] not in ends:
            raise ContractError(
                f"{ids.shape[-1]} ids, expected whole scales: {', '.join(map(str, ends))}",
                hint="cut tokens where a scale ends",
            )
        scales = flat_BT.split(lengths[: ends.index(ids.shape[-1]) + 1], dim=1)
        total_BDhw = sum(self._enlarged(number, found) for number, found in enumerate(scales))
        return total_BDhw.flatten(2).transpose(1, 2).unflatten(0, ids.shape[:-1])

    def _enlarged(self, number: int, ids_BN: torch.Tensor) -> torch.Tensor:
        """Return [B, D, h, w] of the ids of one scale."""
        found_BDss = _map_of(_at(self.stages, number).vectors(ids_BN), self.sides[number])
        last = self.sides[-1]
        if self.sides[number] == last:
            return found_BDss
        return F.interpolate(found_BDss, (last, last), mode="bicubic")


def _stages(stages: Sequence[Quantizer], number: int) -> nn.ModuleList:
    if len(stages) not in (1, number):
        raise ValueError(f"{len(stages)} quantizers for {number} stages, expected one, or one each")
    return nn.ModuleList(stages)


def _at(stages: nn.ModuleList, number: int) -> Quantizer:
    found: Quantizer = stages[number if len(stages) > 1 else 0]
    return found


def _map_of(vectors_BND: torch.Tensor, side: int) -> torch.Tensor:
    return vectors_BND.transpose(1, 2).contiguous().unflatten(2, (side, side))
