"""Whole samples, or the part of them that is asked for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from operators.base import Column, FieldSpec, Ragged
from pipeline.errors import ContractError
from pipeline.loader.files import ShardFiles
from pipeline.loader.prefix import (
    Prefix,
    SampledPrefix,
    check_prefix,
    layout_of,
    positions_of_scales,
    stream_numbers,
)
from pipeline.loader.shards import Cut, ShardReader
from pipeline.loader.view import read_ahead
from pipeline.manifest import DataSet, Manifest

_CHUNK_BYTES = 1 << 20
"""Stored bytes that are read together for several batches."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Each item is a sample: its fields as they are stored, or less of them.

    What is left out by ``prefix`` and ``scales`` is not read. None of this is part of a state:
    a run may resume with other fields, prefixes and streams, and samples come as they would have.

    Attributes:
        fields: What to read, in this order; ``key`` may be among them. None is every field.
        prefix: Nested field -> how many of its positions are kept, from the first. A number cuts
            all samples there (ragged ones where they are longer). A ``SampledPrefix`` makes the
            field ragged, a ``RaggedBatch`` with a length for each sample.
        scales: Field of several scales -> how many of them are kept, from the coarsest.
        streams: Field of several streams -> the names of those that are kept, in this order;
            the last dimension holds these, also when it is one.

    Example:
        >>> view = Samples(["image"], prefix={"image": SampledPrefix((1, 2, 4, 8, 16, 32))})
    """

    fields: Sequence[str] | None = None
    prefix: Mapping[str, Prefix] = field(default_factory=dict)
    scales: Mapping[str, int] = field(default_factory=dict)
    streams: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def open(self, data_set: DataSet, files: ShardFiles) -> "OpenSamples":
        """Return the samples of a data set.

        Raises:
            ContractError: there is no such field, or it has no such prefix, scales or streams.
        """
        manifest = data_set.manifest
        fields = _chosen(manifest, self.fields)
        _check_read([*self.prefix, *self.scales, *self.streams], fields)
        both = [name for name in self.prefix if name in self.scales]
        if both:
            raise ContractError(f"field {both[0]!r} has both a prefix and scales", hint="give one")
        layouts = {name: layout_of(manifest, name) for name in manifest.fields}
        axes = {name: layout.axis for name, layout in layouts.items() if layout}
        for name, prefix in self.prefix.items():
            check_prefix(name, prefix, layouts[name])
        kept = {**self.prefix}
        for name, num_scales in self.scales.items():
            kept[name] = positions_of_scales(name, num_scales, layouts[name])
        streams = {
            name: (axes.get(name, 0), stream_numbers(name, names, layouts[name]))
            for name, names in self.streams.items()
        }
        num_bytes = int(np.sum(data_set.shards["num_bytes"].to_numpy()))
        reader = ShardReader(data_set, fields, files)
        mean = num_bytes / max(1, reader.num_samples)
        return OpenSamples(reader, kept, axes, streams, max(1, int(_CHUNK_BYTES / max(1, mean))))


class OpenSamples:
    """The samples of a data set, by their row.

    Args:
        reader: Of the fields that are read.
        kept: Field -> positions that are kept, where not all are.
        axes: Field -> the axis of a sample along which positions stand.
        streams: Field -> that axis, and the places of the streams that are kept.
        ahead: Samples worth reading together.
    """

    def __init__(
        self,
        reader: ShardReader,
        kept: Mapping[str, Prefix],
        axes: Mapping[str, int],
        streams: Mapping[str, tuple[int, Sequence[int]]],
        ahead: int,
    ) -> None:
        self._reader, self._ahead = reader, ahead
        self._sampled = {name: k for name, k in kept.items() if isinstance(k, SampledPrefix)}
        self._fixed = {
            name: Cut(int(k), axes[name])
            for name, k in kept.items()
            if not isinstance(k, SampledPrefix)
        }
        self._streams = streams

    @property
    def num_items(self) -> int:
        """Samples of the data set."""
        return self._reader.num_samples

    @property
    def stops(self) -> np.ndarray:
        """int64 [S], one past the last row of each shard."""
        return self._reader.stops

    def read(self, items: np.ndarray, epoch: int) -> Mapping[str, Column]:
        """Return some samples, in the given order."""
        cuts = self._fixed
        if self._sampled:
            drawn = {n: Cut(p.draw(n, epoch, items)) for n, p in self._sampled.items()}
            cuts = {**cuts, **drawn}
        columns = self._reader.read(items, cuts)
        for name, (axis, numbers) in self._streams.items():
            columns[name] = _take_streams(columns[name], axis, numbers)
        return columns

    def read_batches(
        self, items: np.ndarray, batch_size: int, epoch: int
    ) -> Iterator[Mapping[str, Column]]:
        """Yield many batches of samples; several small ones are read together, and cut."""
        for part in read_ahead(len(items), batch_size, self._ahead):
            some = items[part]
            columns = self.read(some, epoch)
            if len(some) <= batch_size:
                yield columns
                continue
            for row in range(0, len(some), batch_size):
                stop = min(row + batch_size, len(some))
                yield {name: _cut(column, row, stop) for name, column in columns.items()}

    def shards(self, items: np.ndarray) -> np.ndarray:
        """Return the shards that hold these samples, rising."""
        return np.unique(np.searchsorted(self.stops, items, side="right"))

    def identity(self) -> Mapping[str, Any]:
        """Return that items are samples; what is read of them may change on resume."""
        return {"view": "samples"}


def _chosen(manifest: Manifest, fields: Sequence[str] | None) -> dict[str, FieldSpec]:
    there = {**manifest.fields, "key": FieldSpec("string")}
    names = list(manifest.fields) if fields is None else list(fields)
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        found = f"there is no field {unknown[0]!r}" if unknown else "no field is asked for"
        raise ContractError(f"fields: {found}", hint=f"the data set has {', '.join(there)}")
    return {name: there[name] for name in names}


def _cut(column: Column, start: int, stop: int) -> Column:
    """Return some neighbouring rows of a column."""
    if not isinstance(column, Ragged):
        return column[start:stop]
    bounds = column.offsets[start : stop + 1]
    return Ragged(column.values[bounds[0] : bounds[-1]], bounds - bounds[0])


def _check_read(names: Iterable[str], fields: Mapping[str, FieldSpec]) -> None:
    read = [name for name in fields if name != "key"]
    for name in names:
        if name not in read:
            raise ContractError(
                f"prefix, scales, streams: field {name!r} is not read",
                hint=f"fields that are read: {', '.join(read)}",
            )


def _take_streams(column: Column, axis: int, numbers: Sequence[int]) -> Column:
    if isinstance(column, Ragged):
        return Ragged(column.values.take(numbers, axis=1), column.offsets)
    return column.take(numbers, axis=axis + 2)  # behind the batch and the positions
