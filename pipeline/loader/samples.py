"""Whole samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from operators.base import Column, FieldSpec
from pipeline.errors import ContractError
from pipeline.loader.files import ShardFiles
from pipeline.loader.shards import ShardReader
from pipeline.manifest import DataSet, Manifest


@dataclass(frozen=True, slots=True)
class Samples:
    """Each item is a sample: every field of it as it is stored.

    Attributes:
        fields: What to read, in this order; ``key`` may be among them. None is every field.
    """

    fields: Sequence[str] | None = None

    def open(self, data_set: DataSet, files: ShardFiles) -> "OpenSamples":
        """Return the samples of a data set.

        Raises:
            ContractError: there is no such field.
        """
        fields = _chosen(data_set.manifest, self.fields)
        return OpenSamples(ShardReader(data_set, fields, files))


class OpenSamples:
    """The samples of a data set, by their row."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader

    @property
    def num_items(self) -> int:
        """Samples of the data set."""
        return self._reader.num_samples

    @property
    def stops(self) -> np.ndarray:
        """int64 [S], one past the last row of each shard."""
        return self._reader.stops

    def read(self, items: np.ndarray, epoch: int) -> Mapping[str, Column]:  # noqa: ARG002
        """Return some samples, in the given order."""
        return self._reader.read(items)

    def shards(self, items: np.ndarray) -> np.ndarray:
        """Return the shards that hold these samples, rising."""
        return np.unique(np.searchsorted(self.stops, items, side="right"))

    def identity(self) -> Mapping[str, Any]:
        """Return that items are samples; which fields are read may change on resume."""
        return {"view": "samples"}


def _chosen(manifest: Manifest, fields: Sequence[str] | None) -> dict[str, FieldSpec]:
    there = {**manifest.fields, "key": FieldSpec("string")}
    names = list(manifest.fields) if fields is None else list(fields)
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        found = f"there is no field {unknown[0]!r}" if unknown else "no field is asked for"
        raise ContractError(f"fields: {found}", hint=f"the data set has {', '.join(there)}")
    return {name: there[name] for name in names}
