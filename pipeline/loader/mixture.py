"""Batches of several data sets, mixed in exact proportions."""

import hashlib
import json
import math
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import get_worker_info

from operators.base import Column, FieldSpec, Ragged
from operators.columns import concat, take
from pipeline.errors import ContractError, FingerprintMismatchError, IntegrityError
from pipeline.loader.bad_shards import BadShard
from pipeline.loader.batches import BatchDataset, Uneven
from pipeline.loader.files import OnBadShard, ShardFiles
from pipeline.loader.opening import Opener
from pipeline.loader.order import BlockOrder, BlockShuffle, EpochOrder, Ordering
from pipeline.loader.prefetch import Prefetch, in_looks
from pipeline.loader.proportions import Proportions, whole_weights
from pipeline.loader.samples import Samples
from pipeline.loader.skipping import read_without
from pipeline.loader.view import OpenView, View
from pipeline.manifest import DataSet, Manifest

SOURCE = "source"
"""The field of a batch that says which source each item is of."""

Number = int | float | Fraction

_ENDLESS = 1 << 62  # positions of a mixture that nothing ends
_SHARES = ("weight", "tokens", "epochs")
_BATCH_BOUNDARIES = ("cu_seqlens", "max_seqlen")  # of a batch as a whole, not of its items


@dataclass(frozen=True, slots=True)
class Source:
    """A data set in a mixture, and how much of it: exactly one of weight, tokens and epochs.

    A float counts as the decimal number that it is printed as: 0.1 is one tenth.

    Attributes:
        url: The output folder of a finished run, or its ``manifest.json``.
        weight: Its share of the items, beside the weights of the others; 0 pauses it.
        tokens: A budget of tokens. It is turned into the nearest number of items by the mean of
            the whole data set: the ids that the index counts in the fields of the view, over the
            view's items; of a fixed length in whole samples, that length. What a view cuts off
            from ragged fields (a sampled prefix) or repeats is not taken off or added.
        epochs: A budget of epochs; 0.5 is half of the data set, rounded down to items.
        view: What an item is; None is whole samples with every field.
        max_epochs: With a weight: the mixture ends before this source would begin another.
    """

    url: str | os.PathLike[str]
    weight: Number | None = None
    tokens: int | None = None
    epochs: Number | None = None
    view: View | None = None
    max_epochs: int | None = None

    @property
    def share(self) -> tuple[str, Fraction]:
        """The kind of share that is given, and its value.

        Raises:
            ContractError: not exactly one is given, or it is out of bounds.
        """
        given = {name: value for name in _SHARES if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ContractError(
                f"source {self.url}: {found} of {', '.join(_SHARES)} given, expected exactly one"
            )
        [(name, value)] = given.items()
        exact = _fraction(self.url, name, value)
        if self.max_epochs is not None and (name != "weight" or self.max_epochs < 1):
            raise ContractError(
                f"source {self.url}: max_epochs={self.max_epochs} with {name}, expected 1 or more "
                "and with a weight",
                hint="a budget of tokens or epochs ends by itself",
            )
        return name, exact


class MixedDataset(BatchDataset):
    """Yields batches of items from several data sets, in proportions that hold everywhere.

    Batches are like ``TokenDataset``'s, and so are ranks, workers and uneven ends. Beside the
    fields of the views, which must be the same for all sources, ``source`` is int64 [B]: for each
    item the number of its source in the list.

    The order. Which source stands at which position is a pure function of the shares
    (``Proportions``): among the first n items each source has n times its share, off by less than
    1.7 for any number of sources, by less than 1 for up to three, and by 1/2 at most for two; in
    any window of n items twice that. A source's own items come in the order of its epochs 0, 1, 2,
    ..., each a permutation like ``TokenDataset``'s with the same seed, one after the other. All of
    it is arithmetic on positions: the same for any ranks, batch sizes and workers, and as cheap to
    enter in the middle as at the beginning.

    The end. Sources with budgets: when all are spent, each to the item, which they are at the same
    time. Sources with weights: after ``num_items``, or before the first source would go on past its
    ``max_epochs``, whichever comes first; without either never, and then there is no ``len``. A
    mixture is a single epoch, 0: what repeats are its sources.

    Args:
        sources: The data sets, all with weights or all with budgets. None may be there twice.
        batch_size: Items per batch and rank.
        num_items: With weights: items of the whole mixture.
        num_tokens: With weights: the same in tokens, by the means that ``Source.tokens`` names.
        seed: Of every source's permutations.
        shuffle: True permutes every source as a whole, a ``BlockShuffle`` blocks of it; False
            takes its items in the order of its shards.
        rank: This process; None asks ``torch.distributed``, then the environment.
        world_size: How many there are; given exactly when ``rank`` is.
        uneven: ``short``, ``pad`` or ``drop``: what becomes of items that do not fill the last
            global batch.
        dtypes: Field -> the dtype of its tensors where it is not the stored one.
        storage_options: Protocol (``s3``) -> options of its fsspec file system.
        cache_dir: Where copies of remote shards go, as in ``TokenDataset``.
        cache_bytes: How much it may hold, for all sources together.
        prefetch_shards: How many remote shards are fetched before they are needed.
        on_bad_shard: What happens when a shard is missing or damaged, as in ``TokenDataset``.
        verify: Check the SHA-256 of every shard when it is opened, not its size alone.
        allow_random_weights: Read tokens that mean nothing, for a dry run.

    Raises:
        ContractError: an argument is out of bounds, or sources do not go together.
        SetupError: tokens were made with random weights.
        NotFoundError: there is no manifest.
        IntegrityError: manifest and index do not belong together.

    Example:
        >>> data = MixedDataset(
        ...     [Source("out/web", weight=0.9), Source("out/books", weight=0.1, max_epochs=4)],
        ...     batch_size=8,
        ... )
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        batch_size: int,
        num_items: int | None = None,
        num_tokens: int | None = None,
        seed: int = 0,
        shuffle: bool | BlockShuffle = True,
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
            epoch=0,
            rank=rank,
            world_size=world_size,
            uneven=uneven,
            dtypes=dtypes,
        )
        self._ordering = Ordering(seed, shuffle)
        kinds = {source.share[0] == "weight" for source in sources}
        if len(kinds) != 1:
            raise ContractError(
                "mixture: weights and budgets together" if kinds else "mixture: no source",
                hint="give every source a weight, or every source a budget (tokens or epochs)",
            )
        opener = Opener(
            storage_options=storage_options,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            prefetch_shards=prefetch_shards,
            on_bad_shard=on_bad_shard,
            verify=verify,
            allow_random_weights=allow_random_weights,
        )
        self._sources = []
        for source in sources:
            data_set, files = opener.open(source.url)
            view = (source.view or Samples()).open(data_set, files)
            self._sources.append(_OpenSource(source, data_set, view, files))
        _check_that_they_mix(self._sources)
        self._sizes = np.array([source.view.num_items for source in self._sources], np.int64)
        self._orders: dict[int, EpochOrder | BlockOrder] = {}  # source -> that of its last epoch
        self._has_budgets = kinds == {False}
        if self._has_budgets:
            self._shares = [source.budget() for source in self._sources]
        else:
            self._shares = whole_weights([source.share for source in self._sources])
        self._num_items = self._length(num_items, num_tokens)
        # What each source had given when the running proportions began; for persistent workers
        # the same in shared memory, as in BatchDataset.
        self._starts = [0] * len(self._sources)
        self._shared_starts = torch.zeros(len(self._sources), dtype=torch.int64).share_memory_()
        self._start_from(self._starts)

    @property
    def manifests(self) -> list[Manifest]:
        """The descriptions of the data sets, in the order of the sources."""
        return [source.manifest for source in self._sources]

    @property
    def skipped(self) -> tuple[BadShard, ...]:
        """The shards of all sources found missing or damaged so far, as in ``TokenDataset``."""
        return tuple(
            b for s in self._sources if s.files.bad is not None for b in s.files.bad.found()
        )

    @property
    def num_positions(self) -> int:
        """Items from where the running proportions began to the end of the mixture."""
        return self._num_positions

    @property
    def consumed(self) -> list[int]:
        """Items that each source has given up to the position of ``state_dict()``."""
        return self._consumed_at(self._now[1])

    def __len__(self) -> int:
        """Return the batches that this rank yields from where the running proportions began.

        Raises:
            TypeError: the mixture never ends.
        """
        if self._num_positions == _ENDLESS:
            raise TypeError(
                "the mixture never ends and has no length; give num_items, num_tokens, max_epochs "
                "or budgets"
            )
        return super().__len__()

    def set_epoch(self, epoch: int) -> None:
        """Accept epoch 0, the only one.

        Raises:
            ContractError: it is another.
        """
        if epoch != 0:
            raise ContractError(
                f"set_epoch({epoch}): a mixture has a single epoch, 0",
                hint="its sources repeat: give them epochs or tokens, or the mixture num_items",
            )

    def state_dict(self, num_batches: int | None = None) -> dict[str, Any]:
        """Return where the iteration stands: a few numbers a source, the same on every rank.

        Args:
            num_batches: As in ``BatchDataset``.

        Raises:
            ContractError: batches come from workers and ``num_batches`` is missing.
        """
        state = super().state_dict(num_batches)
        consumed = self._consumed_at(state["position"])
        digests = [source.digest for source in self._sources]
        return {
            **state,
            "starts": list(self._starts),
            "consumed": dict(zip(digests, consumed, strict=True)),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, new_weights: bool = False) -> None:
        """Let the next iteration go on after the last batch of a saved state.

        Batch size, world size, workers and the length of a mixture with weights may differ from
        the saved ones.

        Args:
            state: What ``state_dict`` returned.
            new_weights: The shares may differ too, and sources may be in another order or be new:
                from here on every source goes on at its own next item, in the new proportions.
                Budgets and ``num_items`` count from the beginning of the mixture; what is left of
                the budgets decides the proportions.

        Raises:
            FingerprintMismatchError: the state is of other data sets, views, seed or order, or of
                other shares without ``new_weights``.
            IntegrityError: it is not a state of a mixture, or one of another version.
            ContractError: more of a source was read than its new budget.
        """
        consumed = state.get("consumed")
        if not isinstance(consumed, Mapping):
            raise IntegrityError(
                "loader state: not of a mixture", hint="load what MixedDataset.state_dict returned"
            )
        if new_weights:
            known = {source.digest for source in self._sources}
            if lost := [digest for digest in consumed if digest not in known]:
                raise FingerprintMismatchError(
                    f"loader state: {len(lost)} of its {len(consumed)} sources are not in the "
                    f"mixture, which has {', '.join(source.uri for source in self._sources)}",
                    hint="keep every source with the same data and view; weight=0 pauses one",
                )
            starts = [consumed.get(source.digest, 0) for source in self._sources]
            order = {name: state.get(name) for name in self._ordering.identity()}
            state = {**state, **self._identity(), **order, "position": 0}
        else:
            shares = {name: share for name, share in state.items() if name.startswith("share ")}
            others = {**state, **self._share_identity()}
            if shares != self._share_identity() and not self._differs(others):
                raise FingerprintMismatchError(
                    f"loader state: shares {list(shares.values())} -> "
                    f"{list(self._share_identity().values())}",
                    hint="load_state_dict(state, new_weights=True) goes on with the new ones",
                )
            starts = state.get("starts", self._starts)
        super().load_state_dict(state)
        self._start_from(starts)
        if get_worker_info() is None:
            self._shared_starts[:] = torch.tensor(starts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self._resumed:  # a worker that was restored on its own keeps its own
            self._start_from(self._shared_starts.tolist())
        yield from super().__iter__()

    def _items(self, epoch: int, positions: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Return int64 [K, 2]: source and its epoch in one number, item of the source's view."""
        assert self._proportions is not None, "no position without a share"
        sources, indices = self._proportions.sources(positions)
        indices += np.array(self._starts, np.int64)[sources]
        epochs, places = np.divmod(indices, self._sizes[sources])
        numbers = epochs * len(self._sources) + sources
        items = np.stack([numbers, places], axis=1)
        for number, rows in _groups(numbers):
            source_epoch, source = divmod(number, len(self._sources))
            items[rows, 1] = self._order_of(source, source_epoch).rows(places[rows])
        return items

    def _order_of(self, source: int, epoch: int) -> EpochOrder | BlockOrder:
        order = self._orders.get(source)
        if order is None or order.epoch != epoch:
            order = self._ordering.of(self._sources[source].view, epoch)
            self._orders[source] = order
        return order

    def _read(
        self,
        epoch: int,  # noqa: ARG002
        items: np.ndarray,
    ) -> tuple[np.ndarray | None, Mapping[str, Column]]:
        parts, places = [], []
        kept: np.ndarray | None = None
        for number, rows in _groups(items[:, 0]):
            source_epoch, number_of_source = divmod(number, len(self._sources))
            source = self._sources[number_of_source]
            good, part = read_without(source.files.bad, source.view, items[rows, 1], source_epoch)
            if good is not None:
                kept = np.ones(len(items), np.bool_) if kept is None else kept
                kept[rows] = good
            parts.append(part)
            places.append(rows if good is None else rows[good])
        if kept is not None:
            items = items[kept]
            places = [(np.cumsum(kept) - 1)[rows] for rows in places]
        columns = dict(parts[0]) if len(parts) == 1 else _joined(parts, places)
        columns[SOURCE] = items[:, 0] % len(self._sources)
        return kept, columns

    def _prefetch(self, items: Iterator[np.ndarray]) -> Prefetch | None:
        remote = _RemoteSources([source.files for source in self._sources])
        return Prefetch(remote, self._looks(items, remote)) if remote.max_ahead else None

    def _looks(
        self, items: Iterator[np.ndarray], remote: "_RemoteSources"
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield what ``Prefetch`` asks for; in every epoch of a source its shards are new again."""
        is_new = [np.empty(0, np.bool_) for _ in self._sources]
        epochs = [-1] * len(self._sources)
        for look in in_looks(items):
            found: list[int] = []
            for number, rows in _groups(look[:, 0]):
                epoch, source = divmod(number, len(self._sources))
                files = self._sources[source].files
                if epoch != epochs[source]:
                    epochs[source], is_new[source] = epoch, np.ones(files.num_shards, np.bool_)
                if files.max_ahead:
                    shards = self._sources[source].view.shards(look[rows, 1])
                    shards = shards[is_new[source][shards]]
                    is_new[source][shards] = False
                    found += remote.numbers(source, shards)
            yield len(look), found

    def _identity(self) -> Mapping[str, Any]:
        data = [source.identity for source in self._sources]
        return {
            "num_sources": len(data),
            **{f"source {i} {name}": it for i, one in enumerate(data) for name, it in one.items()},
            **self._share_identity(),
            **self._ordering.identity(),
        }

    def _share_identity(self) -> dict[str, Any]:
        kind = "budget of" if self._has_budgets else "weight of"
        return {f"share {i}": f"{kind} {share}" for i, share in enumerate(self._shares)}

    def _differs(self, state: Mapping[str, Any]) -> bool:
        return any(state.get(name) != here for name, here in self._identity().items())

    def _consumed_at(self, position: int) -> list[int]:
        if self._proportions is None:
            return list(self._starts)
        counts = self._proportions.counts(position)
        return [start + count for start, count in zip(self._starts, counts, strict=True)]

    def _length(self, num_items: int | None, num_tokens: int | None) -> int | None:
        """Return the items asked for."""
        given = [n for n in (num_items, num_tokens) if n is not None]
        if len(given) > 1 or (given and (self._has_budgets or given[0] < 1)):
            raise ContractError(
                f"mixture: num_items={num_items}, num_tokens={num_tokens}, expected at most one, "
                "1 or more, and only with weights",
                hint="budgets add up to the length by themselves",
            )
        if num_tokens is None:
            return num_items
        shares = zip(self._shares, self._sources, strict=True)
        tokens = sum(Fraction(share) * source.tokens_per_item() for share, source in shares)
        return max(1, round(num_tokens * sum(self._shares) / tokens))

    def _start_from(self, starts: Sequence[int]) -> None:
        """Begin the proportions anew after each source has given some items."""
        shares = list(self._shares)
        if self._has_budgets:
            shares = [share - start for share, start in zip(shares, starts, strict=True)]
            for source, share, start in zip(self._sources, shares, starts, strict=True):
                if share < 0:
                    raise ContractError(
                        f"source {source.uri}: {start:,} items of it were read, its budget is "
                        f"{start + share:,}",
                        hint="give it what was read at least: then nothing more of it comes",
                    )
            end = sum(shares)
            self._proportions = Proportions(shares) if end else None
        else:
            self._proportions = Proportions(shares)
            end = _ENDLESS
            if self._num_items is not None:
                end = max(0, self._num_items - sum(starts))
            for i, (source, start) in enumerate(zip(self._sources, starts, strict=True)):
                if source.max_items is not None and shares[i]:
                    left = max(0, source.max_items - start)
                    end = min(end, self._proportions.position(i, left))
        self._starts, self._num_positions = list(starts), end


class _RemoteSources:
    """The shards of all sources, numbered one after another, of which some are remote."""

    def __init__(self, files: Sequence[ShardFiles]) -> None:
        self._files = files
        self._starts = np.cumsum([0, *(one.num_shards for one in files)]).tolist()
        remote = [one for one in files if one.max_ahead]
        self.num_ahead = max((one.num_ahead for one in remote), default=0)
        # They share a folder, and its bound.
        self.max_ahead = min((one.max_ahead for one in remote), default=0)

    def numbers(self, source: int, shards: np.ndarray) -> list[int]:
        """Return the numbers of some shards of a source."""
        found: list[int] = (self._starts[source] + shards).tolist()
        return found

    def fetch(self, shard: int, stopped: Callable[[], bool]) -> None:
        """Fetch a shard by its number."""
        source = bisect_right(self._starts, shard) - 1
        self._files[source].fetch(shard - self._starts[source], stopped)


class _OpenSource:
    """A source whose manifest is read; picklable."""

    def __init__(
        self, source: Source, data_set: DataSet, view: OpenView, files: ShardFiles
    ) -> None:
        self._kind, self.share = source.share
        self.files = files
        self.uri, self.manifest, self.view = data_set.uri, data_set.manifest, view
        if self.share and not view.num_items:
            raise ContractError(
                f"source {self.uri}: it has no items", hint="leave it out, or give it weight=0"
            )
        # Nothing is read for no items, but what a field is shows.
        self.columns = dict(view.read(np.empty(0, np.int64), 0))
        self.identity: dict[str, Any] = {
            "fingerprint": self.manifest.fingerprint,
            "index_sha256": self.manifest.index_sha256,
            **view.identity(),
        }
        text = json.dumps(self.identity, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        epochs = source.max_epochs
        self.max_items = None if epochs is None else epochs * view.num_items
        names = [name for name in self.columns if self._spec(name).vocab_size]
        means = (self._mean_tokens(name, data_set.shards) for name in names)
        self._tokens_per_item = sum(means, Fraction(0))

    def tokens_per_item(self) -> Fraction:
        """Return the mean.

        Raises:
            ContractError: no field of ids is read.
        """
        if not self._tokens_per_item:
            raise ContractError(
                f"source {self.uri}: its view yields no tokens that the index counts "
                f"({', '.join(self.columns)})",
                hint="give a weight, epochs or num_items",
            )
        return self._tokens_per_item

    def budget(self) -> int:
        """Return the items that its tokens or epochs are."""
        if self._kind == "epochs":
            return int(self.share * self.view.num_items)
        return round(self.share / self.tokens_per_item()) if self.share else 0

    def kinds(self) -> dict[str, str]:
        """Return what each field of a batch is, in words."""
        return {name: _kind(column, self._spec(name)) for name, column in self.columns.items()}

    def _mean_tokens(self, name: str, shards: pa.Table) -> Fraction:
        """Return the ids of one field in an item."""
        column = self.columns[name]
        if self.identity.get("view") == "samples" and isinstance(column, np.ndarray):
            return Fraction(math.prod(column.shape[1:]))  # of a prefix, too
        num_tokens = pc.sum(shards[f"tokens.{name}"]).as_py() or 0
        return Fraction(num_tokens, max(1, self.view.num_items))

    def _spec(self, name: str) -> FieldSpec:
        return self.manifest.fields.get(name, FieldSpec("string"))


def _check_that_they_mix(sources: Sequence[_OpenSource]) -> None:
    first = sources[0]
    kinds = first.kinds()
    if SOURCE in kinds:
        raise ContractError(
            f"mixture: {first.uri} has a field {SOURCE!r}, which the mixture adds itself",
            hint="choose other fields in its view",
        )
    for i, other in enumerate(sources[1:], start=1):
        found = other.kinds()
        for name in [*kinds, *found]:
            here, there = kinds.get(name, "missing"), found.get(name, "missing")
            if here != there:
                raise ContractError(
                    f"mixture: field {name!r} is {here} in {first.uri}, and {there} in {other.uri}",
                    hint="choose fields in their views that are the same in all sources",
                )
        same = [source.uri for source in sources[:i] if source.digest == other.digest]
        if same:
            raise ContractError(
                f"mixture: {other.uri} holds the same data in the same view as {same[0]}",
                hint="name it once, with both shares together",
            )


def _kind(column: Column, spec: FieldSpec) -> str:
    if isinstance(column, Ragged):
        dims, dtype = ["*", *column.values.shape[1:]], column.values.dtype
    elif hasattr(column, "dtype"):
        dims, dtype = list(column.shape[1:]), column.dtype
    else:
        return spec.dtype if isinstance(column, list) else type(column).__name__
    ids = f" < {spec.vocab_size:,}" if spec.vocab_size else ""
    return f"{dtype}[{', '.join(map(str, dims))}]{ids}"


def _groups(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each number of int64 [K], with the int64 places where it is, rising."""
    if not len(numbers):
        return
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    starts = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist()]
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        yield int(ordered[start]), order[start:stop]


def _joined(
    parts: Sequence[Mapping[str, Column]], places: Sequence[np.ndarray]
) -> dict[str, Column]:
    """Join parts of a batch: the items of each go to its places, int64 [b]."""
    rows = np.concatenate(places)
    back = np.empty_like(rows)
    back[rows] = np.arange(len(rows))
    columns: dict[str, Column] = {}
    for name, first in parts[0].items():
        pieces = [part[name] for part in parts]
        if name in _BATCH_BOUNDARIES:
            columns[name] = first  # for now: this keeps the order of the fields
        elif isinstance(first, np.ndarray):
            columns[name] = np.empty((len(rows), *first.shape[1:]), first.dtype)
            for piece, own in zip(pieces, places, strict=True):
                columns[name][own] = piece
        else:
            columns[name] = take(concat(pieces), back)
    if _BATCH_BOUNDARIES[0] in columns:  # a sequence begins wherever positions begin
        positions = columns["position_ids"].reshape(-1)
        begins = np.append(np.flatnonzero(positions == 0), len(positions))
        columns["cu_seqlens"] = begins.astype(columns["cu_seqlens"].dtype)
        columns["max_seqlen"] = int(np.diff(begins).max(initial=0))
    return columns


def _fraction(url: str | os.PathLike[str], name: str, value: Number) -> Fraction:
    try:
        exact = Fraction(str(value))
    except ValueError:  # inf, nan
        exact = Fraction(-1)
    if exact < 0:
        raise ContractError(f"source {url}: {name}={value}, expected 0 or more")
    return exact
