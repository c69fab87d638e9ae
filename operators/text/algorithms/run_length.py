"""Label grids as text: runs of labels, and back (the semantic descriptors of Text4Seg)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from operators.base import Ragged
from operators.text.text_column import text_of_bytes, utf8_bytes

BACKGROUND = "others"
"""The label that ``number_labels`` gives 0, wherever it comes."""

_COUNT = " *"


@dataclass(frozen=True, slots=True)
class Separators:
    """What stands between runs, between rows, and after the last row."""

    run: str
    row: str
    end: str


RRLE = Separators("| ", "\n ", "\n")
MAPILLARY = Separators(", ", "; ", ";")


def encode_runs(
    grids: np.ndarray, labels: Sequence[str], separators: Separators, *, over_rows: bool = False
) -> pa.Array:
    """Return the runs of every grid as text, large_string [N].

    Args:
        grids: Unsigned [N, H, W], positions in ``labels``.
        labels: The names.
        separators: What stands between.
        over_rows: Let runs go on from one row to the next, which then has no separator.
    """
    num, height, width = grids.shape
    if over_rows:
        height, width = 1, height * width
    flat = grids.reshape(num, height * width)
    begins = np.ones((num, height * width), bool)
    begins[:, 1:] = flat[:, 1:] != flat[:, :-1]
    begins[:, ::width] = True
    at = np.flatnonzero(begins)
    stops = np.append(at[1:], flat.size)
    kinds = np.where(stops % (height * width) == 0, 2, np.where(stops % width == 0, 1, 0))
    # Few runs differ in label, length and what follows: each text is made once.
    keys = (flat.reshape(-1)[at].astype(np.int64) * (width + 1) + stops - at) * 3 + kinds
    different, which = np.unique(keys, return_inverse=True)
    behind = (separators.run, separators.row, separators.end)
    texts = [
        f"{labels[key // 3 // (width + 1)]}{_COUNT}{key // 3 % (width + 1)}{behind[key % 3]}"
        for key in different.tolist()
    ]
    return _joined(texts, which, np.searchsorted(at, np.arange(num + 1) * height * width))


def encode_cells(grids: np.ndarray, labels: Sequence[str], separators: Separators) -> pa.Array:
    """Return one label for every cell of every grid, row-major, large_string [N].

    Args:
        grids: Unsigned [N, H, W], positions in ``labels``.
        labels: The names.
        separators: What stands between labels, and after the last.
    """
    num = len(grids)
    flat = grids.reshape(num, -1).astype(np.int64)
    keys = flat * 2
    keys[:, -1:] += 1
    behind = (separators.run, separators.end)
    texts = [f"{label}{each}" for label in labels for each in behind]
    return _joined(texts, keys.reshape(-1), np.arange(num + 1) * flat.shape[1])


def decode_rows(text: str, separators: Separators) -> list[str]:
    """Return the labels of all cells, row-major, of runs that end with their row.

    Raises:
        ValueError: a run is not a label and a count.
    """
    rows = _without_end(text, separators).split(separators.row)
    return [label for row in rows for label in _decode(row, separators)]


def decode_runs(text: str, separators: Separators) -> list[str]:
    """Return the labels of all cells of runs that go on over rows.

    Raises:
        ValueError: a run is not a label and a count.
    """
    return _decode(_without_end(text, separators), separators)


def decode_cells(text: str, separators: Separators) -> list[str]:
    """Return the labels of a text that names one for every cell."""
    return _without_end(text, separators).split(separators.run)


def number_labels(labels: Sequence[str]) -> list[int]:
    """Return a number for every label by first appearance, 0 being "others" where it occurs.

    Without "others" the first label is 0: a mask that fills its grid becomes background.
    """
    stripped = [label.strip() for label in labels]
    first = [BACKGROUND] if BACKGROUND in stripped else []
    numbers = {label: number for number, label in enumerate(dict.fromkeys(first + stripped))}
    return [numbers[label] for label in stripped]


def _decode(row: str, separators: Separators) -> list[str]:
    labels = []
    for run in row.split(separators.run):
        parts = run.split(_COUNT)
        if len(parts) != 2:
            raise ValueError(f"{run!r} is not a label, '{_COUNT}' and a count")
        labels += [parts[0]] * int(parts[1])
    return labels


def _without_end(text: str, separators: Separators) -> str:
    return text.strip(separators.end)


def _joined(texts: Sequence[str], which: np.ndarray, offsets: np.ndarray) -> pa.Array:
    """Return for every row its texts, one after the other."""
    pieces = utf8_bytes(pa.array(texts, pa.large_string()).take(pa.array(which)))
    return text_of_bytes(Ragged(pieces.values, pieces.offsets[offsets]))
