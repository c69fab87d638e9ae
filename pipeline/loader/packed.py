"""Packed sequences: rows of at most so many tokens, made of whole samples where possible."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from operators.base import Column
from pipeline.errors import ContractError
from pipeline.loader.files import ShardFiles
from pipeline.loader.token_rows import RowFormat
from pipeline.loader.token_stream import TokenStream
from pipeline.loader.view import OpenView
from pipeline.loader.windows import Windows
from pipeline.manifest import DataSet

if TYPE_CHECKING:
    from pipeline.loader.pack_index import PackIndex

METHODS = ("concat", "first_fit", "best_fit")


@dataclass(frozen=True, slots=True)
class Packed:
    """Each item is a pack: a row of ``length`` tokens that holds samples one after another.

    Which samples share a row is computed once, from their lengths, and kept in ``cache_dir``;
    nothing of the data set is written anew. A batch of B packs has the columns of ``Windows`` with
    ``boundaries=True``: places behind a pack's last token are filled with ``pad``, are not to be
    learnt, have document id -1, and count as one more sample for ``position_ids`` and
    ``cu_seqlens``. Needs the extra ``packing`` (numba).

    Attributes:
        field: Ids, one per position, of varying or of fixed length.
        length: L.
        method: ``first_fit`` puts each sample, in stored order, into the first pack with room;
            ``best_fit`` the longest samples first, each into the fullest pack with room;
            ``concat`` cuts the stream of all samples every L tokens, wherever that is, so that no
            row but the last has padding.
        dtype: Of the ids.
        pad: Id where there is no token.
        long: Of samples with more than L tokens: ``cut`` makes pieces of L and a rest of them, each
            a sample of its own; ``skip`` leaves them out and counts them.
        group_samples: Packs are filled from neighbouring shards, the fewest that have so many
            samples together: what a pack holds lies close together, and memory while packing is
            bounded. A group's last packs are not full, which costs little unless it is small.
        loss_mask: A field that says of every id whether it is to be learnt (0: no).
        others: Fields with a number for every id, packed in the same way.
    """

    field: str
    length: int
    method: Literal["concat", "first_fit", "best_fit"] = "best_fit"
    dtype: str = "int64"
    pad: int = 0
    long: Literal["cut", "skip"] = "cut"
    group_samples: int = 1 << 16
    loss_mask: str | None = None
    others: Sequence[str] = ()

    def open(self, data_set: DataSet, files: ShardFiles) -> OpenView:
        """Return the packs of a data set, computing them if ``cache_dir`` does not have them.

        Raises:
            ContractError: an argument is out of bounds, or a field is not what it must be.
            SetupError: numba is missing, or ``cache_dir`` cannot be written.
            IntegrityError: a shard is not what the index says.
        """
        self._check()
        if self.method == "concat":
            windows = Windows(
                self.field,
                self.length,
                dtype=self.dtype,
                pad=self.pad,
                boundaries=True,
                loss_mask=self.loss_mask,
                others=self.others,
            )
            return windows.open(data_set, files)
        from pipeline.loader.pack_index import PackOptions, open_pack_index

        rows = RowFormat(self.field, self.length, self.dtype, self.pad, self.loss_mask, self.others)
        stream = TokenStream(data_set, self.field, rows.other_fields, files)
        rows.check(stream.spec)
        options = PackOptions(
            self.field, self.length, self.method, self.long == "skip", self.group_samples
        )
        lengths = TokenStream(data_set, self.field, (), files)
        index = open_pack_index(data_set.manifest, lengths, options, files.cache_dir)
        return OpenPacked(self, rows, stream, index)

    def _check(self) -> None:
        if self.method not in METHODS:
            raise ContractError(
                f"packed: method={self.method!r}, expected one of {', '.join(METHODS)}"
            )
        if self.long not in ("cut", "skip"):
            raise ContractError(f"packed: long={self.long!r}, expected 'cut' or 'skip'")
        if self.length < 1 or self.group_samples < 1:
            raise ContractError(
                f"packed: length={self.length}, group_samples={self.group_samples}, expected 1 or "
                f"more"
            )
        if self.method == "concat" and self.long == "skip":
            raise ContractError(
                "packed: long='skip' with method='concat', which cuts samples where rows end",
                hint="choose first_fit or best_fit",
            )


class OpenPacked:
    """The packs of a data set, by their number.

    Attributes:
        num_tokens: Tokens in all packs.
        fill_rate: Their share of the places of all packs.
        skipped_samples: Samples that ``long="skip"`` left out.
        skipped_tokens: Their tokens.
    """

    def __init__(
        self, view: Packed, rows: RowFormat, stream: TokenStream, index: "PackIndex"
    ) -> None:
        self._view, self._rows, self._stream, self._index = view, rows, stream, index
        self.num_tokens = index.num_tokens
        self.fill_rate = index.num_tokens / max(1, self.num_items * view.length)
        self.skipped_samples = index.skipped_samples
        self.skipped_tokens = index.skipped_tokens

    @property
    def num_items(self) -> int:
        """Packs of the data set."""
        return len(self._index.stops) - 1

    @property
    def stops(self) -> np.ndarray:
        """int64 [U], one past the last pack of each group of shards, where it has any."""
        stops = np.unique(self._index.group_stops)
        rising: np.ndarray = stops[stops > 0]
        return rising

    def read(self, items: np.ndarray, epoch: int) -> Mapping[str, Column]:  # noqa: ARG002
        """Return some packs, in the given order."""
        return self._rows.read_pieces(self._stream, items, self._index.stops, self._index.pieces)

    def shards(self, items: np.ndarray) -> np.ndarray:
        """Return the shards that hold a piece of these packs, rising."""
        bounds = zip(self._index.stops[items], self._index.stops[items + 1], strict=True)
        parts = [self._index.pieces[first:stop] for first, stop in bounds]
        pieces = np.concatenate([self._index.pieces[:0], *parts])
        return self._stream.shards(pieces[:, 0], pieces.sum(axis=1))

    def identity(self) -> Mapping[str, Any]:
        """Return what decides which tokens pack i holds, and the hash of all packs."""
        view = self._view
        return {
            "view": "packed",
            "field": view.field,
            "length": view.length,
            "method": view.method,
            "long": view.long,
            "group_samples": view.group_samples,
            "packs_sha256": self._index.sha256,
        }
