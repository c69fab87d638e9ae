"""Open planned objects, notice that they changed, and undo their compression."""

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import zstandard

from pipeline.errors import IntegrityError, TransientError
from pipeline.protocols import SourceFile
from pipeline.storage import Entry, NotFoundError, Storage, shown

CHUNK_BYTES = 1 << 20


class DamagedError(Exception):
    """The object's bytes are not what its format says; what came before is fine.

    Args:
        reason: What was found, where, and what was expected.
        name: The tar member that is damaged, when it is known.
        offset: Byte position of the damage.
    """

    def __init__(self, reason: str, *, offset: int = 0, name: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.offset, self.name = reason, offset, name


def check_planned(file: SourceFile, found: Entry | None) -> None:
    """Compare an object with what the plan says of it.

    Raises:
        NotFoundError: it is gone.
        IntegrityError: it has another size or version.
    """
    if found is None:
        raise NotFoundError(
            f"{shown(file.uri)}: no such object, the plan has one of {file.num_bytes:,} bytes",
            hint="put it back, or plan the data set anew",
        )
    same_version = not (file.version and found.version) or file.version == found.version
    if found.num_bytes != file.num_bytes or not same_version:
        raise IntegrityError(
            f"{shown(file.uri)}: the object is not the one that was planned: "
            f"{found.num_bytes:,} bytes of version {found.version or 'unknown'}, the plan says "
            f"{file.num_bytes:,} bytes of version {file.version or 'unknown'}",
            hint="put it back, or plan the data set anew",
        )


@contextmanager
def open_planned(storage: Storage, file: SourceFile, *, seekable: bool = False) -> Iterator[Any]:
    """Open an object for reading, after ``check_planned`` of what was opened.

    An object that is replaced or changed while the block reads ends it with IntegrityError.

    Args:
        storage: Where it lies.
        file: The object, as planned.
        seekable: The reader jumps about; otherwise it goes from front to back.
    """
    try:
        opened = storage.open_read(file.uri, read_ahead=not seekable)
    except NotFoundError:
        check_planned(file, None)
        raise
    with opened:
        check_planned(file, storage.opened(file.uri, opened))
        yield opened
        if storage.local_path(file.uri) is not None:  # a store refuses to read another version
            check_planned(file, storage.opened(file.uri, opened))


class PlainStream:
    """Reads an object from front to back.

    Args:
        opened: The open object.
        file: What was planned.
    """

    def __init__(self, opened: BinaryIO, file: SourceFile) -> None:
        self._opened, self._file = opened, file
        self.position = 0
        self.num_bytes: int | None = file.num_bytes

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, fewer only at the end.

        Raises:
            TransientError: the store ended the object before its planned end.
        """
        data = _read_exactly(self._opened, min(size, self._file.num_bytes - self.position))
        self.position += len(data)
        if len(data) < size and self.position < self._file.num_bytes:
            raise TransientError(
                f"{shown(self._file.uri)}: ended after {self.position:,} of "
                f"{self._file.num_bytes:,} bytes",
                hint="the connection was cut; it is tried again",
            )
        return data

    def skip(self, size: int) -> None:
        """Move ``size`` bytes on; the end of the object must not be nearer."""
        if self._opened.seekable():
            self._opened.seek(size, io.SEEK_CUR)
            self.position += size
            return
        while size:
            size -= len(self.read(min(size, CHUNK_BYTES)))


class InflatedStream:
    """Reads a compressed object from front to back, uncompressed.

    Args:
        opened: The open object.
        file: What was planned; its suffix says how it is compressed.
    """

    def __init__(self, opened: BinaryIO, file: SourceFile) -> None:
        self._chunks = _inflate(PlainStream(opened, file), file.name)
        self._rest = b""
        self._damage: DamagedError | None = None
        self.position = 0
        self.num_bytes: int | None = None

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, fewer only at the end or before damage.

        Raises:
            DamagedError: the compressed bytes are broken or cut, and all before was read.
            TransientError: the store ended the object before its planned end.
        """
        parts, missing = [self._rest], size - len(self._rest)
        try:
            while missing > 0 and (chunk := next(self._chunks, b"")):
                parts.append(chunk)
                missing -= len(chunk)
        except DamagedError as error:
            self._damage = error
        data = b"".join(parts)
        if not data and self._damage is not None:
            raise self._damage
        data, self._rest = data[:size], data[size:]
        self.position += len(data)
        return data

    def skip(self, size: int) -> None:
        """Move ``size`` bytes on."""
        while size and (data := self.read(min(size, CHUNK_BYTES))):
            size -= len(data)


Stream = PlainStream | InflatedStream


def open_stream(opened: BinaryIO, file: SourceFile) -> Stream:
    """Return a stream over an open object: uncompressed if its name ends in one of SUFFIXES."""
    if file.name.endswith(SUFFIXES):
        return InflatedStream(opened, file)
    return PlainStream(opened, file)


SUFFIXES = (".gz", ".tgz", ".zst")

_INPUT_BYTES = 64 << 10
"""Compressed bytes at a time: even at 1000 to 1 they inflate to what memory can hold."""


def _inflate(stream: PlainStream, name: str) -> Iterator[bytes]:
    is_zstd = name.endswith(".zst")
    errors = zstandard.ZstdError if is_zstd else zlib.error
    inflater: Any = None
    data = stream.read(_INPUT_BYTES)
    while data:
        if inflater is None:
            if not is_zstd and not data.strip(b"\0"):  # gzip files may be padded with zeros
                data = stream.read(_INPUT_BYTES)
                continue
            inflater = _new_inflater(is_zstd)
        try:
            chunk = inflater.decompress(data)
        except errors as error:
            raise DamagedError(
                f"cannot be decompressed before byte {stream.position:,}: {error}",
                offset=stream.position,
            ) from None
        if chunk:
            yield chunk
        data = inflater.unused_data if inflater.eof else b""
        if inflater.eof:
            inflater = None  # files may be joined end to end
        data = data or stream.read(_INPUT_BYTES)
    if inflater is not None:
        raise DamagedError(
            f"the compressed data is cut at byte {stream.position:,}", offset=stream.position
        )


def _new_inflater(is_zstd: bool) -> Any:
    if is_zstd:
        return zstandard.ZstdDecompressor().decompressobj()
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _read_exactly(opened: BinaryIO, size: int) -> bytes:
    data = opened.read(size)
    if len(data) == size or not data:
        return data
    parts, missing = [data], size - len(data)  # a network file may answer with less
    while missing and (data := opened.read(missing)):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)
