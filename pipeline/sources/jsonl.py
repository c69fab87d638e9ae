"""Read samples from JSON lines, plain or compressed."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from operators.base import FieldSpec
from pipeline.protocols import Partition, SampleBlock, SourceFile, SourceRange
from pipeline.sources.arrow_types import as_spec, parse_dtype, type_of_spec
from pipeline.sources.blocks import (
    Fault,
    SeenKeys,
    count_ranges,
    make_block,
    numbered_keys,
    read_ranges,
)
from pipeline.sources.config import BaseSourceConfig, FieldName, by_name
from pipeline.sources.listing import join_ranges, list_files, whole_files
from pipeline.sources.objects import DamagedError, open_planned, open_stream
from pipeline.storage import Storage

_WHOLE_LINE = "@line"

READ_BYTES = 4 << 20
"""Read, cut in lines and parsed together: larger pieces fall out of the processor's cache."""


class JsonField(BaseModel):
    """Which value of a line a field is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[
        str,
        Field(
            pattern=r"^[^.]+(\.[^.]+)*$",
            description="JSON key; `meta.url` is a key in an object; `@line` is the whole line, as "
            "text, for operators that read JSON.",
        ),
    ]
    dtype: Literal["string", "int64", "float64", "bool", "int64[*]", "float64[*]"] = "string"


def _path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


JsonFields = dict[
    FieldName,
    Annotated[JsonField, BeforeValidator(_path, json_schema_input_type=str | JsonField)],
]


class JsonlConfig(BaseSourceConfig):
    """What a job may say about JSON lines."""

    type: Literal["jsonl"] = "jsonl"
    fields: Annotated[
        JsonFields,
        BeforeValidator(by_name, json_schema_input_type=JsonFields | list[FieldName]),
        Field(min_length=1, description="Field -> JSON key, or {path, dtype}; or a list of names."),
    ]
    key: Annotated[
        JsonField | None,
        BeforeValidator(_path, json_schema_input_type=str | JsonField | None),
        Field(
            description="JSON key of text, or {path, dtype: int64}. "
            "Default: `<file name>:<line number>`."
        ),
    ] = None

    @model_validator(mode="after")
    def _paths_fit(self) -> "JsonlConfig":
        if self.key is not None and self.key.dtype not in ("string", "int64"):
            raise ValueError(f"key dtype is {self.key.dtype!r}, expected string or int64")
        dtypes: dict[str, str] = {}
        for wanted in (*self.fields.values(), *([self.key] if self.key else [])):
            if wanted.path == _WHOLE_LINE and (wanted is self.key or wanted.dtype != "string"):
                raise ValueError(f"path {_WHOLE_LINE!r} is the line's text, a string, and no key")
            if dtypes.setdefault(wanted.path, wanted.dtype) != wanted.dtype:
                raise ValueError(f"path {wanted.path!r} is asked for in two dtypes")
        for path in dtypes:
            inner = next((other for other in dtypes if other.startswith(f"{path}.")), None)
            if inner is not None:
                raise ValueError(f"path {path!r} cannot be a value and, for {inner!r}, an object")
        return self


class JsonlSource:
    """Reads one JSON object a line from `.jsonl`, `.jsonl.gz` or `.jsonl.zst` (by suffix).

    Lines of nothing but spaces, tabs and carriage returns are no samples; they count in the line
    numbers of generated keys, which start at 1, as editors show them. A byte order mark at the
    start of a file is passed over.

    Rejected are lines that are not one JSON object (``InvalidJson``: also one that has a wanted
    key twice), that are not UTF-8 (``InvalidUtf8``), that lack a value or have null
    (``MissingField``) or another type (``WrongType``), and keys given before in the file
    (``DuplicateKey``). A file whose compressed bytes are damaged gives every whole line before
    the damage, then one record ``CorruptFile`` for the rest.

    The parser is Arrow's, over a block of lines at a time. When a block does not parse it is
    halved until the bad lines stand alone: a line's result never depends on its neighbours.
    """

    chunk_size: ClassVar[int] = 1024

    def __init__(self, config: JsonlConfig, storage: Storage, urls: Sequence[str]) -> None:
        self.config = config
        self._storage = storage
        self._urls = urls

    @cached_property
    def fields(self) -> Mapping[str, FieldSpec]:
        """As configured."""
        return {name: parse_dtype(field.dtype) for name, field in self.config.fields.items()}

    def list_partitions(self) -> Iterator[Partition]:
        """Join small files up to ``partition_bytes``; a larger one is a partition."""
        files = list_files(self._storage, self._urls)
        return join_ranges(whole_files(files), self.config.partition_bytes)

    def count_samples(self, partition: Partition, at_most: int) -> int:
        """Count the lines."""

        def count(found: SourceRange, enough: int) -> int:
            total = 0
            for lines in self._lines(found.file, block_rows=1024):
                total += len(lines.numbers)
                if total >= enough:
                    break
            return total

        return count_ranges(partition, at_most, count)

    def read(self, partition: Partition, block_rows: int) -> Iterator[SampleBlock]:
        """Yield the lines in the order of the files."""
        return read_ranges(partition, partial(self._read_file, block_rows=block_rows))

    def _read_file(
        self, found: SourceRange, first_row: int, at_most: int | None, *, block_rows: int
    ) -> Iterator[SampleBlock]:
        seen = SeenKeys()
        left = at_most
        for lines in self._lines(found.file, block_rows):
            part = lines.head(len(lines.numbers) if left is None else left)
            yield self._block(part, found.file, first_row, seen)
            first_row += len(part.numbers)
            if left is not None:
                left -= len(part.numbers)
                if left == 0:
                    return

    def _lines(self, file: SourceFile, block_rows: int) -> Iterator["_Lines"]:
        with open_planned(self._storage, file) as opened:
            stream = open_stream(opened, file)
            waiting: list[bytes] = []  # what was read of a line that has no end yet
            next_number = 1
            damage: str | None = None
            chunk = b"\n"
            while chunk:
                is_start = stream.position == 0
                try:
                    chunk = stream.read(READ_BYTES)
                except DamagedError as error:
                    chunk, damage = b"", error.reason
                if is_start:
                    chunk = chunk.removeprefix(_BYTE_ORDER_MARK)
                waiting.append(chunk)
                if chunk and b"\n" not in chunk:
                    continue
                lines = _split(b"".join(waiting), next_number, damage, is_end=not chunk)
                waiting = [lines.data[lines.rest_start :]]
                next_number = lines.rest_number
                while len(lines.numbers):
                    yield lines.head(block_rows)
                    lines = lines.tail(block_rows)

    def _block(
        self, lines: "_Lines", file: SourceFile, first_row: int, seen: SeenKeys
    ) -> SampleBlock:
        values, faults = self._parse(lines)
        keys = numbered_keys(file.name, lines.numbers)
        if self.config.key is not None:
            given = _at(values, self.config.key.path)
            if pa.types.is_integer(given.type):
                given = given.cast(pa.large_string())
            given = as_spec(given, FieldSpec("string"))
            keys, bad_keys = seen.choose_keys(given, keys, self.config.key.path)
            faults = bad_keys | faults
        return make_block(
            first_row=first_row,
            file_name=file.name,
            num_bytes=int((lines.stops - lines.starts).sum()),
            keys=keys,
            arrays={
                name: lines.texts(faults)
                if field.path == _WHOLE_LINE
                else as_spec(_at(values, field.path), self.fields[name])
                for name, field in self.config.fields.items()
            },
            specs=self.fields,
            faults=faults,
        )

    def _parse(self, lines: "_Lines") -> tuple[pa.Table, dict[int, Fault]]:
        """Return one row a line, null where it has a fault, and the faults."""
        faults = _faults_of_text(lines)
        good = np.delete(np.arange(len(lines.numbers)), sorted(faults))
        tables = self._parse_rows(lines, good, faults) if len(good) else []
        table = pa.concat_tables([self._schema.empty_table(), *tables])
        if len(good) == len(lines.numbers):
            return table, faults
        positions = np.full(len(lines.numbers), -1)
        positions[good] = np.arange(len(good))
        return table.take(pa.array(positions, mask=positions < 0)), faults

    def _parse_rows(
        self, lines: "_Lines", rows: np.ndarray, faults: dict[int, Fault]
    ) -> list[pa.Table]:
        try:
            table = _read_json(lines.text(rows), self._schema)
            problem = f"{table.num_rows} objects on one line"
        except pa.ArrowInvalid as error:
            table, problem = None, str(error)
        if table is not None and table.num_rows == len(rows):
            return [table]
        if len(rows) > 1:
            half = len(rows) // 2
            return [
                *self._parse_rows(lines, rows[:half], faults),
                *self._parse_rows(lines, rows[half:], faults),
            ]
        faults[int(rows[0])] = _fault_of(problem)
        nulls = [pa.nulls(1, field.type) for field in self._schema]
        return [pa.Table.from_arrays(nulls, schema=self._schema)]

    @cached_property
    def _schema(self) -> pa.Schema:
        tree: dict[str, Any] = {}
        wanted = [*self.config.fields.values(), *([self.config.key] if self.config.key else [])]
        for field in wanted:
            if field.path == _WHOLE_LINE:
                tree[_WHOLE_LINE] = pa.null()  # so that rows are counted where nothing else is read
                continue
            *outer, last = field.path.split(".")
            branch = tree
            for name in outer:
                branch = branch.setdefault(name, {})
            found = type_of_spec(parse_dtype(field.dtype))
            branch[last] = pa.list_(found.value_type) if pa.types.is_large_list(found) else found
        return pa.schema(_fields_of(tree))


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MOST_BYTES = (1 << 31) - 2  # Arrow's parser counts the bytes of a block in an int32


class _Lines(NamedTuple):
    """Lines of a buffer that are not blank: line i is ``data[starts[i]:stops[i]]``."""

    data: bytes
    starts: np.ndarray
    stops: np.ndarray
    numbers: np.ndarray
    """Line numbers in the file, from 1."""
    rest_start: int
    """Where the bytes begin that are not in a whole line yet."""
    rest_number: int
    damage: str | None
    """When set, the last line stands for all that could not be decompressed."""

    def head(self, count: int) -> "_Lines":
        if count >= len(self.numbers):
            return self
        cut = {name: getattr(self, name)[:count] for name in ("starts", "stops", "numbers")}
        return self._replace(**cut, damage=None)

    def tail(self, count: int) -> "_Lines":
        cut = {name: getattr(self, name)[count:] for name in ("starts", "stops", "numbers")}
        return self._replace(**cut)

    def text(self, rows: np.ndarray) -> pa.Buffer:
        """Return some of the lines as one buffer, without a copy when they are neighbours."""
        if rows[-1] - rows[0] + 1 == len(rows):
            start, stop = int(self.starts[rows[0]]), int(self.stops[rows[-1]])
            return pa.py_buffer(self.data).slice(start, stop - start)
        return pa.py_buffer(
            b"\n".join(self.data[self.starts[row] : self.stops[row]] for row in rows)
        )

    def texts(self, faults: Mapping[int, Fault]) -> pa.Array:
        """Return every line as large_string, null where it has a fault."""
        if not len(self.starts):
            return pa.array([], pa.large_string())
        # From line to line, line ends and blanks between them included: these are trimmed.
        offsets = np.append(self.starts, self.stops[-1:])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(self.data)]
        whole = pa.Array.from_buffers(pa.large_binary(), len(self.starts), buffers)
        has_fault = np.zeros(len(self.starts), bool)
        has_fault[list(faults)] = True
        rows = pa.array(np.arange(len(self.starts)), mask=has_fault)
        return pc.utf8_trim(whole.take(rows).cast(pa.large_string()), _BLANKS.decode())


def _split(data: bytes, first_number: int, damage: str | None, *, is_end: bool) -> _Lines:
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw == ord("\n"))
    if is_end and damage is None and data and data[-1:] != b"\n":
        ends = np.append(ends, len(data))
    starts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
    numbers = first_number + np.arange(len(ends))
    rest_start = int(ends[-1]) + 1 if len(ends) else 0
    rest_number = first_number + len(ends)
    stops = ends - ((ends > starts) & (raw[ends - 1] == ord("\r"))) if len(ends) else ends
    # Few lines begin or end with a blank: only these are looked at one by one.
    starts, stops = starts.astype(np.int64), stops.astype(np.int64)
    full = stops > starts
    odd = np.flatnonzero(full)
    odd = odd[(raw[starts[odd]] <= ord(" ")) | (raw[stops[odd] - 1] <= ord(" "))]
    for row in odd.tolist():
        line = data[starts[row] : stops[row]]
        starts[row] += len(line) - len(line.lstrip(_BLANKS))
        stops[row] = max(starts[row], starts[row] + len(line.strip(_BLANKS)))
    full = stops > starts
    starts, stops, numbers = starts[full], stops[full], numbers[full]
    if damage is not None:
        starts, stops = np.append(starts, len(data)), np.append(stops, len(data))
        numbers = np.append(numbers, rest_number)
    return _Lines(data, starts, stops, numbers, rest_start, rest_number, damage)


_BLANKS = b" \t\r\n"


def _faults_of_text(lines: _Lines) -> dict[int, Fault]:
    """Find the lines that are not UTF-8 or not in braces.

    When every line begins with ``{`` and ends with ``}`` no object can span two of them (after
    ``}`` JSON wants a comma or a bracket, and a string cannot hold a newline): as many objects as
    lines then means one on each.
    """
    faults: dict[int, Fault] = {}
    num_lines = len(lines.numbers)
    if lines.damage is not None:
        num_lines -= 1
        lost = f"{lines.damage}; the rest of the file is lost"
        faults[num_lines] = Fault("CorruptFile", lost)
    raw = np.frombuffer(lines.data, np.uint8)
    starts, stops = lines.starts[:num_lines], lines.stops[:num_lines]
    if num_lines and not _is_utf8(lines.data, int(starts[0]), int(stops[-1])):
        for row in range(num_lines):
            try:
                lines.data[starts[row] : stops[row]].decode()
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                reason = f"byte {error.start} ({byte:#04x}): {error.reason}"
                faults[row] = Fault("InvalidUtf8", reason)
    braced = (raw[starts] == ord("{")) & (raw[stops - 1] == ord("}"))
    for row in np.flatnonzero(~braced).tolist():
        line = lines.data[starts[row] : stops[row]]
        found = line if len(line) <= 40 else line[:20] + b"..." + line[-20:]
        reason = f"expected one object in braces, found {found.decode('utf-8', 'replace')!r}"
        faults.setdefault(row, Fault("InvalidJson", reason))
    return faults


def _is_utf8(data: bytes, start: int, stop: int) -> bool:
    offsets = pa.py_buffer(np.array([start, stop], np.int64))
    text = pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(data)])
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _read_json(text: pa.Buffer, schema: pa.Schema) -> pa.Table:
    if text.size > _MOST_BYTES:
        raise pa.ArrowInvalid(f"{text.size:,} bytes, at most {_MOST_BYTES:,} can be parsed at once")
    table = pj.read_json(
        pa.BufferReader(text),
        read_options=pj.ReadOptions(use_threads=False, block_size=text.size + 1),
        parse_options=pj.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="ignore", newlines_in_values=False
        ),
    )
    return table.select(schema.names)


def _fault_of(problem: str) -> Fault:
    text = " ".join(problem.split()).removeprefix("JSON parse error: ").removesuffix(" in row 0")
    wrong_type = "changed from" in text or text.startswith("Failed to convert")
    return Fault("WrongType" if wrong_type else "InvalidJson", text)


def _fields_of(tree: Mapping[str, Any]) -> list[pa.Field]:
    return [
        pa.field(name, pa.struct(_fields_of(inner)) if isinstance(inner, dict) else inner)
        for name, inner in tree.items()
    ]


def _at(table: pa.Table, path: str) -> pa.ChunkedArray:
    first, *inner = path.split(".")
    column = table.column(first)
    return pc.struct_field(column, inner) if inner else column
