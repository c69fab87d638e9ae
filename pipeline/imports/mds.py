"""MDS, the shards of mosaicml-streaming: their columns, as ordinary shards take them."""

import bz2
import gzip
import hashlib
import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

from operators.base import Column, FieldSpec, Ragged
from pipeline.errors import ContractError, IntegrityError, SpecError
from pipeline.storage import Storage, join

INDEX = "index.json"
_BYTES = ("bytes", "jpeg", "png")
_SCALARS = (*(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)),)
_FLOATS = ("float16", "float32", "float64")
_HINT = "a file changed after it was written, or was copied in part; copy the folder again"


@dataclass(frozen=True, slots=True)
class MdsShard:
    """A shard, as ``index.json`` has it.

    Attributes:
        path: Of the file to read, below the folder; the compressed one where there is one.
        num_bytes: Its size.
        hashes: Algorithm -> its digest.
        raw_bytes: Size once decompressed.
        compression: ``zstd:3``, ``gz``, ...; None when it is not compressed.
        num_samples: Rows.
        columns: Name -> encoding, in the order of the samples' values.
    """

    path: str
    num_bytes: int
    hashes: Mapping[str, str]
    raw_bytes: int
    compression: str | None
    num_samples: int
    columns: Mapping[str, str]


def read_mds_index(folder: str, storage: Storage) -> list[MdsShard]:
    """Read ``index.json``.

    Raises:
        NotFoundError: there is none.
        IntegrityError: it is no index.
        ContractError: shards of one data set have different columns, or are of another format.
    """
    uri = join(folder, INDEX)
    try:
        raw = json.loads(storage.read(uri))
        version, listed = raw["version"], raw["shards"]
        shards = [_shard(uri, each) for each in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{uri}: not an index of MDS shards ({error})", hint=_HINT) from None
    if version != 2:
        raise IntegrityError(f"{uri}: version {version}, this program reads 2", hint=_HINT)
    for shard in shards:
        if shard.columns != shards[0].columns:
            raise ContractError(
                f"{uri}: {shard.path} has columns {_text(shard.columns)}, {shards[0].path} has "
                f"{_text(shards[0].columns)}",
                hint="import folders of different columns one by one",
            )
    return shards


def _shard(uri: str, raw: Mapping[str, Any]) -> MdsShard:
    if raw["format"] != "mds":
        raise ContractError(f"{uri}: shards of format {raw['format']}, expected mds")
    stored = raw["zip_data"] or raw["raw_data"]
    return MdsShard(
        path=stored["basename"],
        num_bytes=stored["bytes"],
        hashes=stored["hashes"],
        raw_bytes=raw["raw_data"]["bytes"],
        compression=raw["compression"] if raw["zip_data"] else None,
        num_samples=raw["samples"],
        columns=dict(zip(raw["column_names"], raw["column_encodings"], strict=True)),
    )


def _text(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({encoding})" for name, encoding in columns.items())


def read_mds(folder: str, shard: MdsShard, storage: Storage) -> tuple[bytes, str]:
    """Return a shard's bytes, decompressed, and the SHA-256 of the file.

    Raises:
        IntegrityError: size or digest are not those of the index.
        ContractError: a compression that is not known here.
    """
    uri = join(folder, shard.path)
    data = storage.read(uri)
    if len(data) != shard.num_bytes:
        raise IntegrityError(
            f"{uri}: {len(data):,} bytes, {INDEX} says {shard.num_bytes:,}", hint=_HINT
        )
    for name, digest in shard.hashes.items():
        if name in hashlib.algorithms_guaranteed and not name.startswith("shake"):
            found = hashlib.new(name, data, usedforsecurity=False).hexdigest()
            if found != digest:
                raise IntegrityError(
                    f"{uri}: {name} {found[:12]}, {INDEX} says {digest[:12]}", hint=_HINT
                )
    sha256 = hashlib.sha256(data).hexdigest()
    raw = data if shard.compression is None else _decompressed(uri, data, shard.compression)
    if len(raw) != shard.raw_bytes:
        raise IntegrityError(
            f"{uri}: {len(raw):,} bytes decompressed, {INDEX} says {shard.raw_bytes:,}", hint=_HINT
        )
    return raw, sha256


def _decompressed(uri: str, data: bytes, compression: str) -> bytes:
    kind = compression.split(":", maxsplit=1)[0]
    try:
        if kind == "zstd":
            with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as file:
                return file.read()
        if kind == "gz":
            return gzip.decompress(data)
        if kind == "bz2":
            return bz2.decompress(data)
    except (zstandard.ZstdError, OSError, EOFError, ValueError) as error:
        raise IntegrityError(f"{uri}: cannot be decompressed ({error})", hint=_HINT) from None
    raise ContractError(
        f"{uri}: compressed with {compression}, known are zstd, gz, bz2",
        hint="write it again without compression",
    )


def _size(encoding: str) -> int | None:
    """Return the bytes of every value of a column, or None when they vary."""
    kind, *about = encoding.split(":")
    if len(about) == 2:
        return int(np.prod(_shape(encoding), dtype=np.int64)) * np.dtype(about[0]).itemsize
    if kind in ("str", "ndarray", *_BYTES):
        return None
    return np.dtype("int64" if kind == "int" else kind).itemsize


def _shape(encoding: str) -> tuple[int, ...]:
    return tuple(int(length) for length in encoding.split(":")[2].split(","))


def check_encodings(columns: Mapping[str, str]) -> None:
    """Raise ContractError for columns that no field of a data set can hold."""
    for name, encoding in columns.items():
        kind, *about = encoding.split(":")
        if kind == "ndarray" and about and about[0] in (*_SCALARS, *_FLOATS):
            continue
        if kind not in ("str", "int", *_BYTES, *_SCALARS, *_FLOATS):
            raise ContractError(
                f"column {name!r} is encoded as {encoding}; known are str, bytes, jpeg, png, int, "
                "numbers such as int32, and ndarray with its dtype",
                hint="write it again in one of these, or without this column",
            )


def spec_of(encoding: str, column: Column) -> FieldSpec:
    """Return the spec of a column, of which some rows were decoded."""
    kind, *about = encoding.split(":")
    if kind == "str":
        return FieldSpec("string")
    if kind in _BYTES:
        return FieldSpec("binary")
    if kind != "ndarray":
        return FieldSpec("int64" if kind == "int" else kind)
    if len(about) == 2:
        return FieldSpec(about[0], _shape(encoding))
    return FieldSpec(about[0], (None, *column.values.shape[1:]))


def decode_mds(uri: str, data: bytes, shard: MdsShard) -> dict[str, Column]:
    """Return the columns of a shard.

    Raises:
        IntegrityError: its bytes do not add up.
    """
    try:
        return _decode(data, shard)
    except (ValueError, IndexError, struct.error, pa.ArrowException) as error:
        raise IntegrityError(f"{uri}: not an MDS shard ({error})", hint=_HINT) from None


def _decode(data: bytes, shard: MdsShard) -> dict[str, Column]:
    (num,) = struct.unpack_from("<I", data)
    if num != shard.num_samples:
        raise ValueError(f"{num:,} samples, {INDEX} says {shard.num_samples:,}")
    offsets = np.frombuffer(data, "<u4", num + 1, 4).astype(np.int64)
    if offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
        raise ValueError("its samples do not end where it does")
    raw = np.frombuffer(data, np.uint8)
    sizes = {name: _size(encoding) for name, encoding in shard.columns.items()}
    varying = [name for name, size in sizes.items() if size is None]
    heads = offsets[:-1, None] + np.arange(4 * len(varying))
    varying_NV = raw[heads].view("<u4").astype(np.int64).reshape(num, -1)
    place_N = offsets[:-1] + 4 * len(varying)
    found: dict[str, Column] = {}
    for name, encoding in shard.columns.items():
        fixed = sizes[name]
        size_N = varying_NV[:, varying.index(name)] if fixed is None else np.full(num, fixed)
        if (place_N + size_N > offsets[1:]).any():
            raise ValueError(f"a value of {name!r} ends behind its sample")
        found[name] = _column(raw, place_N, size_N, encoding)
        place_N = place_N + size_N
    if (place_N != offsets[1:]).any():
        raise ValueError("samples are longer than their values")
    return found


def _column(raw: np.ndarray, place_N: np.ndarray, size_N: np.ndarray, encoding: str) -> Column:
    kind, *about = encoding.split(":")
    if kind == "str" or kind in _BYTES:
        values = _gathered(raw, place_N, size_N)
        ends = np.concatenate(([0], np.cumsum(size_N)))
        type_ = pa.large_string() if kind == "str" else pa.large_binary()
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(values)]
        array = pa.Array.from_buffers(type_, len(size_N), buffers)
        array.validate(full=True)
        return array
    if kind != "ndarray":
        number = np.dtype("int64" if kind == "int" else kind).newbyteorder("<")
        return np.frombuffer(_gathered(raw, place_N, size_N), number)
    dtype = np.dtype(about[0]).newbyteorder("<")
    if len(about) == 2:
        fixed = np.frombuffer(_gathered(raw, place_N, size_N), dtype)
        return fixed.reshape(len(place_N), *_shape(encoding))
    return _ragged(raw, place_N, size_N, dtype)


def _ragged(
    raw: np.ndarray, place_N: np.ndarray, size_N: np.ndarray, dtype: np.dtype[Any]
) -> Ragged:
    """Decode arrays that begin with their shape: a byte, and a length per dimension."""
    head_N = raw[place_N].astype(np.int64)
    ndims = np.unique(head_N >> 2)
    if len(ndims) > 1:
        raise ValueError(f"arrays of {' and '.join(map(str, ndims))} dimensions in one column")
    ndim = int(ndims[0]) if len(ndims) else 1
    if not ndim:
        raise ValueError("an array without dimensions")
    shape_ND = np.zeros((len(place_N), ndim), np.int64)
    width_N = np.left_shift(1, head_N & 3)
    for width in np.unique(width_N).tolist():
        rows = np.flatnonzero(width_N == width)
        lengths = raw[place_N[rows, None] + 1 + np.arange(ndim * width)]
        shape_ND[rows] = lengths.view(f"<u{width}").reshape(len(rows), ndim)
    rest = np.unique(shape_ND[shape_ND[:, 0] > 0, 1:], axis=0)
    if len(rest) > 1:
        raise ValueError("arrays that differ in another dimension than the first")
    head_N = 1 + ndim * width_N
    if (np.prod(shape_ND, axis=1) * dtype.itemsize != size_N - head_N).any():
        raise ValueError("arrays are not as large as their shape says")
    values = np.frombuffer(_gathered(raw, place_N + head_N, size_N - head_N), dtype)
    last = rest[0] if len(rest) else shape_ND[0, 1:] if len(shape_ND) else np.ones(ndim - 1, int)
    offsets = np.concatenate(([0], np.cumsum(shape_ND[:, 0])))
    return Ragged(values.reshape(-1, *last.tolist()), offsets)


def _gathered(raw: np.ndarray, place_N: np.ndarray, size_N: np.ndarray) -> bytes:
    view = raw.data
    ends = (place_N + size_N).tolist()
    return b"".join([view[a:b] for a, b in zip(place_N.tolist(), ends, strict=True)])


def id_column(name: str, column: Column, spec: FieldSpec, vocab_size: int) -> tuple[Column, str]:
    """Return ids in the smallest type that holds the vocabulary, and its name.

    Raises:
        SpecError: the field holds no integers.
        ContractError: an id is outside of the vocabulary.
    """
    if not spec.is_numeric or np.dtype(spec.dtype).kind not in "iu":
        raise SpecError(f"--field {name}: is {spec}, expected integers")
    values = column.values if isinstance(column, Ragged) else column
    if values.size and (int(values.min()) < 0 or int(values.max()) >= vocab_size):
        wrong = int(values.min()) if int(values.min()) < 0 else int(values.max())
        raise ContractError(
            f"field {name!r} holds id {wrong:,}, the vocabulary is said to be {vocab_size:,}",
            hint="give the right --vocab-size or --tokenizer",
        )
    kind = next(
        each
        for each in ("uint8", "uint16", "uint32", "uint64")
        if vocab_size - 1 <= np.iinfo(each).max
    )
    cast = values.astype(kind)
    return (Ragged(cast, column.offsets) if isinstance(column, Ragged) else cast), kind


def only_ids(columns: Mapping[str, str], specs: Mapping[str, FieldSpec]) -> str:
    """Return the only column that can be one sequence of ids.

    Raises:
        SpecError: there is none, or there are several.
    """
    found: Sequence[str] = [
        name
        for name, spec in specs.items()
        if spec.is_numeric and len(spec.shape) == 1 and np.dtype(spec.dtype).kind in "iu"
    ]
    if len(found) != 1:
        raise SpecError(
            f"{len(found)} columns may hold ids ({', '.join(found) or 'none'}) of {_text(columns)}",
            hint="say with --field which one does",
        )
    return found[0]
