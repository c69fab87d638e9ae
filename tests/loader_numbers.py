"""A view whose items are their own numbers, and a DataLoader's workers without processes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any
from unittest import mock

import numpy as np

from pipeline.loader import TokenDataset
from pipeline.loader.files import ShardFiles
from pipeline.manifest import DataSet


@dataclass(frozen=True)
class Numbers:
    """Items in units of these sizes, whatever the data set holds."""

    sizes: tuple[int, ...]

    def open(self, data_set: DataSet, files: ShardFiles) -> "Numbers":
        return self

    @property
    def num_items(self) -> int:
        return sum(self.sizes)

    @property
    def stops(self) -> np.ndarray:
        return np.cumsum(self.sizes, dtype=np.int64)

    def read(self, items: np.ndarray, epoch: int) -> Mapping[str, np.ndarray]:
        return {"number": items}

    def shards(self, items: np.ndarray) -> np.ndarray:
        return np.unique(np.searchsorted(self.stops, items, side="right"))

    def identity(self) -> Mapping[str, Any]:
        return {"sizes": list(self.sizes)}


@dataclass(frozen=True)
class WorkerInfo:
    """What ``get_worker_info`` returns in a worker."""

    id: int
    num_workers: int


def batches_of_workers(data: TokenDataset, num_workers: int) -> Iterator[Any]:
    """Yield what a DataLoader with these workers does: a batch of each in turn; 0 is none."""
    if not num_workers:
        yield from data
        return
    state = data.state_dict()
    running: list[tuple[WorkerInfo, Iterator[Any]]] = []
    for worker in range(num_workers):
        info = WorkerInfo(worker, num_workers)
        running.append((info, iter(data)))
    for info, batches in cycle(running):
        with mock.patch("pipeline.loader.batches.get_worker_info", return_value=info):
            batch = next(batches, None)
        if batch is None:
            break
        yield batch
    data.load_state_dict(state)  # a worker's own copy moved, not the loader's
