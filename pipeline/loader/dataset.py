"""Batches of a finished data set for a training loop."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from operators.base import Column
from pipeline.errors import ContractError
from pipeline.loader.bad_shards import BadShard
from pipeline.loader.batches import BatchDataset, Uneven
from pipeline.loader.files import OnBadShard
from pipeline.loader.opening import Opener
from pipeline.loader.order import BlockShuffle, Ordering
from pipeline.loader.prefetch import Prefetch, looks
from pipeline.loader.samples import Samples
from pipeline.loader.skipping import read_without
from pipeline.loader.view import OpenView, ReadsBatches, View
from pipeline.manifest import Manifest


class TokenDataset(BatchDataset):
    """Yields whole batches of a finished data set, in an order that never changes.

    A batch maps each field to a tensor [B, *shape] of the stored dtype, to a ``RaggedBatch`` where
    the length varies, or to a list of str or bytes. All of it is a copy; the shards stay mapped.
    Small batches of local shards are copied several at a time, about a megabyte, and lie side by
    side in it: whoever keeps one for long should clone it.

    The order. An epoch is one permutation of all samples, a pure function of the shards, ``seed``,
    ``shuffle`` and ``epoch``: of the whole (``EpochOrder``), or of blocks for data that is copied
    as it is read (``BlockShuffle``). It is cut into global batches of ``world_size * batch_size``
    positions; in each, rank r takes positions r, r + world_size, ... So the union over the ranks
    is every sample exactly once, and 4 ranks of 8 samples see the global batches that 2 ranks of
    16 do.

    The uneven end. When ``left`` samples remain for the last global batch, ``uneven="short"``
    gives the first ranks ``left / world_size`` samples rounded up and the others rounded down, so
    with ``left < world_size`` some ranks yield one batch less. With ``"pad"`` all ranks yield
    equally many full batches: the last is filled up with the first samples of the epoch, and
    every batch has a field ``padding``, bool [B], True where a sample is such a repetition. With
    ``"drop"`` these samples are left out on every rank.

    In a ``DataLoader``. Give it ``batch_size=None``: batches are made here. Its workers take
    batches in turn, so it yields the same batches in the same order for any ``num_workers``.
    ``set_epoch`` and ``load_state_dict`` reach persistent workers too, from the next iteration on.

    Epochs. Every iteration yields the epoch set last, from its beginning or from where
    ``load_state_dict`` put it; call ``set_epoch`` before each.

    Shuffling the whole reads rows all over the data set. Shards on this machine's disk are mapped.
    Remote ones are copied to ``cache_dir``, once a node, which soon is all of them; with
    ``BlockShuffle`` it is a few at a time (docs/remote.md). Compressed shards decode 32 MiB for a
    row: read those with ``shuffle=False``, or in blocks.

    Args:
        manifest_url: The output folder of a finished run, or its ``manifest.json``.
        batch_size: Samples per batch and rank.
        fields: Shorthand for ``view=Samples(fields)``.
        view: What an item of a batch is; None is whole samples with every field.
        seed: Of the permutation.
        shuffle: True permutes the whole, a ``BlockShuffle`` blocks of it; False yields the items
            in the order of the shards.
        epoch: The first epoch.
        rank: This process; None asks ``torch.distributed``, then the environment (``RANK``,
            ``WORLD_SIZE``), and else is 0 of 1.
        world_size: How many there are; given exactly when ``rank`` is.
        uneven: ``short``, ``pad`` or ``drop``: what becomes of samples that do not fill the last
            global batch.
        dtypes: Field -> the dtype of its tensors where it is not the stored one: ids as
            ``torch.int64``, features as ``torch.bfloat16``. Ids are refused a type that does not
            hold them all.
        storage_options: Protocol (``s3``) -> options of its fsspec file system.
        cache_dir: Where copies of remote shards go: a folder on a disk of this machine, which other
            data sets, ranks and workers may share. None is one in the temporary folder.
        cache_bytes: How much it may hold; those used longest ago are removed. None is half of what
            is free for copies when the data set is opened.
        prefetch_shards: How many remote shards are fetched before they are needed, per rank and
            worker; in all they take a quarter of ``cache_bytes`` at most.
        on_bad_shard: What happens when a shard is missing or damaged. "raise" ends the iteration.
            "skip" leaves out the items that need it: there are as many batches as before, shorter,
            some of them empty. It is logged, and ``skipped`` tells.
        verify: Check the SHA-256 of every shard when it is opened, not its size alone.
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
        view: View | None = None,
        seed: int = 0,
        shuffle: bool | BlockShuffle = True,
        epoch: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: Uneven = "short",
        dtypes: Mapping[str, torch.dtype] | None = None,
        storage_options: Mapping[str, Mapping[str, Any]] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        prefetch_shards: int = 16,
        on_bad_shard: OnBadShard = "raise",
        verify: bool = False,
        allow_random_weights: bool = False,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            uneven=uneven,
            dtypes=dtypes,
        )
        self._ordering = Ordering(seed, shuffle)
        if view is not None and fields is not None:
            raise ContractError("fields and view are both given", hint="view=Samples(fields=...)")
        opener = Opener(
            storage_options=storage_options,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            prefetch_shards=prefetch_shards,
            on_bad_shard=on_bad_shard,
            verify=verify,
            allow_random_weights=allow_random_weights,
        )
        data_set, self._files = opener.open(manifest_url)
        self._manifest = data_set.manifest
        self._view: OpenView = (view or Samples(fields)).open(data_set, self._files)
        self._order = self._ordering.of(self._view, epoch)

    @property
    def manifest(self) -> Manifest:
        """The description of the data set: fields, vocabularies, operators."""
        return self._manifest

    @property
    def view(self) -> OpenView:
        """The items that batches are made of, and what else the view tells of them."""
        return self._view

    @property
    def num_positions(self) -> int:
        """Items of the view, samples as a rule, of the whole data set."""
        return self._view.num_items

    @property
    def skipped(self) -> tuple[BadShard, ...]:
        """The shards found missing or damaged so far, by this process and its DataLoader workers.

        Always empty with ``on_bad_shard="raise"``.
        """
        return () if self._files.bad is None else self._files.bad.found()

    def _items(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        if epoch != self._order.epoch:
            self._order = self._ordering.of(self._view, epoch)
        return self._order.rows(positions)

    def _read(
        self, epoch: int, items: np.ndarray
    ) -> tuple[np.ndarray | None, Mapping[str, Column]]:
        return read_without(self._files.bad, self._view, items, epoch)

    def _prefetch(self, items: Iterator[np.ndarray]) -> Prefetch | None:
        if not self._files.max_ahead:
            return None
        return Prefetch(self._files, looks(items, self._view.shards, self._files.num_shards))

    def _read_batches(
        self, epoch: int, items: np.ndarray, ahead: Prefetch | None
    ) -> Iterator[tuple[np.ndarray | None, Mapping[str, Column]]]:
        view, files = self._view, self._files
        if not files.is_local or files.bad is not None or not isinstance(view, ReadsBatches):
            yield from super()._read_batches(epoch, items, ahead)
            return
        for columns in view.read_batches(items, self._batch_size, epoch):
            yield None, columns

    def _identity(self) -> Mapping[str, Any]:
        return {
            "fingerprint": self._manifest.fingerprint,
            "index_sha256": self._manifest.index_sha256,
            **self._ordering.identity(),
            **self._view.identity(),
        }
