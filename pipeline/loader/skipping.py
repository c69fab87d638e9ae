"""Reads the items of a view without those of bad shards."""

from collections.abc import Mapping

import numpy as np

from operators.base import Column
from pipeline.errors import IntegrityError
from pipeline.loader.bad_shards import BadShards
from pipeline.loader.view import OpenView


def read_without(
    bad: BadShards | None, view: OpenView, items: np.ndarray, epoch: int
) -> tuple[np.ndarray, Mapping[str, Column]]:
    """Return those items of which no shard is bad, in the given order, and what the view reads.

    Args:
        bad: The shards known to be bad; those that reading finds are added. None skips nothing.
        view: The items.
        items: int64 [B].
        epoch: See ``OpenView.read``.

    Returns:
        int64 [K] of the ``items``, K from 0 to B, and K items' columns.

    Raises:
        IntegrityError: a shard is not what the index says, and ``bad`` is None.
    """
    if bad is None:
        return items, view.read(items, epoch)
    while True:
        good = _good(bad, view, items)
        try:
            return good, view.read(good, epoch)
        except IntegrityError:
            if not bad.among(view.shards(good)):  # not the fault of a shard
                raise


def _good(bad: BadShards, view: OpenView, items: np.ndarray) -> np.ndarray:
    if not bad or not bad.among(view.shards(items)):
        return items
    is_good = [not bad.among(view.shards(items[i : i + 1])) for i in range(len(items))]
    good: np.ndarray = items[np.array(is_good)]
    return good
