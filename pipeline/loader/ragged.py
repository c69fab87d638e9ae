"""Rows of different length as tensors."""

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.errors import ContractError


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """B rows of different length in one tensor.

    Row i is ``values[offsets[i]:offsets[i + 1]]``.

    Attributes:
        values: [M, *rest], all rows one after another, of the dtype that is stored.
        offsets: int64 [B + 1], rising from 0 to M.
    """

    values: torch.Tensor
    offsets: torch.Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> torch.Tensor:
        """int64 [B], values per row."""
        return self.offsets.diff()

    def to(self, dtype: torch.dtype) -> "RaggedBatch":
        """Return the same rows with values of another dtype."""
        return RaggedBatch(self.values.to(dtype), self.offsets)

    def nested(self) -> torch.Tensor:
        """Return the rows as a nested tensor of layout ``torch.jagged``, without a copy.

        Attention and the operations of PyTorch's nested tensors take it, with gradients.
        """
        found: torch.Tensor = torch.nested.nested_tensor_from_jagged(self.values, self.offsets)
        return found

    def padded(self, value: Any, length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows side by side, shorter ones filled up, longer ones cut at the end.

        Args:
            value: What to fill with.
            length: L; None is the longest row's.

        Returns:
            [B, L, *rest] of the dtype of ``values``, and a bool mask [B, L], True where a value
            stands.

        Raises:
            ContractError: ``value`` cannot be held by the dtype of ``values``.
        """
        fill = self._fill(value)
        lengths_B = self.lengths
        if length is None:
            length = int(lengths_B.max()) if len(self) else 0
        columns_L = torch.arange(length)
        mask_BL = columns_L < lengths_B[:, None]
        index_BL = torch.where(mask_BL, self.offsets[:-1, None] + columns_L, len(self.values))
        # One value behind the last: index_put is not implemented for uint16, indexing is.
        rows = torch.cat([self.values, fill])[index_BL]
        return rows, mask_BL

    def _fill(self, value: Any) -> torch.Tensor:
        """Return [1, *rest] of the fill value."""
        dtype = self.values.dtype
        if not dtype.is_floating_point and dtype != torch.bool:
            limits = torch.iinfo(dtype)
            if not limits.min <= value <= limits.max:
                raise ContractError(
                    f"padded: value {value} does not fit {str(dtype).removeprefix('torch.')} "
                    f"[{limits.min}, {limits.max}]",
                    hint="pad with an id and use the mask",
                )
        return torch.full((1, *self.values.shape[1:]), value, dtype=dtype)
