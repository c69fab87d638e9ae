"""Batches of a finished data set for a training loop."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from operators.base import FieldSpec, Ragged
from pipeline.errors import ContractError, FingerprintMismatchError, IntegrityError, SetupError
from pipeline.loader.files import ShardFiles
from pipeline.loader.order import EpochOrder
from pipeline.loader.ragged import RaggedBatch
from pipeline.loader.shards import ShardReader
from pipeline.manifest import Manifest, open_data_set
from pipeline.storage import Storage

STATE_VERSION = 1

Batch = dict[str, Any]  # tensors, RaggedBatches and lists: the field's spec says which

_RANK_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"))
_ORDER_AHEAD = 1 << 16  # positions turned into rows at a time
_EPOCH, _START, _IN_WORKERS = range(3)  # what _shared holds


class TokenDataset(IterableDataset):  # type: ignore[misc]
    """Yields whole batches of a finished data set, in an order that never changes.

    A batch maps each field to a tensor [B, *shape] of the stored dtype, to a ``RaggedBatch`` where
    the length varies, or to a list of str or bytes. All of it is a copy; the shards stay mapped.

    The order. An epoch is one permutation of all samples (``EpochOrder``), a pure function of the
    shards, ``seed`` and ``epoch``. It is cut into global batches of ``world_size * batch_size``
    positions; in each, rank r takes positions r, r + world_size, ... So the union over the ranks
    is every sample exactly once, and 4 ranks of 8 samples see the global batches that 2 ranks of
    16 do. The uneven end: when ``left`` samples remain for the last global batch, the ranks'
    last batches hold ``left / world_size`` samples rounded up on the first ranks and down on the
    others, so with ``left < world_size`` some ranks yield one batch less. ``drop_last`` leaves
    these samples out on every rank, so that all yield equally many full batches.

    In a ``DataLoader``. Give it ``batch_size=None``: batches are made here. Its workers take
    batches in turn, so it yields the same batches in the same order for any ``num_workers``.
    ``set_epoch`` and ``load_state_dict`` reach persistent workers too, from the next iteration on.

    Epochs. Every iteration yields the epoch set last, from its beginning or from where
    ``load_state_dict`` put it; call ``set_epoch`` before each.

    Shuffling reads rows all over the data set. Shards on this machine's disk are mapped. Remote
    ones are copied to ``cache_dir`` when first touched, which in a shuffled epoch soon is all of
    them. Compressed shards decode 32 MiB for a row: read those with ``shuffle=False``.

    Args:
        manifest_url: The output folder of a finished run, or its ``manifest.json``.
        batch_size: Samples per batch and rank.
        fields: What to read, in this order; ``key`` may be among them. None is every field.
        seed: Of the permutation.
        shuffle: False yields the rows in the order of the shards.
        epoch: The first epoch.
        rank: This process; None asks ``torch.distributed``, then the environment (``RANK``,
            ``WORLD_SIZE``), and else is 0 of 1.
        world_size: How many there are; given exactly when ``rank`` is.
        drop_last: Leave out the samples that do not fill a global batch.
        storage_options: Protocol (``s3``) -> options of its fsspec file system.
        cache_dir: Where copies of remote shards go; None is the temporary folder.
        verify: Check the SHA-256 of every shard when it is first opened, not its size alone.
        allow_random_weights: Read tokens that mean nothing, for a dry run.

    Raises:
        ContractError: an argument is out of bounds, or there is no such field.
        SetupError: the tokens were made with random weights.
        NotFoundError: there is no manifest.
        IntegrityError: manifest and index do not belong together. While iterating: a shard is
            not what the index says.

    Example:
        >>> data = TokenDataset("out/quickstart", batch_size=8, fields=["sequence"])
        >>> for epoch in range(2):
        ...     data.set_epoch(epoch)
        ...     for batch in torch.utils.data.DataLoader(data, batch_size=None, num_workers=2):
        ...         ids, mask = batch["sequence"].padded(0, length=1024)
    """

    def __init__(
        self,
        manifest_url: str | os.PathLike[str],
        *,
        batch_size: int,
        fields: Sequence[str] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        epoch: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        storage_options: Mapping[str, Mapping[str, Any]] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        verify: bool = False,
        allow_random_weights: bool = False,
    ) -> None:
        super().__init__()
        self._rank, self._world_size = _ranks(rank, world_size)
        if batch_size < 1:
            raise ContractError(f"batch_size={batch_size}, expected 1 or more")
        data_set = open_data_set(os.fspath(manifest_url), Storage(storage_options))
        self._manifest = data_set.manifest
        if self._manifest.random_weights and not allow_random_weights:
            raise SetupError(
                f"{data_set.uri}: its tokens were made with random weights and mean nothing",
                hint="make them again with real weights, or pass allow_random_weights=True",
            )
        self._fields = _chosen(self._manifest, fields)
        files = ShardFiles(data_set, cache_dir, verify=verify)
        self._reader = ShardReader(data_set, self._fields, files)
        self._batch_size, self._drop_last = batch_size, drop_last
        self._seed, self._shuffle = seed, shuffle
        # In shared memory, so that persistent DataLoader workers hear of the next epoch.
        self._shared = torch.tensor([epoch, 0, 0]).share_memory_()
        self._now = (epoch, 0)  # epoch and position of the running or next iteration here
        self._resumed = False  # in a worker: whether the next iteration begins at _now

    @property
    def manifest(self) -> Manifest:
        """The description of the data set: fields, vocabularies, operators."""
        return self._manifest

    @property
    def num_samples(self) -> int:
        """Samples of the whole data set."""
        return self._reader.num_samples

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration yields."""
        return int(self._shared[_EPOCH])

    def __len__(self) -> int:
        """Return the batches that this rank yields in a whole epoch."""
        full, left = divmod(self.num_samples, self._global_batch_size)
        return full + (not self._drop_last and left > self._rank)

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
            **self._identity(),
            "epoch": epoch,
            "position": min(position, self.num_samples),
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
            f"{name} {state[name]!r} -> {here!r}"
            for name, here in self._identity().items()
            if state[name] != here
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
        order = EpochOrder(self.num_samples, self._seed, epoch, shuffle=self._shuffle)
        self._now = (epoch, start)
        # A worker's next batch is as far from its position as its first was from the start.
        step = self._global_batch_size * num_workers
        for positions in self._positions(start, worker, num_workers):
            rows = order.rows(positions)
            for first in range(0, len(rows), self._batch_size):
                self._now = (epoch, self._now[1] + step)
                yield self._read(rows[first : first + self._batch_size])
        self._now = (epoch, self.num_samples)

    @property
    def _global_batch_size(self) -> int:
        return self._world_size * self._batch_size

    def _positions(self, start: int, worker: int, num_workers: int) -> Iterator[np.ndarray]:
        """Yield int64 positions of this rank's and worker's samples, many batches at a time.

        Every batch is full but the last of all.
        """
        left = self.num_samples - start
        size = self._global_batch_size
        batches = np.arange(worker, left // size if self._drop_last else -(-left // size))
        batches = batches[::num_workers]
        own = self._rank + self._world_size * np.arange(self._batch_size)
        ahead = max(1, _ORDER_AHEAD // self._batch_size)
        for i in range(0, len(batches), ahead):
            positions = start + batches[i : i + ahead, None] * size + own
            yield positions[positions < self.num_samples]

    def _read(self, rows: np.ndarray) -> Batch:
        return {name: _as_torch(column) for name, column in self._reader.read(rows).items()}

    def _begin_at(self, epoch: int, position: int) -> None:
        self._now = (epoch, position)
        if get_worker_info() is None:
            self._shared[:] = torch.tensor([epoch, position, 0])
        else:  # a loader restores each worker on its own: the others must not hear of it
            self._resumed = True

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same when a state is loaded."""
        return {
            "version": STATE_VERSION,
            "fingerprint": self._manifest.fingerprint,
            "index_sha256": self._manifest.index_sha256,
            "seed": self._seed,
            "shuffle": self._shuffle,
        }


def _as_torch(column: Any) -> torch.Tensor | RaggedBatch | list[Any]:
    if isinstance(column, Ragged):
        return RaggedBatch(torch.from_numpy(column.values), torch.from_numpy(column.offsets))
    return torch.from_numpy(column) if isinstance(column, np.ndarray) else column


def _chosen(manifest: Manifest, fields: Sequence[str] | None) -> dict[str, FieldSpec]:
    there = {**manifest.fields, "key": FieldSpec("string")}
    names = list(manifest.fields) if fields is None else list(fields)
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        found = f"there is no field {unknown[0]!r}" if unknown else "no field is asked for"
        raise ContractError(f"fields: {found}", hint=f"the data set has {', '.join(there)}")
    return {name: there[name] for name in names}


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
