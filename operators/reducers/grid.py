"""The grid that tokens stand in, for reducers that need their neighbours."""

from typing import Annotated

from pydantic import Field

from operators.errors import ContractError

GridWidth = Annotated[
    int | None,
    Field(ge=1, description="Tokens in a row of the grid; left out where the grid is square."),
]
"""An option of reducers that need a grid."""


def grid(num_tokens: int, width: int | None, name: str) -> tuple[int, int]:
    """Return rows and columns of the grid of N tokens.

    Raises:
        ContractError: N tokens do not fill it.
    """
    columns = round(num_tokens**0.5) if width is None else width
    if num_tokens % columns or (width is None and columns**2 != num_tokens):
        shape = "a square" if width is None else f"rows of {width}"
        raise ContractError(
            f"{name}: {num_tokens} tokens do not fill {shape}",
            hint="set grid_width to the number of patches across the image",
        )
    return num_tokens // columns, columns
