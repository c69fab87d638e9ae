"""Reads the items of a view without those of bad shards."""

from collections.abc import Mapping

import numpy as np

from operators.base import Column
from pipeline.errors import IntegrityError
from pipeline.loader.bad_shards import BadShards
from pipeline.loader.view import OpenView


def read_without(
    bad: BadShards | None, view: OpenView, items: np.ndarray, epoch: int
) -> tuple[np.ndarray | None, Mapping[str, Column]]:
    """Return which items need no bad shard, and what the view reads of them.

    Args:
        bad: The shards known to be bad; those that reading finds are added. None skips nothing.
        view: The items.
        items: int64 [B].
        epoch: See ``OpenView.read``.

    Returns:
        bool [B], True for the items that were read, or None for all; and their columns.

    Raises:
        IntegrityError: a shard is not what the index says, and ``bad`` is None.
    """
    if bad is None:
        return None, view.read(items, epoch)
    while True:
        is_good = _good(bad, view, items)
        good = items if is_good is None else items[is_good]
        try:
            return is_good, view.read(good, epoch)
        except IntegrityError:
            if not bad.among(view.shards(good)):  # not the fault of a shard
                raise


def _good(bad: BadShards, view: OpenView, items: np.ndarray) -> np.ndarray | None:
    if not bad or not bad.among(view.shards(items)):
        return None
    return np.array([not bad.among(view.shards(items[i : i + 1])) for i in range(len(items))])
