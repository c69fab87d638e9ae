"""Windows: the tokens of all samples as one stream, cut every so many tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from operators.base import Column
from pipeline.errors import ContractError
from pipeline.loader.files import ShardFiles
from pipeline.loader.token_rows import RowFormat
from pipeline.loader.token_stream import TokenStream
from pipeline.manifest import DataSet


@dataclass(frozen=True, slots=True)
class Windows:
    """Each item is a window of ``length`` tokens; where samples, batches and shards end is ignored.

    Samples follow one another in stored order, and window i holds tokens ``i * length`` to
    ``(i + 1) * length - 1`` of them all. A batch of B windows of W = length + extra tokens:

    ===================  ====================================================================
    ``<field>``          ``dtype`` [B, W]
    ``loss_mask``        bool [B, W]: there is a token here, and the stored mask does not say no
    each of ``others``   [B, W] as stored, 0 where there is no token
    ``position_ids``     int64 [B, W] from 0, restarting with each sample and each window
    ``document_ids``     int32 [B, W]: which sample of its window, from 0; -1: no token
    ``cu_seqlens``       int32 [K + 1]: where the K samples of all B windows begin in the
                         flattened batch, and at the end B * W
    ``max_seqlen``       int, tokens of the longest
    ===================  ====================================================================

    The last four come with ``boundaries=True``, which needs the extra ``packing`` (numba). In the
    last window the places behind the end of the data are filled with ``pad``; they count as one
    more sample for ``position_ids`` and ``cu_seqlens``, so that the latter cover the batch.

    Attributes:
        field: Ids, one per position, of varying or of fixed length.
        length: L.
        extra: Tokens that a window holds beyond its own, which are the first of the next: with 1,
            ``[:, :-1]`` are inputs, ``[:, 1:]`` their targets, and none is lost between windows.
        dtype: Of the ids.
        pad: Id that fills the last window.
        last: ``pad`` keeps the last window when it is short, ``drop`` leaves it out. Then there is
            a token everywhere, and without a stored mask no ``loss_mask`` in a batch.
        boundaries: Say where samples begin.
        loss_mask: A field that says of every id whether it is to be learnt (0: no).
        others: Fields with a number for every id, cut in the same way.
    """

    field: str
    length: int
    extra: int = 0
    dtype: str = "int64"
    pad: int = 0
    last: Literal["pad", "drop"] = "pad"
    boundaries: bool = False
    loss_mask: str | None = None
    others: Sequence[str] = ()

    def open(self, data_set: DataSet, files: ShardFiles) -> "OpenWindows":
        """Return the windows of a data set.

        Raises:
            ContractError: an argument is out of bounds, or a field is not what it must be.
            SetupError: numba is needed and missing.
        """
        if self.length < 1 or not 0 <= self.extra <= self.length:
            raise ContractError(
                f"windows: length={self.length}, extra={self.extra}, expected length from 1 and "
                f"extra from 0 to length"
            )
        if self.last not in ("pad", "drop"):
            raise ContractError(f"windows: last={self.last!r}, expected 'pad' or 'drop'")
        rows = RowFormat(
            self.field,
            self.length + self.extra,
            self.dtype,
            self.pad,
            self.loss_mask,
            self.others,
            is_full=self.last == "drop",
        )
        stream = TokenStream(data_set, self.field, rows.other_fields, files)
        return OpenWindows(self, rows, stream)


class OpenWindows:
    """The windows of a data set, by their number."""

    def __init__(self, view: Windows, rows: RowFormat, stream: TokenStream) -> None:
        rows.check(stream.spec)
        self._view, self._rows, self._stream = view, rows, stream
        if view.boundaries:
            import pipeline.loader.kernels  # noqa: F401  # that numba is missing shows here
        own = stream.num_tokens - view.extra
        if view.last == "drop":
            self._num_items = max(0, own // view.length)
        else:  # a token that only the extra ones of a window hold needs no window of its own
            self._num_items = max(-(-own // view.length), min(1, stream.num_tokens))

    @property
    def num_items(self) -> int:
        """Windows of the data set."""
        return self._num_items

    @property
    def stops(self) -> np.ndarray:
        """int64 [U], one past the last window that begins in each shard, where one does."""
        stops = -(-self._stream.stops // self._view.length)
        return np.unique(np.minimum(stops, self._num_items)[stops > 0])

    def read(self, items: np.ndarray, epoch: int) -> Mapping[str, Column]:  # noqa: ARG002
        """Return some windows, in the given order."""
        starts = items * self._view.length
        if self._view.boundaries:
            return self._rows.read_with_boundaries(self._stream, starts)
        return self._rows.read(self._stream, starts)

    def read_batches(
        self, items: np.ndarray, batch_size: int, epoch: int
    ) -> Iterator[Mapping[str, Column]]:
        """Yield many batches of windows."""
        if not self._view.boundaries:
            starts = items * self._view.length
            yield from self._rows.read_batches(self._stream, starts, batch_size)
            return
        for first in range(0, len(items), batch_size):
            yield self.read(items[first : first + batch_size], epoch)

    def shards(self, items: np.ndarray) -> np.ndarray:
        """Return the shards that hold a token of these windows, rising."""
        starts = items * self._view.length
        width = self._view.length + self._view.extra
        return self._stream.shards(starts, np.minimum(starts + width, self._stream.num_tokens))

    def identity(self) -> Mapping[str, Any]:
        """Return what decides which tokens window i holds; what is read beside may change."""
        view = self._view
        return {
            "view": "windows",
            "field": view.field,
            "length": view.length,
            "extra": view.extra,
            "last": view.last,
        }
