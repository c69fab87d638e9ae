"""The grid that tokens stand in."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from operators.base import FieldSpec
from operators.errors import ContractError

if TYPE_CHECKING:
    import torch

Side = Annotated[int, Field(ge=1)]
Grid = tuple[Side, Side]
"""Rows and columns."""


def token_grid(grid: Grid | None, num_tokens: int, name: str) -> Grid:
    """Return rows and columns of N tokens.

    Args:
        grid: As configured; None for a square.
        num_tokens: N.
        name: Of the reducer, for the message.

    Raises:
        ContractError: they have other tokens, or N is no square.
    """
    side = math.isqrt(num_tokens)
    rows, columns = grid or (side, side)
    if rows * columns != num_tokens:
        said = "no square" if grid is None else f"not grid={[rows, columns]}"
        raise ContractError(
            f"{name}: {num_tokens} tokens are {said}",
            hint="set grid: [rows, columns] of the encoder's tokens",
        )
    return rows, columns


def reconstruction_fields(num_tokens: int, neighbours: int) -> Mapping[str, tuple[FieldSpec, str]]:
    """Return the fields that ``reconstruct`` (``unreduce.py``) needs, for ``extras``."""
    shape = (num_tokens, neighbours)
    return {
        "reconstruction_index": (
            FieldSpec("int16", shape),
            "[N, k]: rows of features that each token is reconstructed from",
        ),
        "reconstruction_weights": (FieldSpec("float32", shape), "[N, k]: how much of each"),
    }


def reconstruction_columns(
    index: "torch.Tensor", weights: "torch.Tensor"
) -> "Mapping[str, torch.Tensor]":
    """Return int and float [B, N, k] as columns of ``reconstruction_fields``."""
    import torch

    return {
        "reconstruction_index": index.to(torch.int16),
        "reconstruction_weights": weights,
    }
