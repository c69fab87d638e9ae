"""Replace spans of bytes in many texts at once."""

import numpy as np

from operators.base import Ragged


def splice(documents: Ragged, begins: np.ndarray, stops: np.ndarray, news: Ragged) -> Ragged:
    """Return the texts with other bytes in the place of some spans.

    Args:
        documents: uint8, N texts.
        begins: int64 [S], rising: where each span begins in ``documents.values``.
        stops: int64 [S], where it ends; spans lie in one text each and do not overlap. One that
            ends where it begins is a place to insert, inside a text.
        news: uint8, S rows: what takes the place of each.
    """
    if not len(begins):
        return documents
    num_removed = np.concatenate(([0], np.cumsum(stops - begins)))
    grown = news.offsets - num_removed  # by the spans before each, and by all
    num_before = np.searchsorted(begins, documents.offsets)
    offsets = documents.offsets + grown[num_before]
    values = np.empty(offsets[-1], np.uint8)
    is_old = np.ones(len(values), bool)
    at = _inside(begins + grown[:-1], news.lengths)
    values[at] = news.values
    is_old[at] = False
    is_kept = np.ones(len(documents.values), bool)
    is_kept[_inside(begins, stops - begins)] = False
    values[is_old] = documents.values[is_kept]
    return Ragged(values, offsets)


def repeated(new: bytes, num: int) -> Ragged:
    """Return ``num`` rows of the same bytes."""
    values = np.tile(np.frombuffer(new, np.uint8), num)
    return Ragged(values, np.arange(num + 1, dtype=np.int64) * len(new))


def _inside(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the positions of all spans, one after the other."""
    ends = np.cumsum(lengths)
    inside: np.ndarray = np.repeat(begins - (ends - lengths), lengths) + np.arange(ends[-1])
    return inside
