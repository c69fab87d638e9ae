"""Megatron's indexed data sets: what an ``.idx`` says of its ``.bin``."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ContractError, IntegrityError
from pipeline.storage import NotFoundError, Storage, join

MAGIC = b"MMIDIDX\x00\x00"
OLD_MAGIC = b"TNTIDX\x00\x00"
DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float64",
    7: "float32",
    8: "uint16",
}
HEAD = struct.Struct("<QBQQ")
_HEAD_BYTES = len(MAGIC) + HEAD.size
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class MegatronIndex:
    """One pair of files.

    Attributes:
        bin_uri: The ids.
        idx_uri: The index.
        idx_bytes: Of the index.
        dtype: Of the ids, as stored.
        num_sequences: Sequences that the index lists.
        offsets: int64 [N + 1], where the N documents begin, in ids, and where the last ends.
    """

    bin_uri: str
    idx_uri: str
    idx_bytes: bytes
    dtype: np.dtype[Any]
    num_sequences: int
    offsets: np.ndarray


def find_pairs(source: str, storage: Storage) -> list[str]:
    """Return the prefixes of the pairs of a source: a prefix, one of its files, or a folder.

    Raises:
        NotFoundError: there is no ``.idx``.
    """
    prefix = source.removesuffix(".idx").removesuffix(".bin").rstrip("/")
    if storage.stat(f"{prefix}.idx") is not None:
        return [prefix]
    folder = storage.resolve(source)
    found = [
        join(source, entry.uri[len(folder.rstrip("/")) + 1 :]).removesuffix(".idx")
        for entry in storage.walk(folder)
        if entry.uri.endswith(".idx")
    ]
    if not found:
        raise NotFoundError(
            f"{prefix}.idx: no such object, and no .idx below {source}",
            hint="give the path of a .bin without its ending, or a folder of such pairs; an .idx "
            "is needed, it alone says where documents begin",
        )
    return sorted(found)


def read_index(prefix: str, storage: Storage) -> MegatronIndex:
    """Read an ``.idx``, and check it against itself and the size of its ``.bin``.

    Raises:
        NotFoundError: one of the two is missing.
        IntegrityError: the index is damaged, or another ``.bin`` than its own lies beside it.
        ContractError: it holds what cannot be used in place.
    """
    bin_uri, uri = f"{prefix}.bin", f"{prefix}.idx"
    data = storage.read(uri)
    dtype, num, num_bounds = _head(uri, data)
    tables = 12 * num + 8 * num_bounds
    extra = len(data) - _HEAD_BYTES - tables
    if extra == num and num:
        raise ContractError(
            f"{uri}: has a mode for each of {num:,} sequences, as multimodal data have",
            hint="only indexes of ids alone are imported",
        )
    if extra:
        raise IntegrityError(
            f"{uri}: {len(data):,} bytes, its head speaks of {num:,} sequences and {num_bounds:,} "
            f"document bounds, which take {_HEAD_BYTES + tables:,}",
            hint=_COPY,
        )
    lengths_S = np.frombuffer(data, "<i4", num, _HEAD_BYTES)
    places_S = np.frombuffer(data, "<i8", num, _HEAD_BYTES + 4 * num)
    bounds = np.frombuffer(data, "<i8", num_bounds, _HEAD_BYTES + 12 * num)
    ends_S = _ends(uri, lengths_S, places_S, dtype.itemsize)
    entry = storage.stat(bin_uri)
    if entry is None:
        raise NotFoundError(f"{bin_uri}: no such object", hint=f"{uri} describes it")
    expected = int(ends_S[-1]) * dtype.itemsize
    if entry.num_bytes != expected:
        raise IntegrityError(
            f"{bin_uri}: {entry.num_bytes:,} bytes, {uri} says {expected:,} ({int(ends_S[-1]):,} "
            f"ids of {dtype})",
            hint=_COPY,
        )
    if not num_bounds or bounds[0] != 0 or bounds[-1] != num or (np.diff(bounds) < 0).any():
        raise IntegrityError(
            f"{uri}: its document bounds do not rise from 0 to its {num:,} sequences", hint=_COPY
        )
    return MegatronIndex(bin_uri, uri, data, dtype, num, ends_S[bounds])


def _head(uri: str, data: bytes) -> tuple[np.dtype[Any], int, int]:
    if data[: len(OLD_MAGIC)] == OLD_MAGIC:
        raise ContractError(
            f"{uri}: an index of the old kind (TNTIDX)",
            hint="write it again with a Megatron of today, as an indexed data set of kind mmap",
        )
    if data[: len(MAGIC)] != MAGIC or len(data) < _HEAD_BYTES:
        raise IntegrityError(
            f"{uri}: begins with {data[:9]!r} and has {len(data):,} bytes, expected an index of "
            f"Megatron, {MAGIC!r}",
            hint="is it the .idx of a .bin?",
        )
    version, code, num, num_bounds = HEAD.unpack_from(data, len(MAGIC))
    if version != 1:
        raise IntegrityError(f"{uri}: version {version}, this program reads 1", hint=_COPY)
    if code not in DTYPES:
        known = ", ".join(f"{each} {name}" for each, name in DTYPES.items())
        raise IntegrityError(f"{uri}: type code {code}, known are {known}", hint=_COPY)
    dtype = np.dtype(DTYPES[code]).newbyteorder("<")
    if dtype.kind not in "iu":
        raise ContractError(
            f"{uri}: holds {dtype}, expected integers", hint="only ids are imported"
        )
    return dtype, num, num_bounds


def _ends(uri: str, lengths_S: np.ndarray, places_S: np.ndarray, itemsize: int) -> np.ndarray:
    """Return int64 [S + 1], where sequences begin, if they stand one after another."""
    if len(lengths_S) and int(lengths_S.min()) < 0:
        raise IntegrityError(f"{uri}: a sequence has length {int(lengths_S.min())}", hint=_COPY)
    ends_S = np.zeros(len(lengths_S) + 1, np.int64)
    np.cumsum(lengths_S, out=ends_S[1:])
    for start in range(0, len(places_S), _CHUNK):
        places = places_S[start : start + _CHUNK]
        wrong = places != ends_S[start : start + len(places)] * itemsize
        if wrong.any():
            at = start + int(np.argmax(wrong))
            raise ContractError(
                f"{uri}: sequence {at:,} begins at byte {int(places_S[at]):,}, those before it end "
                f"at {int(ends_S[at]) * itemsize:,}",
                hint="only files whose sequences stand one after another can be read in place; "
                "write it again with the builder of Megatron",
            )
    return ends_S


_COPY = "the two files changed after they were written, or were copied in part; copy both again"
