"""Lay out one vocabulary as ranges of ids: one for each modality, some for special tokens."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ID_DTYPES = "uint8|uint16|uint32|uint64"  # what a field of ids may be stored as


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
