"""Vocabularies of bytes, and documents cut into their tokens without an object per document."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from operators.base import Batch, Operator, Ragged
from operators.columns import take
from operators.errors import RowErrors, SampleError, SetupError
from operators.text.text_column import text_of_bytes, utf8_bytes

if TYPE_CHECKING:
    from operators.text.algorithms.byte_segments import Segmented

Pretokenization = Literal["none", "first_space", "space"]
"""Where tokens may not reach across: nowhere; before every space; before and after every one."""

_SPACE = 0x20


def parse_hex_lines(data: bytes, where: str) -> list[bytes]:
    """Return the tokens of a file that holds one per line, in hexadecimal digits.

    Raises:
        SetupError: a line is empty or no such number; names the first.
    """
    tokens = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            tokens.append(bytes.fromhex(line.decode("ascii")))
        except ValueError:
            tokens.append(b"")
        if not tokens[-1]:
            raise SetupError(
                f"{where}: line {number} is {line[:40]!r}, expected the bytes of a token in "
                "hexadecimal digits, such as 20746865",
                hint="one token per line; other kinds of vocabulary belong to other operators",
            )
    if not tokens:
        raise SetupError(f"{where}: the file is empty, expected one token per line")
    return tokens


def hex_lines(tokens: list[bytes]) -> bytes:
    """Return the file that ``parse_hex_lines`` reads."""
    return "".join(f"{token.hex()}\n" for token in tokens).encode("ascii")


def cuts_of(
    documents: Ragged, pretokenization: Pretokenization, *, split_digits: bool
) -> np.ndarray:
    """Return int64 [P + 1], where the pieces of all documents begin, and where the last one ends.

    Args:
        documents: uint8.
        pretokenization: Where spaces cut.
        split_digits: Whether every digit 0..9 is a piece of its own.
    """
    if pretokenization == "none" and not split_digits:
        return np.unique(documents.offsets)
    values = documents.values
    is_cut = np.zeros(len(values) + 1, bool)
    is_cut[documents.offsets] = True
    if pretokenization != "none":
        is_space = values == _SPACE
        is_cut[:-1] |= is_space
        if pretokenization == "space":
            is_cut[1:] |= is_space
    if split_digits:
        is_digit = (values - np.uint8(ord("0"))) < 10  # smaller bytes wrap around
        is_cut[:-1] |= is_digit
        is_cut[1:] |= is_digit
    return np.flatnonzero(is_cut)


def rows_of(
    operator: Operator[Any], batch: Batch, cuts: np.ndarray, segmented: "Segmented"
) -> Ragged:
    """Join the tokens of a document's pieces.

    Raises:
        RowErrors: some documents cannot be spelled; the others are done.
    """
    documents = utf8_bytes(batch["text"])
    stuck = segmented.stuck_at[segmented.stuck_at >= 0]
    if len(stuck):
        errors = {}
        for at in stuck[::-1].tolist():  # the first place of a document is what is told
            row = int(np.searchsorted(documents.offsets, at, side="right")) - 1
            errors[row] = SampleError(
                f"{operator.config.name}: no token leads on from byte "
                f"{at - int(documents.offsets[row]):,} of the text "
                f"({documents.values[at : at + 8].tobytes()!r})",
                hint="a vocabulary with all 256 bytes can spell every text",
            )
        good = np.setdiff1d(np.arange(len(documents)), list(errors))
        raise RowErrors(errors, operator({**batch, "text": take(batch["text"], good)}))
    return Ragged(segmented.ids, segmented.firsts[np.searchsorted(cuts, documents.offsets)])


class Spelling:
    """Writes tokens as the bytes they stand for.

    Args:
        tokens: Id -> bytes; the ids between are written as nothing.
        size: Of the vocabulary.
    """

    def __init__(self, tokens: Mapping[int, bytes], size: int) -> None:
        lengths = np.zeros(size, np.int64)
        for i, token in tokens.items():
            lengths[i] = len(token)
        self._starts = np.concatenate(([0], np.cumsum(lengths)))
        self._lengths = lengths
        self._values = np.frombuffer(b"".join(tokens[i] for i in sorted(tokens)), np.uint8)

    def text(self, tokens: Ragged) -> Any:
        """Return large_string; bytes that are no UTF-8 become U+FFFD."""
        lengths = self._lengths[tokens.values]
        ends = np.concatenate(([0], np.cumsum(lengths)))
        begins = self._starts[tokens.values] - ends[:-1]
        values = self._values[np.repeat(begins, lengths) + np.arange(ends[-1])]
        return text_of_bytes(Ragged(values, ends[tokens.offsets]))
