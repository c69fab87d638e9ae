"""Read samples from the rows of Parquet files; only the wanted columns."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from operators.base import FieldSpec
from pipeline.errors import SetupError, TransientError
from pipeline.protocols import Partition, SampleBlock, SourceFile, SourceRange
from pipeline.sources.arrow_types import as_spec, can_hold, parse_dtype, spec_of_type, type_of_spec
from pipeline.sources.blocks import (
    BLOCK_BYTES,
    Fault,
    SeenKeys,
    count_ranges,
    make_block,
    numbered_keys,
    read_ranges,
)
from pipeline.sources.config import BaseSourceConfig, FieldName, by_name
from pipeline.sources.listing import NUM_THREADS, join_ranges, list_files
from pipeline.sources.objects import check_planned, open_planned
from pipeline.storage import Storage, shown


def _known_dtype(dtype: str) -> str:
    parse_dtype(dtype)
    return dtype


class ColumnField(BaseModel):
    """Which column a field is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: Annotated[
        str, Field(min_length=1, description="Name; `image.bytes` is a member of a struct column.")
    ]
    dtype: Annotated[
        Annotated[str, AfterValidator(_known_dtype)] | None,
        Field(
            description="string, binary, a numpy name, or rows of one: `int64[*]`, `float32[16]`. "
            "Default: what the first file's schema says."
        ),
    ] = None


def _column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


ColumnFields = dict[
    FieldName,
    Annotated[ColumnField, BeforeValidator(_column, json_schema_input_type=str | ColumnField)],
]


class ParquetConfig(BaseSourceConfig):
    """What a job may say about Parquet files."""

    type: Literal["parquet"] = "parquet"
    fields: Annotated[
        ColumnFields,
        BeforeValidator(by_name, json_schema_input_type=ColumnFields | list[FieldName]),
        Field(min_length=1, description="Field -> column, or {column, dtype}; or a list of names."),
    ]
    key: Annotated[
        str | None,
        Field(description="Column of text or integers. Default: `<file name>:<row in the file>`."),
    ] = None


