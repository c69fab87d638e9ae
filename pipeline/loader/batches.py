"""Batches of a training loop: which positions a rank and a worker take, and where they stand."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from operators.base import Column, Ragged
from operators.columns import to_torch
from pipeline.errors import ContractError, FingerprintMismatchError, IntegrityError
from pipeline.loader.prefetch import Prefetch
from pipeline.loader.ragged import RaggedBatch

STATE_VERSION = 2

Batch = dict[str, Any]  # tensors, RaggedBatches and lists: the field's spec says which

Uneven = Literal["short", "pad", "drop"]
"""What becomes of the samples that do not fill the last global batch; see ``BatchDataset``."""

PADDING = "padding"
"""With ``uneven="pad"``, the field of every batch that tells repeated samples, bool [B]."""

_RANK_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"))
_ORDER_AHEAD = 1 << 14  # positions turned into items at a time: together in the processor's cache
_EPOCH, _START, _IN_WORKERS = range(3)  # what _shared holds


class BatchDataset(IterableDataset):  # type: ignore[misc]
    """Cuts the positions of an epoch into batches, for any ranks, workers and resumes.

    A subclass says how many positions an epoch has, which item stands at each, and reads items.
    Everything here is arithmetic on positions: it is the same for one data set and for a mixture.

    Args:
        batch_size: Items per batch and rank.
        epoch: The first epoch.
        rank: This process; None asks ``torch.distributed``, then the environment.
        world_size: How many there are; given exactly when ``rank`` is.
        uneven: What becomes of the items that do not fill the last global batch. ``short``: the
            ranks' last batches are smaller, and some ranks yield one less. ``pad``: all ranks yield
            equally many full batches; the last is filled up with the first items of the epoch,
            again and again if need be, and every batch has a field ``padding``, bool [B], True
            for these. ``drop``: these items are left out.
        dtypes: Field -> the dtype of its tensors, where it is not the one that is stored.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        epoch: int,
        rank: int | None,
        world_size: int | None,
        uneven: Uneven,
        dtypes: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        super().__init__()
        self._rank, self._world_size = _ranks(rank, world_size)
        if batch_size < 1:
            raise ContractError(f"batch_size={batch_size}, expected 1 or more")
        if uneven not in get_args(Uneven):
            raise ContractError(f"uneven={uneven!r}, expected one of {', '.join(get_args(Uneven))}")
        self._batch_size, self._uneven = batch_size, uneven
        self._dtypes = dict(dtypes or {})
        # In shared memory, so that persistent DataLoader workers hear of the next epoch.
        self._shared = torch.tensor([epoch, 0, 0]).share_memory_()
        self._now = (epoch, 0)  # epoch and position of the running or next iteration here
        self._resumed = False  # in a worker: whether the next iteration begins at _now

    @property
    @abstractmethod
    def num_positions(self) -> int:
        """Items of an epoch, of all ranks together."""

    @abstractmethod
    def _items(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return [K, ...]: what stands at each of int64 [K] positions, for ``_read``."""

    @abstractmethod
    def _read(
        self, epoch: int, items: np.ndarray
    ) -> tuple[np.ndarray | None, Mapping[str, Column]]:
        """Return the items of one batch, but for those that are left out.

        Returns:
            bool [B], True for the items that were read, or None for all; and their columns.
        """

    def _prefetch(self, items: Iterator[np.ndarray]) -> Prefetch | None:  # noqa: ARG002
        """Return what fetches shards ahead of their use, if anything does.

        Args:
            items: What ``_read`` will be asked for, in order; nothing of it need be taken.
        """
        return None

    def _read_batches(
        self, epoch: int, items: np.ndarray, ahead: Prefetch | None
    ) -> Iterator[tuple[np.ndarray | None, Mapping[str, Column]]]:
        """Yield the batches of many items, each as ``_read`` returns it."""
        for first in range(0, len(items), self._batch_size):
            chosen = items[first : first + self._batch_size]
            if ahead is not None:
                ahead.advance(len(chosen))
            yield self._read(epoch, chosen)

    @abstractmethod
    def _identity(self) -> Mapping[str, Any]:
        """Return what must be the same when a state is loaded, as JSON values."""

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration yields."""
        return int(self._shared[_EPOCH])

    def __len__(self) -> int:
        """Return the batches that this rank yields in a whole epoch."""
        left = self.num_positions % self._global_batch_size
        is_short_of_one = self._uneven == "short" and 0 < left <= self._rank
        return self._num_batches(0) - is_short_of_one

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration.

        It begins at its first sample, unless ``load_state_dict`` has just put it elsewhere in the
        same epoch. Running iterations are not affected.
        """
        if epoch != self.epoch:
            self._begin_at(epoch, 0)

    def state_dict(self, num_batches: int | None = None) -> dict[str, Any]:
        """Return where the iteration stands: a few numbers, the same on every rank.

        Args:
            num_batches: Batches that the training loop has taken from a ``DataLoader`` with
                workers since its iteration began. Workers read ahead, so only the loop knows;
                leave it out without workers, and in a loader that asks its workers itself
                (torchdata's ``StatefulDataLoader``).

        Raises:
            ContractError: batches come from workers and ``num_batches`` is missing.
        """
        epoch, position = self._now
        if num_batches is not None:
            position = int(self._shared[_START]) + num_batches * self._global_batch_size
        elif get_worker_info() is None and self._shared[_IN_WORKERS]:
            raise ContractError(
                "state_dict: batches come from DataLoader workers, which read ahead",
                hint="give num_batches, how many this iteration has yielded to the training loop",
            )
        return {
            "version": STATE_VERSION,
            **self._identity(),
            "epoch": epoch,
            "position": min(position, self.num_positions),
            "batch_size": self._batch_size,
            "world_size": self._world_size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on after the last batch of a saved state.

        Batch size and world size may differ from the saved ones: the rest of the epoch is cut
        anew, and every sample of it still comes exactly once.

        Raises:
            FingerprintMismatchError: the state is of another data set, seed or order.
            IntegrityError: it is not a state, or one of another version.
        """
        version = state.get("version")
        if version != STATE_VERSION:
            raise IntegrityError(
                f"loader state: version {version}, this program reads {STATE_VERSION}",
                hint="load what state_dict() returned, with the program version that made it",
            )
        differences = [
            f"{name} {state.get(name)!r} -> {here!r}"
            for name, here in self._identity().items()
            if state.get(name) != here
        ]
        if differences:
            raise FingerprintMismatchError(
                f"loader state: of another data set or order: {', '.join(differences)}",
                hint="open the data set that the state was saved with, with its seed and shuffle",
            )
        self._begin_at(state["epoch"], state["position"])

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch, start = self._now if self._resumed else self._shared[:_IN_WORKERS].tolist()
        self._resumed = False
        if info is not None:
            self._shared[_IN_WORKERS] = 1
        self._now = (epoch, start)
        # A worker's next batch is as far from its position as its first was from the start.
        step = self._global_batch_size * num_workers
        size, position = self._batch_size, start
        ahead = self._prefetch(
            items for _, items in self._blocks(epoch, start, worker, num_workers)
        )
        with nullcontext() if ahead is None else closing(ahead):
            for padding, items in self._blocks(epoch, start, worker, num_workers):
                for number, (kept, columns) in enumerate(self._read_batches(epoch, items, ahead)):
                    position += step
                    self._now = (epoch, position)
                    batch = {name: _as_torch(column) for name, column in columns.items()}
                    if self._dtypes:
                        _cast(batch, self._dtypes)
                    if padding is not None:
                        part = padding[number * size : number * size + size]
                        _add_padding(batch, part if kept is None else part[kept])
                    yield batch
        self._now = (epoch, self.num_positions)

    @property
    def _global_batch_size(self) -> int:
        return self._world_size * self._batch_size

    def _num_batches(self, start: int) -> int:
        """Return the global batches from a position to the end of the epoch."""
        full, left = divmod(self.num_positions - start, self._global_batch_size)
        return full + (self._uneven != "drop" and left > 0)

    def _blocks(
        self, epoch: int, start: int, worker: int, num_workers: int
    ) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
        """Yield this rank's and worker's items, many batches at a time, and which are padding."""
        for positions in self._positions(start, worker, num_workers):
            padding = self._pad(positions)
            yield padding, self._items(epoch, positions)

    def _positions(self, start: int, worker: int, num_workers: int) -> Iterator[np.ndarray]:
        """Yield int64 positions of this rank's and worker's samples, many batches at a time.

        Every batch is full but the last of all. With ``pad`` positions go on behind the last.
        """
        num_batches, size = self._num_batches(start), self._global_batch_size
        own = start + self._rank + self._world_size * np.arange(self._batch_size)
        step = num_workers * max(1, _ORDER_AHEAD // self._batch_size)
        for first in range(worker, num_batches, step):
            batches = np.arange(first, min(first + step, num_batches), num_workers)
            positions = (batches[:, None] * size + own).ravel()
            if self._uneven == "short":
                positions = positions[positions < self.num_positions]
            yield positions

    def _pad(self, positions: np.ndarray) -> np.ndarray | None:
        """Bring what lies behind the epoch to its beginning, and say where that was done."""
        if self._uneven != "pad":
            return None
        padding = positions >= self.num_positions
        positions %= self.num_positions
        return padding

    def _begin_at(self, epoch: int, position: int) -> None:
        self._now = (epoch, position)
        if get_worker_info() is None:
            self._shared[:] = torch.tensor([epoch, position, 0])
        else:  # a loader restores each worker on its own: the others must not hear of it
            self._resumed = True


def _as_torch(column: Any) -> torch.Tensor | RaggedBatch | list[Any]:
    if isinstance(column, np.ndarray):
        return to_torch(column)
    if isinstance(column, Ragged):
        return RaggedBatch(to_torch(column.values), torch.from_numpy(column.offsets))
    return column


def _cast(batch: Batch, dtypes: Mapping[str, torch.dtype]) -> None:
    for name, dtype in dtypes.items():
        column = batch.get(name)
        if not isinstance(column, torch.Tensor | RaggedBatch):
            found = "is not read" if column is None else "holds no numbers"
            raise ContractError(
                f"dtypes: field {name!r} {found}",
                hint=f"fields of a batch: {', '.join(batch)}",
            )
        stored = column.dtype if isinstance(column, torch.Tensor) else column.values.dtype
        if not _holds(dtype, stored):
            raise ContractError(
                f"dtypes: {dtype} does not hold all values of field {name!r}, stored as {stored}",
                hint="ask for a wider type",
            )
        batch[name] = column.to(dtype)


@cache
def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Say whether a type takes the values of another: of numbers with a fraction, rounded."""
    if wide.is_floating_point or narrow.is_floating_point or torch.bool in (wide, narrow):
        is_fraction = bool(wide.is_floating_point and narrow.is_floating_point)
        return is_fraction or narrow in (torch.bool, wide)
    own, other = torch.iinfo(wide), torch.iinfo(narrow)
    return bool(own.min <= other.min and other.max <= own.max)


def _add_padding(batch: Batch, padding: np.ndarray) -> None:
    if PADDING in batch:
        raise ContractError(
            f"uneven='pad': the data set has a field {PADDING!r} of its own",
            hint="read other fields, or choose uneven='short' or 'drop'",
        )
    batch[PADDING] = torch.from_numpy(padding)


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if rank is None and world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        rank, world_size = (int(os.environ.get(n, d)) for n, d in _RANK_VARIABLES)
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise ContractError(
            f"rank={rank} of world_size={world_size}, expected 0 <= rank < world_size",
            hint="give both, or neither to take them from torch.distributed or the environment",
        )
    return rank, world_size
