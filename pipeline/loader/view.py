"""What a training loop sees of a data set: samples, windows of tokens, packed sequences."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from operators.base import Column
from pipeline.loader.files import ShardFiles
from pipeline.manifest import DataSet


class OpenView(Protocol):
    """The items of a data set, by number; picklable, so that a worker process can open it again.

    An item is what a batch holds ``batch_size`` of. Items are numbered in the order of the shards,
    from 0, and that numbering is a function of the shards and the view's arguments alone.
    """

    @property
    def num_items(self) -> int:
        """Items of the whole data set."""
        ...

    @property
    def stops(self) -> np.ndarray:
        """int64 [U], one past the last item of each unit, rising to ``num_items``.

        A unit is a run of neighbouring items that lie together, a shard's as a rule: reading one
        after the other touches few shards. Block shuffle deals out units.
        """
        ...

    def read(self, items: np.ndarray, epoch: int) -> Mapping[str, Column]:
        """Return some items, in the given order.

        Args:
            items: int64 [B], each in [0, num_items); one may be there more than once.
            epoch: For views that draw something anew in every epoch.

        Returns:
            Field -> B items: numpy [B, *shape], ``Ragged``, or a list of str or bytes. Nothing in
            them refers to a map.

        Raises:
            IntegrityError: a shard is not what the index says.
        """
        ...

    def shards(self, items: np.ndarray) -> np.ndarray:
        """Return int64 [K]: the shards (rows of the index) that reading these items touches."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Return what must be equal for item i to be item i again, as JSON values."""
        ...


@runtime_checkable
class ReadsBatches(Protocol):
    """What an ``OpenView`` has as well when many batches at a time cost it less."""

    def read_batches(
        self, items: np.ndarray, batch_size: int, epoch: int
    ) -> Iterator[Mapping[str, Column]]:
        """Yield what ``read`` returns for each ``batch_size`` of the items, fewer at the end."""
        ...


def read_ahead(num_items: int, batch_size: int, most: int) -> Iterator[slice]:
    """Cut items into runs that are read together: one batch, then twice as many, up to ``most``.

    The first batch after a start or a resume so needs no more than its own items.
    """
    first, size = 0, batch_size
    while first < num_items:
        yield slice(first, min(first + size, num_items))
        first += size
        size = max(size, min(2 * size, most // batch_size * batch_size))


@runtime_checkable
class View(Protocol):
    """The description of a view, as a user writes it: a frozen dataclass."""

    def open(self, data_set: DataSet, files: ShardFiles) -> OpenView:
        """Return the items of a data set.

        Raises:
            ContractError: the data set lacks a field, or a field is not what the view needs.
        """
        ...