class ParquetSource:
    """Reads Parquet files by row groups. Row numbers in generated keys count from 0.

    A file whose wanted columns are larger than ``partition_bytes`` (compressed) is cut between
    row groups. Rejected are rows with a null in a wanted column (``MissingField``), text that is
    not UTF-8 (``InvalidUtf8``), a key given before in the file (``DuplicateKey``), and all rows of
    a row group from the first page that cannot be decoded on (``CorruptParquet``).

    Later files may hold narrower numbers, and bytes for text or text for bytes; anything else is
    refused when the files are listed. Memory: one block, and the compressed pages of one row
    group.
    """

    chunk_size: ClassVar[int] = 1024

    def __init__(self, config: ParquetConfig, storage: Storage, urls: Sequence[str]) -> None:
        self.config = config
        self._storage = storage
        self._urls = urls

    @cached_property
    def fields(self) -> Mapping[str, FieldSpec]:
        """As configured, and from the first file's schema where no dtype is configured.

        Raises:
            SetupError: there is no file, or it lacks a column.
        """
        declared = self._declared()
        if len(declared) == len(self.config.fields):
            return declared
        first = self._files[0]
        with self._open(first) as parquet:
            schema = parquet.schema_arrow
        found = {
            name: _spec(schema, field.column, first) for name, field in self.config.fields.items()
        }
        return found | declared

    def list_partitions(self) -> Iterator[Partition]:
        """Join small files, cut large ones; reads every file's footer.

        Raises:
            SetupError: also when a file lacks a column or has it in another type.
        """
        files = self._files
        specs = self.fields
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            by_file = pool.map(partial(self._ranges, specs=specs), files)
            yield from join_ranges(
                (found for ranges in by_file for found in ranges), self.config.partition_bytes
            )

    def count_samples(self, partition: Partition, at_most: int) -> int:
        """Count by the files' footers."""

        def count(found: SourceRange, _: int) -> int:
            with self._open(found.file) as parquet:
                groups = _groups(parquet, found)
                return sum(parquet.metadata.row_group(group).num_rows for group in groups)

        return count_ranges(partition, at_most, count)

    def read(self, partition: Partition, block_rows: int) -> Iterator[SampleBlock]:
        """Yield the rows in the order of the files."""
        return read_ranges(partition, partial(self._read_range, block_rows=block_rows))

    @cached_property
    def _files(self) -> list[SourceFile]:
        return list_files(self._storage, self._urls)

    def _declared(self) -> dict[str, FieldSpec]:
        return {
            name: parse_dtype(field.dtype)
            for name, field in self.config.fields.items()
            if field.dtype is not None
        }

    def _columns(self) -> list[str]:
        columns = [field.column for field in self.config.fields.values()]
        return columns if self.config.key is None else [*columns, self.config.key]

    @contextmanager
    def _open(self, file: SourceFile) -> Iterator[pq.ParquetFile]:
        local = self._storage.local_path(file.uri)
        if local is not None:
            check_planned(file, self._storage.stat(file.uri))
            with _parquet(str(local), file) as parquet:
                yield parquet
            check_planned(file, self._storage.stat(file.uri))
            return
        with (
            open_planned(self._storage, file, seekable=True) as opened,
            _parquet(opened, file) as parquet,
        ):
            yield parquet

    def _ranges(self, file: SourceFile, specs: Mapping[str, FieldSpec]) -> list[SourceRange]:
        with self._open(file) as parquet:
            self._check_schema(parquet.schema_arrow, file, specs)
            sizes = _group_sizes(parquet.metadata, self._columns())
            rows = [parquet.metadata.row_group(i).num_rows for i in range(len(sizes))]
        total, limit = sum(sizes), self.config.partition_bytes
        if total <= limit:
            return [SourceRange(file, total)]
        # Parts of nearly equal size: a group goes to the part in which its middle lies.
        num_parts = -(-total // limit)
        starts = np.cumsum([0, *sizes])
        parts = [
            int(starts[i] + starts[i + 1]) * num_parts // (2 * total) for i in range(len(sizes))
        ]
        first_rows = np.cumsum([0, *rows])
        ranges = []
        for _, members in groupby(range(len(sizes)), key=parts.__getitem__):
            groups = list(members)
            first, stop = groups[0], groups[-1] + 1
            num_bytes = int(starts[stop] - starts[first])
            ranges.append(SourceRange(file, num_bytes, first, stop, int(first_rows[first])))
        return ranges

    def _check_schema(
        self, schema: pa.Schema, file: SourceFile, specs: Mapping[str, FieldSpec]
    ) -> None:
        for name, field in self.config.fields.items():
            found = _spec(schema, field.column, file)
            if not can_hold(specs[name], found):
                raise SetupError(
                    f"{shown(file.uri)}: column {field.column!r} is {found}, field {name!r} is "
                    f"{specs[name]}",
                    hint="give the field a `dtype` that holds both, or leave the file out",
                )
        if self.config.key is not None:
            found = _spec(schema, self.config.key, file)
            if found.shape or found.dtype not in _KEY_DTYPES:
                raise SetupError(
                    f"{shown(file.uri)}: key column {self.config.key!r} is {found}",
                    hint="choose a column of text or integers, or leave `key` out",
                )

    def _read_range(
        self, found: SourceRange, first_row: int, at_most: int | None, *, block_rows: int
    ) -> Iterator[SampleBlock]:
        seen = SeenKeys()
        row_in_file = found.first_row
        with self._open(found.file) as parquet:
            self._check_schema(parquet.schema_arrow, found.file, self.fields)
            damage: list[_Damage] = []
            pieces = self._pieces(parquet, found, block_rows, damage)
            for table in _cut(pieces, block_rows, at_most):
                numbers = np.arange(row_in_file, row_in_file + table.num_rows, dtype=np.int64)
                keys = numbered_keys(found.file.name, numbers)
                faults = {
                    row: part.fault
                    for part in damage
                    for row in range(*_overlap(part, row_in_file, table.num_rows))
                }
                if self.config.key is not None:
                    given = table.column("key").combine_chunks()
                    keys, bad_keys = seen.choose_keys(given, keys, self.config.key)
                    faults = bad_keys | faults
                yield make_block(
                    first_row=first_row,
                    file_name=found.file.name,
                    num_bytes=table.nbytes,
                    keys=keys,
                    arrays={name: table.column(name).combine_chunks() for name in self.fields},
                    specs=self.fields,
                    faults=faults,
                )
                first_row += table.num_rows
                row_in_file += table.num_rows

    def _pieces(
        self,
        parquet: pq.ParquetFile,
        found: SourceRange,
        block_rows: int,
        damage: list["_Damage"],
    ) -> Iterator[pa.Table]:
        """Yield the range's rows as they are decoded; rows that cannot be are null, in `damage`."""
        columns = sorted(set(self._columns()))
        start = found.first_row
        for group in _groups(parquet, found):
            num_rows = parquet.metadata.row_group(group).num_rows
            row_bytes = max(
                parquet.metadata.row_group(group).total_byte_size // max(num_rows, 1), 1
            )
            at_once = min(block_rows, max(BLOCK_BYTES // row_bytes, 1))
            done, reason = 0, ""
            # After an error once more, row by row: else its place would depend on the batch size.
            for batch_size in (at_once, 1):
                skip = done
                batches = parquet.iter_batches(
                    batch_size, row_groups=[group], columns=columns, use_threads=False
                )
                try:
                    for batch in batches:
                        new = batch.slice(min(skip, batch.num_rows))
                        skip -= batch.num_rows - new.num_rows
                        if new.num_rows:
                            yield self._fields_of(pa.Table.from_batches([new]))
                        done += new.num_rows
                    break
                except (OSError, pa.ArrowException) as error:
                    reason = _one_line(error)
                    if getattr(error, "errno", None):  # the disk, not the bytes
                        raise TransientError(f"{shown(found.file.uri)}: {reason}") from None
            if done < num_rows:
                fault = Fault("CorruptParquet", f"row group {group} cannot be decoded: {reason}")
                damage.append(_Damage(start + done, start + num_rows, fault))
                yield self._no_fields(num_rows - done)
            start += num_rows

    def _fields_of(self, table: pa.Table) -> pa.Table:
        specs = self.fields
        arrays = {
            name: as_spec(_values(table, field.column), specs[name])
            for name, field in self.config.fields.items()
        }
        if self.config.key is not None:
            values = _values(table, self.config.key)
            if pa.types.is_integer(values.type):
                values = values.cast(pa.large_string())
            arrays["key"] = as_spec(values, FieldSpec("string"))
        return pa.table(arrays)

    def _no_fields(self, num_rows: int) -> pa.Table:
        specs = dict(self.fields)
        if self.config.key is not None:
            specs["key"] = FieldSpec("string")
        return pa.table({name: pa.nulls(num_rows, type_of_spec(s)) for name, s in specs.items()})


_KEY_DTYPES = ("string", "binary", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)))


class _Damage(NamedTuple):
    start: int
    """First row in the file that is lost."""
    stop: int
    fault: Fault


def _overlap(part: _Damage, first: int, num_rows: int) -> tuple[int, int]:
    return max(part.start - first, 0), min(part.stop - first, num_rows)


def _parquet(source: Any, file: SourceFile) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(source, pre_buffer=not isinstance(source, str))
    except (pa.ArrowException, OSError) as error:
        raise SetupError(
            f"{shown(file.uri)}: {_one_line(error)}",
            hint="it is no Parquet file, or its footer is damaged; leave it out of `urls`",
        ) from None


def _groups(parquet: pq.ParquetFile, found: SourceRange) -> range:
    return range(parquet.metadata.num_row_groups)[found.first : found.stop]


def _spec(schema: pa.Schema, column: str, file: SourceFile) -> FieldSpec:
    found = _type_at(schema, column)
    if found is None:
        raise SetupError(
            f"{shown(file.uri)}: there is no column {column!r} among {', '.join(schema.names)}",
            hint="correct `fields` or `key`, or leave the file out of `urls`",
        )
    spec = spec_of_type(found)
    if spec is None:
        raise SetupError(
            f"{shown(file.uri)}: column {column!r} is {found}, expected text, bytes, numbers or "
            "lists of numbers",
            hint="name one member of a struct as `column.member`",
        )
    return spec


def _type_at(schema: pa.Schema, column: str) -> pa.DataType | None:
    if column in schema.names:
        return schema.field(column).type
    first, *inner = column.split(".")
    found = schema.field(first).type if first in schema.names else None
    for name in inner:
        if found is None or not pa.types.is_struct(found) or found.get_field_index(name) < 0:
            return None
        found = found.field(name).type
    return found


def _values(table: pa.Table, column: str) -> pa.ChunkedArray:
    if column in table.column_names:
        return table.column(column)
    first, *inner = column.split(".")
    return pc.struct_field(table.column(first), inner)


def _group_sizes(metadata: pq.FileMetaData, columns: Sequence[str]) -> list[int]:
    """Return the compressed bytes of the wanted columns, a row group."""
    sizes = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        leaves = map(group.column, range(group.num_columns))
        sizes.append(
            sum(
                leaf.total_compressed_size
                for leaf in leaves
                if any(f"{leaf.path_in_schema}.".startswith(f"{name}.") for name in columns)
            )
        )
    return sizes


def _cut(pieces: Iterator[pa.Table], block_rows: int, at_most: int | None) -> Iterator[pa.Table]:
    """Yield tables of ``block_rows`` rows, up to ``at_most`` in all.

    Shorter are the last one, and those that reach ``BLOCK_BYTES``.
    """
    left = at_most
    waiting: list[pa.Table] = []
    num_waiting = 0
    for piece in pieces:
        waiting.append(piece)
        num_waiting += piece.num_rows
        want = block_rows if left is None else min(block_rows, left)
        while num_waiting >= want:
            table = pa.concat_tables(waiting)
            yield table.slice(0, want)
            num_waiting -= want
            waiting = [table.slice(want)] if num_waiting else []
            if left is not None:
                left -= want
                if left == 0:
                    return
                want = min(block_rows, left)
        if num_waiting and sum(table.nbytes for table in waiting) >= BLOCK_BYTES:
            yield pa.concat_tables(waiting)
            left = None if left is None else left - num_waiting
            waiting, num_waiting = [], 0
    if num_waiting:
        yield pa.concat_tables(waiting)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
