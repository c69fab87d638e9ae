"""The tokens of all samples, one after another, as one stream that is read by position."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from operators.base import Column, FieldSpec
from pipeline.errors import ContractError, IntegrityError, SetupError
from pipeline.loader.files import CHANGED, ShardFiles
from pipeline.loader.shard_maps import (
    DECODED_BATCHES,
    OpenShard,
    ShardMaps,
)
from pipeline.manifest import DataSet


@dataclass(frozen=True, slots=True)
class Stretch:
    """A record batch's part of the stream.

    Attributes:
        start: Its first token.
        stop: One past its last.
        values: Per field, its values.
        offsets: int32 [N + 1], where its samples begin in ``values``, not counted from 0; None
            when all samples have the same length.
    """

    start: int
    stop: int
    values: tuple[np.ndarray, ...]
    offsets: np.ndarray | None


@dataclass(frozen=True, slots=True)
class StretchTable:
    """The stretches that are open, rising, as arrays of numbers for compiled functions.

    Attributes:
        starts: int64 [K], first tokens.
        stops: int64 [K], one past the last ones.
        values: int64 [F, K], addresses of the values of each field.
        offsets: int64 [K], addresses of the offsets, 0 for none.
        num_samples: int64 [K].
    """

    starts: np.ndarray
    stops: np.ndarray
    values: np.ndarray
    offsets: np.ndarray
    num_samples: np.ndarray


class TokenStream:
    """Finds tokens in memory-mapped shards; a shard is opened when it is first read from.

    Of compressed shards the record batches used last stay decoded. Picklable; maps are opened
    again on the other side.

    Args:
        data_set: The data set.
        field: Ids, one per position: of shape [None] or [T].
        others: Fields of the same shape with a value for every id, such as a loss mask.
        files: Where the shards are on this machine.

    Attributes:
        stops: int64 [S], one past the last token of each shard.
        sample_length: T when all samples have the same length, else 0.
        dtypes: What is stored, of ``field`` and ``others``.

    Raises:
        ContractError: there is no such field, or it is not what is needed.
    """

    def __init__(
        self, data_set: DataSet, field: str, others: Sequence[str], files: ShardFiles
    ) -> None:
        specs = _checked(data_set.manifest.fields, field, others)
        self._names = tuple(specs)
        self.spec = specs[field]
        self.dtypes = [np.dtype(spec.dtype) for spec in specs.values()]
        self.sample_length = int(self.spec.shape[0] or 0)
        self.maps = ShardMaps(data_set, specs, files)
        counts = data_set.shards[f"tokens.{field}"].to_numpy()
        self.stops: np.ndarray = np.cumsum(counts, dtype=np.int64)
        self._open: dict[int, _OpenShard] = {}
        self._firsts: list[int] = []  # of the stretches, which are sorted by it
        self._stretches: list[Stretch] = []
        self._decoded: list[int] = []  # first tokens of decoded stretches, the oldest first
        self._table: StretchTable | None = None

    @property
    def num_tokens(self) -> int:
        """Ids of all samples."""
        return int(self.stops[-1]) if len(self.stops) else 0

    @property
    def table(self) -> StretchTable:
        """What is open now."""
        if self._table is None:
            self._table = _table(self._stretches, len(self._names))
        return self._table

    def shards(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Return int64 [K]: the shards that hold any of the tokens in [start, stop), rising."""
        first = np.searchsorted(self.stops, starts, side="right")
        last = np.searchsorted(self.stops, stops - 1, side="right")
        ranges = [np.arange(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        found = np.unique(np.concatenate([np.empty(0, np.int64), *ranges]))
        with_tokens: np.ndarray = found[np.diff(self.stops, prepend=0)[found] > 0]
        return with_tokens

    def lengths(self, shard: int) -> np.ndarray:
        """Return int64 [N]: ids of each sample of a shard. Several threads may call it at once.

        Raises:
            IntegrityError: the shard is not what the index says.
        """
        opened = self.maps.open(shard)
        batches = range(len(opened.stops))
        if self.sample_length:
            found = np.full(opened.num_samples, self.sample_length)
        else:
            offsets = [self._offsets(shard, opened.columns(batch)) for batch in batches]
            found = np.concatenate([np.diff(bounds) for bounds in offsets]).astype(np.int64)
        with self.maps.reading(shard):
            self._check_count(shard, int(found.sum()))
        return found

    def copy(self, starts: Sequence[int], out: Sequence[np.ndarray]) -> None:
        """Copy runs of equally many tokens, and of the values of the other fields.

        Args:
            starts: B first tokens.
            out: Per field, [B, W]. What lies behind the end of the stream is left as it is.
        """
        num_rows, width = out[0].shape
        first = starts[0] if starts else 0
        if list(starts) == list(range(first, first + num_rows * width, width)):
            return self._copy_run(first, [rows.reshape(-1) for rows in out])
        firsts, stretches = self._firsts, self._stretches
        for row, start in enumerate(starts):
            number = bisect_right(firsts, start) - 1
            if number >= 0 and start + width <= stretches[number].stop:
                local = start - firsts[number]
                for rows, values in zip(out, stretches[number].values, strict=True):
                    rows[row] = values[local : local + width]
            else:
                self._copy_run(start, [rows[row] for rows in out])
        return None

    def run(self, start: int, count: int) -> np.ndarray | None:
        """Return neighbouring ids as they are stored, if they lie in one record batch."""
        stretch = self.open_at(start)
        if start + count > stretch.stop:
            return None
        return stretch.values[0][start - stretch.start : start + count - stretch.start]

    def copy_rows(self, starts: np.ndarray, out: np.ndarray) -> None:
        """Copy many runs of equally many ids.

        Args:
            starts: int64 [N], first tokens; all runs lie before the end of the stream.
            out: [N, W].
        """
        try:
            from pipeline.loader import kernels
        except SetupError:  # numba is not there: it is a matter of speed alone
            self.copy(starts.tolist(), [out])
            return
        done, like = 0, np.empty(0, self.dtypes[0])
        place = np.zeros(1, np.int64)  # tokens of a row that lie in stretches before
        while True:
            table = self.table
            done = kernels.copy_rows(
                starts, done, place, table.starts, table.stops, table.values[0], like, out
            )
            if done == len(starts):
                return
            self.open_at(int(starts[done] + place[0]))

    def open_at(self, token: int) -> Stretch:
        """Open what holds a token, and return it.

        Raises:
            IntegrityError: the shard is not what the index says.
        """
        number = bisect_right(self._firsts, token) - 1
        if number >= 0 and token < self._stretches[number].stop:
            return self._stretches[number]
        shard_number = int(np.searchsorted(self.stops, token, side="right"))
        shard = self._open.get(shard_number)
        if shard is None:
            if len(self._open) >= self.maps.max_open:
                self._forget()
            shard = self._open[shard_number] = self._open_shard(shard_number)
        if not shard.shard.mapped:
            return self._decode_at(shard, token)
        return self._stretches[bisect_right(self._firsts, token) - 1]

    def _copy_run(self, start: int, out: Sequence[np.ndarray]) -> None:
        """Copy one run from as many record batches as it takes."""
        done, width = 0, min(len(out[0]), self.num_tokens - start)
        while done < width:
            stretch = self.open_at(start + done)
            local = start + done - stretch.start
            count = min(width - done, stretch.stop - start - done)
            for row, values in zip(out, stretch.values, strict=True):
                row[done : done + count] = values[local : local + count]
            done += count

    def _open_shard(self, number: int) -> "_OpenShard":
        shard = self.maps.open(number)
        opened = _OpenShard(number, shard, [int(self.stops[number - 1]) if number else 0])
        if shard.mapped:
            stretches = [self._next_stretch(opened) for _ in shard.stops]
            self._insert([stretch for stretch in stretches if stretch.stop > stretch.start])
        return opened

    def _decode_at(self, shard: "_OpenShard", token: int) -> Stretch:
        """Decode the record batch that holds a token.

        Where it begins is known when those before it were decoded once.
        """
        stretch = None
        while token >= shard.bounds[-1]:
            stretch = self._next_stretch(shard)
        if stretch is None:
            stretch = self._stretch(shard, bisect_right(shard.bounds, token) - 1)
        if len(self._decoded) == DECODED_BATCHES:
            self._remove(self._decoded.pop(0))
        self._decoded.append(stretch.start)
        self._insert([stretch])
        return stretch

    def _next_stretch(self, shard: "_OpenShard") -> Stretch:
        """Return the first stretch of a shard whose end is not known yet."""
        stretch = self._stretch(shard, len(shard.bounds) - 1)
        shard.bounds.append(stretch.stop)
        if len(shard.bounds) > len(shard.shard.stops):
            with self.maps.reading(shard.number):
                self._check_count(shard.number, stretch.stop - shard.bounds[0])
        return stretch

    def _stretch(self, shard: "_OpenShard", batch: int) -> Stretch:
        columns = shard.shard.columns(batch)
        start = shard.bounds[batch]
        if self.sample_length:
            flat = tuple(columns[name].reshape(-1) for name in self._names)
            return Stretch(start, start + len(flat[0]), flat, None)
        offsets = self._offsets(shard.number, columns)
        inside = slice(int(offsets[0]), int(offsets[-1]))
        values = tuple(columns[name].values[inside] for name in self._names)
        return Stretch(start, start + len(values[0]), values, offsets)

    def _offsets(self, shard: int, columns: Mapping[str, Column]) -> np.ndarray:
        """Return the offsets of a record batch, which those of all fields must be."""
        with self.maps.reading(shard):
            offsets: np.ndarray = columns[self._names[0]].offsets
            if (offsets[1:] < offsets[:-1]).any():
                raise IntegrityError(
                    f"{self.maps.uri(shard)}: the offsets of {self._names[0]!r} do not rise",
                    hint=CHANGED,
                )
            for name in self._names[1:]:
                if not np.array_equal(columns[name].offsets, offsets):
                    raise IntegrityError(
                        f"{self.maps.uri(shard)}: {name!r} has not as many values as "
                        f"{self._names[0]!r} has ids, in some sample",
                        hint="only fields with a value for every id can be read beside it",
                    )
        return offsets

    def _check_count(self, shard: int, found: int) -> None:
        expected = int(self.stops[shard] - (self.stops[shard - 1] if shard else 0))
        if found != expected:
            raise IntegrityError(
                f"{self.maps.uri(shard)}: {found:,} ids in {self._names[0]!r}, the index says "
                f"{expected:,}",
                hint=CHANGED,
            )

    def _insert(self, stretches: Sequence[Stretch]) -> None:
        """Add neighbouring stretches."""
        if stretches:
            place = bisect_right(self._firsts, stretches[0].start)
            self._firsts[place:place] = [stretch.start for stretch in stretches]
            self._stretches[place:place] = stretches
            self._table = None

    def _remove(self, start: int) -> None:
        place = bisect_left(self._firsts, start)
        del self._firsts[place], self._stretches[place]
        self._table = None

    def _forget(self) -> None:
        for opened in (self._open, self._firsts, self._stretches, self._decoded):
            opened.clear()  # in place, so that nobody keeps what was mapped
        self._table = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what refers to maps."""
        empty: dict[str, Any] = {"_open": {}, "_firsts": [], "_stretches": [], "_decoded": []}
        return {**self.__dict__, **empty, "_table": None}


@dataclass(slots=True)
class _OpenShard:
    """A shard, and where in the stream its record batches begin, as far as that is known.

    Record batch i is [bounds[i], bounds[i + 1]).
    """

    number: int
    shard: OpenShard
    bounds: list[int]


def _checked(
    fields: Mapping[str, FieldSpec], field: str, others: Sequence[str]
) -> dict[str, FieldSpec]:
    """Return the specs of the fields of a stream, the ids first."""
    for name in (field, *others):
        if name not in fields:
            raise ContractError(
                f"there is no field {name!r}", hint=f"the data set has {', '.join(fields)}"
            )
    spec = fields[field]
    if spec.vocab_size is None or len(spec.shape) != 1:
        flat = [n for n, s in fields.items() if s.vocab_size is not None and len(s.shape) == 1]
        raise ContractError(
            f"{field!r} is {spec}, expected one id per position",
            hint=f"fields that are: {', '.join(flat) or 'none'}",
        )
    for name in others:
        other = fields[name]
        if name == field or not other.is_numeric or other.shape != spec.shape:
            raise ContractError(
                f"{name!r} is {other}, expected another field with one number for every id of "
                f"{field!r}, which is {spec}"
            )
    return {name: fields[name] for name in (field, *others)}


def _table(stretches: Sequence[Stretch], num_fields: int) -> StretchTable:
    values = [[_address(stretch.values[f]) for stretch in stretches] for f in range(num_fields)]
    offsets = [0 if s.offsets is None else _address(s.offsets) for s in stretches]
    samples = [0 if s.offsets is None else len(s.offsets) - 1 for s in stretches]
    return StretchTable(
        np.array([stretch.start for stretch in stretches], np.int64),
        np.array([stretch.stop for stretch in stretches], np.int64),
        np.array(values, np.int64).reshape(num_fields, -1),
        np.array(offsets, np.int64),
        np.array(samples, np.int64),
    )


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
