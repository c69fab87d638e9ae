"""Rows of tokens of one length: what windows and packs look like in a batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from operators.base import Column, FieldSpec
from pipeline.errors import ContractError
from pipeline.loader.token_stream import TokenStream
from pipeline.loader.view import read_ahead

_CHUNK_TOKENS = 1 << 17
"""Tokens converted at a time for several batches: a megabyte of int64 stays in the cache."""

BOUNDARIES = ("position_ids", "document_ids", "cu_seqlens", "max_seqlen")


@dataclass(frozen=True, slots=True)
class RowFormat:
    """Makes batches of rows of tokens.

    Attributes:
        field: Ids.
        width: W, tokens of a row.
        dtype: Of the ids.
        pad: Id where there is no token.
        loss_mask: Field with the loss mask, if there is one.
        others: More fields to read.
        is_full: There is a token everywhere: without a stored mask none is made.
    """

    field: str
    width: int
    dtype: str
    pad: int
    loss_mask: str | None
    others: Sequence[str]
    is_full: bool = False

    @property
    def other_fields(self) -> list[str]:
        """What to read beside the ids."""
        return [*self.others, *([] if self.loss_mask is None else [self.loss_mask])]

    def check(self, spec: FieldSpec) -> None:
        """See to it that the ids fit, and that no two columns of a batch have one name.

        Raises:
            ContractError: they do not.
        """
        integers = [np.dtype(code).name for code in np.typecodes["AllInteger"]]
        if self.dtype not in integers:
            raise ContractError(f"dtype={self.dtype!r}, expected an integer type, such as 'int64'")
        limits, largest = np.iinfo(self.dtype), (spec.vocab_size or 0) - 1
        for what, value in ((f"the largest id of {self.field!r}", largest), ("pad", self.pad)):
            if not limits.min <= value <= limits.max:
                raise ContractError(
                    f"{what} is {value}, {self.dtype} holds {limits.min} to {limits.max}",
                    hint="choose a wider dtype",
                )
        names = [self.field, "loss_mask", *BOUNDARIES, *self.others]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ContractError(
                f"two columns of a batch would be called {', '.join(twice)}",
                hint="a stored loss mask is read with loss_mask=, and not among others",
            )

    def read(self, stream: TokenStream, starts: np.ndarray) -> dict[str, Column]:
        """Return rows of W neighbouring tokens, from the given ones on."""
        columns, out = self._empty(stream, len(starts))
        first: list[int] = starts.tolist()
        stream.copy(first, out)
        if max(first, default=0) + self.width > stream.num_tokens:
            self._pad(columns, self._counts(stream, starts))
        return columns

    def read_batches(
        self, stream: TokenStream, starts: np.ndarray, batch_size: int
    ) -> Iterator[dict[str, Column]]:
        """Yield what ``read`` returns, for many batches.

        Several are copied at a time and share their memory, in places of their own: a batch costs
        little beside its copy.
        """
        is_next = np.diff(starts) == self.width
        # The last row of the stream may be short.
        is_whole = starts + self.width <= stream.num_tokens
        alone = len(stream.dtypes) == 1
        for part in read_ahead(len(starts), batch_size, _CHUNK_TOKENS // self.width):
            first, stop = part.start, part.stop
            ids = None
            if alone and is_whole[first:stop].all():
                ids = self._ids(stream, starts[first:stop], is_next[first : stop - 1].all())
            for row in range(0, stop - first, batch_size):
                if ids is None:
                    yield self.read(stream, starts[first + row : first + row + batch_size])
                elif self.is_full:
                    yield {self.field: ids[row : row + batch_size]}
                else:
                    some = ids[row : row + batch_size]
                    yield {self.field: some, "loss_mask": np.ones(some.shape, np.bool_)}

    def _ids(self, stream: TokenStream, starts: np.ndarray, is_run: bool) -> np.ndarray:
        """Return the ids of many rows, [N, W]."""
        if is_run:
            run = stream.run(int(starts[0]), len(starts) * self.width)
            if run is not None:
                return run.astype(self.dtype).reshape(-1, self.width)
        ids = np.empty((len(starts), self.width), self.dtype)
        stream.copy_rows(starts, ids)
        return ids

    def read_with_boundaries(self, stream: TokenStream, starts: np.ndarray) -> dict[str, Column]:
        """Return rows of W neighbouring tokens and where samples begin in them."""
        from pipeline.loader import kernels

        counts = self._counts(stream, starts)
        position_ids, document_ids = self._empty_ids(len(starts))
        bounds = np.empty(position_ids.size + 1, np.int32)
        progress = np.zeros(kernels.PROGRESS, np.int64)
        while True:
            table = stream.table
            token = kernels.lay_out_samples(
                starts,
                counts,
                stream.sample_length,
                table.starts,
                table.stops,
                table.offsets,
                table.num_samples,
                progress,
                position_ids,
                document_ids,
                bounds,
            )
            if token < 0:
                break
            stream.open_at(token)
        spans = np.empty((len(starts), 3), np.int64)
        spans[:, 0], spans[:, 1] = starts, counts
        spans[:, 2] = np.arange(0, len(starts) * self.width, self.width)
        num_bounds, max_seqlen = progress[-2:].tolist()
        bounds = bounds[: num_bounds + 1].copy()
        columns = self._filled(stream, spans, counts)
        columns |= zip(BOUNDARIES, (position_ids, document_ids, bounds, max_seqlen), strict=True)
        return columns

    def read_pieces(
        self, stream: TokenStream, packs: np.ndarray, stops: np.ndarray, pieces: np.ndarray
    ) -> dict[str, Column]:
        """Return packs, each piece of which is a run of tokens of one sample.

        Args:
            stream: The tokens.
            packs: int64 [B], which packs.
            stops: int64 [P + 1], where the pieces of each pack begin.
            pieces: int64 [M, 2], first token and number of tokens.
        """
        from pipeline.loader import kernels

        position_ids, document_ids = self._empty_ids(len(packs))
        spans, counts, bounds, max_seqlen = kernels.lay_out_pieces(
            packs, stops, pieces, position_ids, document_ids
        )
        columns = self._filled(stream, spans, counts)
        columns |= zip(BOUNDARIES, (position_ids, document_ids, bounds, max_seqlen), strict=True)
        return columns

    def _filled(
        self, stream: TokenStream, spans: np.ndarray, counts: np.ndarray
    ) -> dict[str, Column]:
        """Return ids, mask and other fields.

        Args:
            stream: The tokens.
            spans: int64 [N, 3]: first token, number of tokens, place in the flattened batch. Not
                to be used afterwards.
            counts: int64 [B], tokens of each row.
        """
        from pipeline.loader import kernels

        columns, out = self._empty(stream, len(counts))
        for field, rows in enumerate(out):
            left, done = spans.copy() if field + 1 < len(out) else spans, 0
            while True:
                table = stream.table
                like = np.empty(0, stream.dtypes[field])
                done = kernels.copy_spans(
                    left, done, table.starts, table.stops, table.values[field], like, rows.ravel()
                )
                if done == len(left):
                    break
                stream.open_at(int(left[done, 0]))
        self._pad(columns, counts)
        return columns

    def _empty(
        self, stream: TokenStream, num_rows: int
    ) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Return the columns of a batch, and those to copy into in the order of the stream."""
        shape = (num_rows, self.width)
        columns = {self.field: np.empty(shape, self.dtype)}
        if self.loss_mask is not None or not self.is_full:
            columns["loss_mask"] = np.ones(shape, np.bool_)
        columns |= {
            name: np.empty(shape, stream.dtypes[i + 1]) for i, name in enumerate(self.others)
        }
        out = [columns[self.field], *(columns[name] for name in self.others)]
        if self.loss_mask is not None:
            out.append(columns["loss_mask"])
        return columns, out

    def _pad(self, columns: Mapping[str, np.ndarray], counts: np.ndarray) -> None:
        """Fill the places behind the last token of each row."""
        for row, count in enumerate(counts.tolist()):
            if count < self.width:
                for name, rows in columns.items():
                    rows[row, count:] = self.pad if name == self.field else 0

    def _counts(self, stream: TokenStream, starts: np.ndarray) -> np.ndarray:
        counts: np.ndarray = np.minimum(stream.num_tokens - starts, self.width)
        return counts

    def _empty_ids(self, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (num_rows, self.width)
        return np.empty(shape, np.int64), np.empty(shape, np.int32)
