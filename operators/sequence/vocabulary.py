"""Lay out one vocabulary as ranges of ids: one for each modality, some for special tokens."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field

ID_DTYPES = "uint8|uint16|uint32|uint64"  # what a field of ids may be stored as
ANY_INTEGERS = f"{ID_DTYPES}|int8|int16|int32|int64"  # ids that are checked row by row


def _in_order(value: object) -> object:
    if isinstance(value, Mapping):
        # Whoever writes a mapping with sorted keys would silently renumber every id.
        raise ValueError(
            "vocabulary is a mapping, expected a list of ranges, whose order decides the ids: "
            f"{[{name: content} for name, content in value.items()]}"
        )
    return value


OneKey = Field(min_length=1, max_length=1)
DeclaredVocabulary = Annotated[
    list[Annotated[dict[str, int | list[str]], OneKey]],
    BeforeValidator(_in_order),
    Field(
        min_length=1,
        description="Ranges of ids, laid one after another from 0. Each is `name: size` for "
        "a modality or `name: [token, ...]` for special tokens.",
    ),
]


@dataclass(frozen=True, slots=True)
class VocabularyRange:
    """Consecutive ids of one kind.

    Attributes:
        name: ``special``, ``text``, ``image``, ...
        start: First id.
        stop: One past the last id.
        special_tokens: Names of the ids in order, for a range of special tokens; else None.
    """

    name: str
    start: int
    stop: int
    special_tokens: tuple[str, ...] | None = None

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.stop - self.start


class VocabularyLayout:
    """Ranges laid one after another from id 0.

    Args:
        declared: Range by range, name -> size, or name -> names of special tokens.

    Raises:
        ValueError: a range or a special token is declared twice, or a range is empty.

    Example:
        >>> layout = VocabularyLayout([("special", ["<bos>", "<eos>"]), ("text", 256)])
        >>> layout.special_id("<eos>"), layout["text"].start, layout.size
        (1, 2, 258)
    """

    def __init__(self, declared: Sequence[tuple[str, int | Sequence[str]]]) -> None:
        ranges: list[VocabularyRange] = []
        for name, content in declared:
            special = None if isinstance(content, int) else tuple(content)
            start = ranges[-1].stop if ranges else 0
            size = content if isinstance(content, int) else len(content)
            if size < 1:
                raise ValueError(f"range {name!r} holds {size} ids, expected 1 or more")
            ranges.append(VocabularyRange(name, start, start + size, special))
        self.ranges = tuple(ranges)
        tokens = [token for r in ranges for token in r.special_tokens or ()]
        _check_unique("range", [r.name for r in ranges])
        _check_unique("special token", tokens)
        self._ranges = {r.name: r for r in ranges}
        self.special_ids: Mapping[str, int] = {
            token: r.start + i for r in ranges for i, token in enumerate(r.special_tokens or ())
        }

    @classmethod
    def of(cls, declared: DeclaredVocabulary) -> "VocabularyLayout":
        """Lay out what a job declares."""
        return cls([pair for one in declared for pair in one.items()])

    @property
    def size(self) -> int:
        """Ids lie in [0, size)."""
        return self.ranges[-1].stop

    @property
    def modalities(self) -> list[str]:
        """Names of the ranges that are not special tokens."""
        return [r.name for r in self.ranges if r.special_tokens is None]

    def __getitem__(self, name: str) -> VocabularyRange:
        return self._ranges[name]

    def special_id(self, token: str) -> int:
        """Return the id of a special token."""
        return self.special_ids[token]

    def check_special(self, token: str, where: str) -> None:
        """Check that a special token is declared.

        Raises:
            ValueError: it is not; names those there are.
        """
        if token not in self.special_ids:
            raise ValueError(
                f"{where}: special token {token!r} is not declared; "
                f"vocabulary has {list(self.special_ids)}"
            )

    def check_modality(self, modality: str, field: str, where: str) -> None:
        """Check that a modality is declared.

        Raises:
            ValueError: it is not; names those there are.
        """
        if modality not in self.modalities:
            raise ValueError(
                f"{where}: unknown modality {modality!r} of field {field!r}; "
                f"vocabulary has {self.modalities}"
            )

    def as_json(self) -> dict[str, object]:
        """Return name -> start, stop and, for special tokens, ids by name."""
        described: dict[str, object] = {}
        for r in self.ranges:
            bounds: dict[str, object] = {"start": r.start, "stop": r.stop}
            if r.special_tokens is not None:
                bounds["ids"] = {token: self.special_id(token) for token in r.special_tokens}
            described[r.name] = bounds
        return described


def _check_unique(what: str, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what} {twice[0]!r} is declared twice; ids need one name each")


def ids_out_of_range(values: np.ndarray, row_bounds: np.ndarray, size: int) -> dict[int, int]:
    """Return row -> its first id that is not in [0, size).

    Args:
        values: Integers [M], the rows one after another.
        row_bounds: int64 [N + 1], where they begin and end.
        size: One more than the largest id that is right.
    """
    if not values.size or (values.max() < size and values.min() >= 0):
        return {}
    bad = np.flatnonzero((values >= size) | (values < 0))
    bad_rows = np.searchsorted(row_bounds, bad, side="right") - 1
    rows, firsts = np.unique(bad_rows, return_index=True)
    return {int(row): int(values[bad[first]]) for row, first in zip(rows, firsts, strict=True)}
