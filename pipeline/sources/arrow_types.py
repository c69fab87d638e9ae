"""Arrow types and the field specs that they become; Arrow arrays and the columns they become."""

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.base import Column, FieldSpec, Ragged

_DTYPE = re.compile(r"([a-z]+\d*)(?:\[(\*|[1-9]\d*)\])?")
_NUMERIC = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)


def parse_dtype(text: str) -> FieldSpec:
    """Return the spec that a job writes as ``string``, ``binary``, ``int64``, ``uint16[*]``.

    A suffix makes rows of numbers: ``[*]`` of any length, ``[16]`` of this length.

    Raises:
        ValueError: it is none of these.
    """
    match = _DTYPE.fullmatch(text)
    dtype, length = match.groups() if match else ("", None)
    if dtype in ("string", "binary") and length is None:
        return FieldSpec(dtype)
    if dtype not in _NUMERIC:
        raise ValueError(
            f"dtype {text!r} is not one of string, binary, {', '.join(_NUMERIC)}; "
            "a number may be followed by [*] or a length, such as [16]"
        )
    if length is None:
        return FieldSpec(dtype)
    return FieldSpec(dtype, (None if length == "*" else int(length),))


def spec_of_type(found: pa.DataType) -> FieldSpec | None:
    """Return the spec of the column that an Arrow type becomes, or None when it has none."""
    types = pa.types
    if types.is_dictionary(found):
        return spec_of_type(found.value_type)
    if types.is_string(found) or types.is_large_string(found) or types.is_string_view(found):
        return FieldSpec("string")
    if types.is_binary(found) or types.is_large_binary(found) or types.is_binary_view(found):
        return FieldSpec("binary")
    if types.is_fixed_size_binary(found):
        return FieldSpec("binary")
    if types.is_fixed_size_list(found):
        return _list_spec(found.value_type, found.list_size)
    if types.is_list(found) or types.is_large_list(found):
        return _list_spec(found.value_type, None)
    return _number_spec(found)


def type_of_spec(spec: FieldSpec) -> pa.DataType:
    """Return the Arrow type in which a field is read: large, for blocks above 2 GiB."""
    if spec.dtype == "string":
        return pa.large_string()
    if spec.dtype == "binary":
        return pa.large_binary()
    number = pa.bool_() if spec.dtype == "bool" else pa.from_numpy_dtype(np.dtype(spec.dtype))
    if not spec.shape:
        return number
    length = spec.shape[0]
    return pa.large_list(number) if length is None else pa.list_(number, length)


def can_hold(wanted: FieldSpec, found: FieldSpec) -> bool:
    """Say whether a field of spec ``wanted`` can hold every value of a column of spec ``found``.

    Text and bytes can stand for each other: bytes that are not text are found row by row.
    """
    if not wanted.is_numeric or not found.is_numeric:
        return not wanted.is_numeric and not found.is_numeric
    kinds = np.dtype(found.dtype).kind + np.dtype(wanted.dtype).kind
    same_kind = kinds in ("bb", "ii", "uu", "ff", "ui") and np.can_cast(found.dtype, wanted.dtype)
    any_length = tuple(None for _ in found.shape)
    return same_kind and wanted.shape in (found.shape, any_length)


def as_spec(array: pa.ChunkedArray, spec: FieldSpec) -> pa.Array:
    """Return an array as one of the type ``type_of_spec(spec)``, where ``can_hold`` is true.

    Text is not checked: it may hold bytes that are not UTF-8.
    """
    wanted = type_of_spec(spec)
    # Chunk by chunk: joined first, small offsets could overflow.
    chunks = [_cast(chunk, wanted) for chunk in array.chunks if len(chunk)]
    if len(chunks) == 1:
        return chunks[0]
    return pa.concat_arrays(chunks) if chunks else pa.array([], wanted)


def null_elements(array: pa.Array) -> np.ndarray:
    """Return the rows of a list array that hold a null, int64 [K], rising."""
    if not _is_list(array.type) or array.flatten().null_count == 0:
        return np.zeros(0, np.int64)
    parents = pc.list_parent_indices(array).to_numpy()
    nulls = array.flatten().is_null().to_numpy(zero_copy_only=False)
    rows: np.ndarray = np.unique(parents[nulls])
    return rows


def not_utf8(array: pa.Array) -> Mapping[int, str]:
    """Return the rows of a large_string array that are not UTF-8, with what is wrong."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        pass
    else:
        return {}
    wrong = {}
    for row, value in enumerate(array.view(pa.large_binary())):
        try:
            (value.as_py() or b"").decode()
        except UnicodeDecodeError as error:
            wrong[row] = f"byte {error.start} ({error.object[error.start]:#04x}): {error.reason}"
    return wrong


def to_column(array: pa.Array, spec: FieldSpec) -> Column:
    """Return an array without nulls, of the type ``type_of_spec(spec)``, as a column.

    Numbers are copied: their numpy arrays may be written to, which torch asks for.
    """
    if not spec.is_numeric:
        return array
    if not spec.shape:
        return _numbers(array)
    if spec.shape[0] is None:
        offsets = array.offsets.to_numpy()
        return Ragged(_numbers(array.flatten()), offsets - offsets[0])
    return _numbers(array.flatten()).reshape(len(array), spec.shape[0])


def _cast(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if wanted == pa.large_string():
        return array.cast(pa.large_binary()).view(wanted)  # a cast to text would stop at bad bytes
    return array.cast(wanted)


def _numbers(array: pa.Array) -> np.ndarray:
    numbers: np.ndarray = array.to_numpy(zero_copy_only=False)
    return numbers.copy()


def _is_list(found: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(found) for is_kind in kinds)


def _number_spec(found: pa.DataType, shape: tuple[int | None, ...] = ()) -> FieldSpec | None:
    name = {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(found))
    name = name or str(found)
    return FieldSpec(name, shape) if name in _NUMERIC else None


def _list_spec(value_type: pa.DataType, length: int | None) -> FieldSpec | None:
    return _number_spec(value_type, (length,))
