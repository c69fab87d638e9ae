"""What all sources do with rows: reject the bad ones, build blocks, number them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.base import FieldSpec
from pipeline.protocols import Partition, Rejected, SampleBlock, SourceRange
from pipeline.sources.arrow_types import not_utf8, null_elements, to_column

BLOCK_BYTES = 16 << 20
"""A block ends when it holds this much, however few rows that are: several blocks are in memory at
a time, decoded and not."""


REST_OF_FILE = frozenset({"CorruptTar", "CorruptFile"})
"""Faults of a row that stands for all that would have come after it in its file."""


class Fault(NamedTuple):
    """Why a row is rejected: the error's name and what was found."""

    error: str
    reason: str


class SeenKeys:
    """Finds keys that a file has given before.

    It holds the keys of one file of a partition, so what it finds does not depend on which files
    the plan has joined.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def find_repeats(self, keys: Sequence[str | None]) -> dict[int, Fault]:
        """Return the rows whose key is not new; None is no key."""
        repeats = {}
        for row, key in enumerate(keys):
            if key is None:
                continue
            if key in self._seen:
                repeats[row] = Fault("DuplicateKey", "the file has an earlier sample of this key")
            self._seen.add(key)
        return repeats

    def choose_keys(
        self, given: pa.Array, numbered: pa.Array, name: str
    ) -> tuple[pa.Array, dict[int, Fault]]:
        """Return the keys that the data gives, and the rows whose key is missing or not new.

        Args:
            given: large_string [N], not yet known to be UTF-8; null where there is none.
            numbered: large_string [N], what stands in for a key that is null or no text.
            name: Of the column or JSON key, for the reason.
        """
        faults = {
            row: Fault("InvalidUtf8", f"key {name!r}, {wrong}")
            for row, wrong in not_utf8(given).items()
        }
        usable = given.is_valid().to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(~usable):
            faults[int(row)] = Fault("MissingField", f"key {name!r} is missing or null")
        usable[list(faults)] = False
        given = pc.if_else(pa.array(usable), given, None)
        return pc.coalesce(given, numbered), faults | self.find_repeats(given.to_pylist())


ItemT = TypeVar("ItemT")


def cut_blocks(
    items: Iterable[ItemT], block_rows: int, num_bytes: Callable[[ItemT], int]
) -> Iterator[list[ItemT]]:
    """Yield lists of up to ``block_rows`` items; one of ``BLOCK_BYTES`` or more ends there."""
    block: list[ItemT] = []
    held = 0
    for item in items:
        block.append(item)
        held += num_bytes(item)
        if len(block) == block_rows or held >= BLOCK_BYTES:
            yield block
            block, held = [], 0
    if block:
        yield block


ReadRange = Callable[[SourceRange, int, int | None], Iterator[SampleBlock]]


def read_ranges(partition: Partition, read_range: ReadRange) -> Iterator[SampleBlock]:
    """Yield the blocks of a partition's ranges, up to its ``max_samples``.

    Args:
        partition: What to read.
        read_range: Called with a range, the partition's row at which it starts, and the most
            samples it may cover (None is all).
    """
    row = 0
    for found in partition.ranges:
        at_most = None if partition.max_samples is None else partition.max_samples - row
        if at_most == 0:
            return
        for block in read_range(found, row, at_most):
            row += block.num_samples
            yield block


def count_ranges(
    partition: Partition, at_most: int, count_range: Callable[[SourceRange, int], int]
) -> int:
    """Add up a partition's samples, up to ``at_most`` and its ``max_samples``.

    Args:
        partition: What to count.
        at_most: Stop there.
        count_range: Called with a range and the most samples worth counting in it.
    """
    if partition.max_samples is not None:
        at_most = min(at_most, partition.max_samples)
    total = 0
    for found in partition.ranges:
        if total >= at_most:
            break
        total += count_range(found, at_most - total)
    return min(total, at_most)


def numbered_keys(file_name: str, numbers: np.ndarray) -> pa.Array:
    """Return the keys ``file_name:number`` as large_string.

    Args:
        file_name: ``SourceFile.name``.
        numbers: int64 [N].
    """
    text = pc.cast(pa.array(numbers), pa.large_string())
    colon = pa.scalar(":", pa.large_string())
    return pc.binary_join_element_wise(pa.scalar(file_name, pa.large_string()), text, colon)


def make_block(
    *,
    first_row: int,
    file_name: str,
    num_bytes: int,
    keys: pa.Array,
    arrays: Mapping[str, pa.Array],
    specs: Mapping[str, FieldSpec],
    faults: Mapping[int, Fault],
) -> SampleBlock:
    """Build a block of all rows but those with a fault, a null, or text that is not UTF-8.

    Args:
        first_row: Position of the first row in the partition.
        file_name: ``SourceFile.name``.
        num_bytes: Bytes read for the block.
        keys: large_string [N], no nulls.
        arrays: Field -> [N] of the type ``type_of_spec`` of its spec; nulls in rows that lack it.
        specs: Field -> what it is.
        faults: Row of the block -> why it is rejected; a row's first fault counts.
    """
    bad = dict(faults)
    for name, array in arrays.items():
        for row in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)).tolist():
            bad.setdefault(row, Fault("MissingField", f"field {name!r} is missing or null"))
        for row in null_elements(array).tolist():
            bad.setdefault(row, Fault("MissingField", f"field {name!r} holds a null"))
        if specs[name].dtype == "string":
            for row, wrong in not_utf8(array).items():
                bad.setdefault(row, Fault("InvalidUtf8", f"field {name!r}, {wrong}"))
    rows = np.arange(len(keys), dtype=np.int64)
    rejected = []
    if bad:
        rejected = [
            Rejected(
                row=first_row + row,
                key=keys[row].as_py(),
                uri=file_name,
                step="read",
                error=bad[row].error,
                reason=bad[row].reason,
                payload=_originals(arrays, specs, row) or None,
            )
            for row in sorted(bad)
        ]
        rows = np.delete(rows, sorted(bad))
    # Rows are taken before the conversion: numpy has no nulls.
    kept = {name: array.take(pa.array(rows)) if bad else array for name, array in arrays.items()}
    columns = {"key": keys.take(pa.array(rows)) if bad else keys}
    columns |= {name: to_column(array, specs[name]) for name, array in kept.items()}
    return SampleBlock(
        first_row=first_row,
        rows=rows + first_row,
        columns=columns,
        file_name=file_name,
        num_samples=len(keys),
        num_bytes=num_bytes,
        rejected=rejected,
    )


def binary_array(values: Sequence[bytes | None]) -> pa.Array:
    """Return large_binary [N] with one copy of the bytes; None is null."""
    sizes = np.fromiter((len(value or b"") for value in values), np.int64, len(values))
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    data = pa.py_buffer(b"".join(value or b"" for value in values))
    valid = None
    if None in values:
        mask = np.fromiter((value is not None for value in values), bool, len(values))
        valid = pa.py_buffer(np.packbits(mask, bitorder="little"))
    buffers = [valid, pa.py_buffer(offsets), data]
    return pa.Array.from_buffers(pa.large_binary(), len(values), buffers)


def _originals(
    arrays: Mapping[str, pa.Array], specs: Mapping[str, FieldSpec], row: int
) -> dict[str, bytes]:
    """Return the text and bytes that a row does have; text need not be UTF-8."""
    cells = {name: array.slice(row, 1) for name, array in arrays.items()}
    return {
        name: cell.view(pa.large_binary())[0].as_py()
        for name, cell in cells.items()
        if not specs[name].is_numeric and cell.null_count == 0
    }
