"""What an export format is, and what it is given.

An export is cut into parts: consecutive shards that together hold about as much as one file of the
format should. A part is written by one process, alone, to files that no other part writes, and is
recorded when they are whole. What spans all files (an index, a card) is made from the records.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from operators.base import FieldSpec
from pipeline.errors import ContractError, IntegrityError, SpecError
from pipeline.export.files import ExportFiles, WrittenFile
from pipeline.manifest import Manifest

KEY = "key"
"""The column beside the fields: the sample's name in its source."""

KEY_SPEC = FieldSpec("string")


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What is kept of a part that is whole.

    Attributes:
        part: Its number.
        num_samples: Rows in it.
        files: What it wrote, in order.
        notes: What the format's ``finish`` must know of it; JSON values.
    """

    part: int
    num_samples: int
    files: Sequence[WrittenFile]
    notes: Mapping[str, Any]


class Part(Protocol):
    """Consecutive rows of a data set, read from front to back.

    Attributes:
        number: From 0.
        count: How many parts the export has.
        first_row: The number of its first row in the data set.
    """

    number: int
    count: int
    first_row: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield its record batches, with the columns of the export in their order."""
        ...


def widened(spec: FieldSpec) -> FieldSpec:
    """Return the spec of a field in an export: no other format has bfloat16."""
    return replace(spec, dtype="float32") if spec.dtype == "bfloat16" else spec


class ExportFormat(ABC):
    """One format. Holds nothing but settings: each process makes its own.

    Args:
        manifest: Of the data set.
        fields: Field -> spec of what is exported; ``key`` may be among them.

    Raises:
        SpecError: the choice of fields does not suit the format.
        ContractError: a field cannot be stored in the format.
    """

    name: ClassVar[str]
    """What ``--to`` calls it."""

    reader: ClassVar[str]
    """What reads it, for the list of formats."""

    part_bytes: ClassVar[int]
    """Shards are put together to parts of at most this size; 0 makes one part of them all."""

    def __init__(self, manifest: Manifest, fields: Mapping[str, FieldSpec]) -> None:
        self.manifest = manifest
        self.fields = {name: widened(spec) for name, spec in fields.items()}

    @classmethod
    def default_fields(cls, manifest: Manifest) -> list[str]:
        """Return what is exported when nobody says: all fields, in the shards' order."""
        return [KEY, *manifest.recipe["shards"]["fields"]]

    @abstractmethod
    def write(self, part: Part, files: ExportFiles) -> Mapping[str, Any]:
        """Write a part, and return the notes of its record."""

    def finish(self, records: Sequence[PartRecord], files: ExportFiles) -> None:  # noqa: B027
        """Write what spans all parts; many formats have nothing of the kind."""


class TokenFormat(ExportFormat):
    """A format that holds one sequence of ids a sample and nothing else of it.

    Attributes:
        field: The field of ids.
        spec: Its spec.
        vocab_size: Of the field.
    """

    def __init__(self, manifest: Manifest, fields: Mapping[str, FieldSpec]) -> None:
        super().__init__(manifest, fields)
        if len(fields) != 1:
            raise SpecError(
                f"{self.name} holds one field of ids, {len(fields)} were chosen: "
                f"{', '.join(fields)}",
                hint="choose one with --field",
            )
        self.field, self.spec = next(iter(fields.items()))
        if self.spec.vocab_size is None or len(self.spec.shape) != 1:
            raise ContractError(
                f"field {self.field!r} is {self.spec}, {self.name} holds one row of ids a sample",
                hint="choose a field of ids of shape [T], or have `sequence` write several streams "
                "as one; parquet, hf-datasets, webdataset and mds hold any field",
            )
        self.vocab_size: int = self.spec.vocab_size

    @classmethod
    def default_fields(cls, manifest: Manifest) -> list[str]:
        """Return the data set's only sequence of ids.

        Raises:
            SpecError: there is none, or there are several.
        """
        found = [
            name
            for name in manifest.recipe["shards"]["fields"]
            if manifest.fields[name].vocab_size is not None
            and len(manifest.fields[name].shape) == 1
        ]
        if len(found) != 1:
            choices = ", ".join(found) or "none"
            raise SpecError(
                f"{cls.name} holds one field of ids, the data set has {len(found)} of shape [T] "
                f"({choices})",
                hint="choose one with --field" if found else "export to parquet or mds instead",
            )
        return found

    def ids(self, batch: pa.RecordBatch, kind: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return all ids of a record batch as ``kind``, and int64 [N] how many each row has.

        Raises:
            IntegrityError: an id is outside of the vocabulary, and might not fit.
        """
        ids, counts = flat(batch.column(self.field), self.spec)
        if len(ids) and int(ids.max()) >= self.vocab_size:
            raise IntegrityError(
                f"field {self.field!r} holds id {int(ids.max()):,}, the manifest says below "
                f"{self.vocab_size:,}",
                hint="`pipeline verify` tells in which shard",
            )
        return np.ascontiguousarray(ids, kind), counts

    def signed_dtype(self) -> np.dtype[Any]:
        """Return the type for formats that have no unsigned one above 16 bits.

        Raises:
            ContractError: the vocabulary does not fit.
        """
        for name in ("uint8", "uint16", "int32", "int64"):
            if self.vocab_size - 1 <= np.iinfo(name).max:
                return np.dtype(name)
        raise ContractError(
            f"field {self.field!r} has ids up to {self.vocab_size - 1:,}, {self.name} holds ids "
            f"up to {np.iinfo(np.int64).max:,}",
            hint="export to parquet or mds, which have uint64",
        )

    def unsigned_dtype(self) -> np.dtype[Any]:
        """Return uint16 or uint32, for formats that have only these.

        Raises:
            ContractError: the vocabulary does not fit.
        """
        for name in ("uint16", "uint32"):
            if self.vocab_size - 1 <= np.iinfo(name).max:
                return np.dtype(name)
        raise ContractError(
            f"field {self.field!r} has ids up to {self.vocab_size - 1:,}, {self.name} holds ids "
            f"up to {np.iinfo(np.uint32).max:,}",
            hint="export to parquet or mds, which have uint64",
        )


def flat(column: pa.Array, spec: FieldSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a numeric column as [M, *rest], and int64 [N] how many each row has.

    A fixed shape counts its first dimension; a scalar is one value.
    """
    rest = tuple(length or 0 for length in spec.shape[1:])
    if spec.is_ragged:
        offsets = column.offsets.to_numpy()
        return _values(column.flatten()).reshape(-1, *rest), np.diff(offsets).astype(np.int64)
    values = _values(column)
    first = int(spec.shape[0] or 0) if spec.shape else 1
    return values.reshape(-1, *rest), np.full(len(column), first, np.int64)


def _values(column: pa.Array) -> np.ndarray:
    while pa.types.is_nested(column.type):
        column = column.flatten()
    values: np.ndarray = column.to_numpy(zero_copy_only=not pa.types.is_boolean(column.type))
    return values
