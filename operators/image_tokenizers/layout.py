"""How the tokens of one image are laid out: what loaders and readers need to know."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Positions, streams and their order.

    Attributes:
        positions: T, per image and view.
        codebook_sizes: Ids per stream; empty for features.
        streams: Names of what a position holds; one for plain ids.
        grid: Height and width, positions being row-major; None for 1D tokens.
        scales: Sides of square maps that stand one after another, each row-major.
        nested: Any prefix of the positions is a coarser description.
        ragged: Rows have up to ``positions``.
    """

    positions: int
    codebook_sizes: tuple[int, ...]
    streams: tuple[str, ...] = ("id",)
    grid: tuple[int, int] | None = None
    scales: tuple[int, ...] = ()
    nested: bool = False
    ragged: bool = False

    @property
    def shape(self) -> tuple[int | None, ...]:
        """[T], or [T, S] for several streams."""
        length = None if self.ragged else self.positions
        return (length,) if len(self.streams) == 1 else (length, len(self.streams))

    def as_json(self) -> Mapping[str, object]:
        """Return what the manifest says; see FORMAT.md, "Token layout"."""
        found: dict[str, object] = {
            "positions": self.positions,
            "streams": list(self.streams),
            "codebook_sizes": list(self.codebook_sizes),
            "nested": self.nested,
        }
        if self.grid is not None:
            found["grid"] = list(self.grid)
        if self.scales:
            found["scales"] = list(self.scales)
        return found
