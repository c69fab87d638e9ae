"""Walk the members of a tar stream: ustar, GNU long names, PAX.

The formats are those of POSIX.1-2024, `pax`, "ustar Interchange Format" and "pax Interchange
Format", and of the GNU tar manual, "Basic Tar Format". A walk costs one checked header a member,
where ``tarfile`` builds an object with twenty fields.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.sources.objects import CHUNK_BYTES, DamagedError, Stream

BLOCK = 512
_ZEROS = bytes(BLOCK)

_FILE = (b"0", b"\0", b"7")
_NO_BODY = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders: their size means nothing
_GNU_NAME, _GNU_LINK, _GNU_SPARSE = b"L", b"K", b"S"
_PAX_NEXT, _PAX_GLOBAL = (b"x", b"X"), b"g"
_GNU_MAGIC = b"ustar  \0"


@dataclass(frozen=True, slots=True)
class TarMember:
    """One regular file of an archive.

    Attributes:
        name: As stored, in UTF-8; bytes that are not UTF-8 become lone surrogates.
        num_bytes: Size of its content.
    """

    name: str
    num_bytes: int


class TarWalk:
    """Yields the regular files of a tar stream, in order.

    An archive may end with or without its marker of zero blocks, as ``tarfile`` allows; but
    anything else than zeros after the marker is damage, for it would be lost in silence.

    Args:
        stream: The archive, uncompressed.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._unread = 0  # bytes of the current member's content that were not asked for

    def __iter__(self) -> Iterator[TarMember]:
        """Yield the members.

        Raises:
            DamagedError: the bytes are not a tar, or end inside a member.
            TransientError: the store ended the object before its planned end.
        """
        everywhere: dict[str, bytes] = {}
        following: dict[str, bytes] = {}
        while (header := self._header()) is not None:
            kind, name, size = header
            if kind in _PAX_NEXT:
                following |= _pax_records(self._extension(size))
            elif kind == _PAX_GLOBAL:
                everywhere |= _pax_records(self._extension(size))
            elif kind == _GNU_NAME:
                following["path"] = self._extension(size).partition(b"\0")[0]
            elif kind == _GNU_LINK:
                self._extension(size)
            else:
                records = everywhere | following
                following = {}
                path = records.get("path", name)
                size = int(records["size"]) if "size" in records else size
                if kind == _GNU_SPARSE or any(key.startswith("GNU.sparse") for key in records):
                    raise DamagedError(
                        "holds a sparse file, which cannot be read; write the tar without --sparse",
                        offset=self._stream.position,
                        name=_text(path),
                    )
                is_folder = kind == b"\0" and name.endswith(b"/")  # as before POSIX
                size = 0 if kind in _NO_BODY or is_folder else size
                self._start_body(size, _text(path))
                if kind in _FILE and not is_folder:
                    yield TarMember(_text(path), size)
                self._skip_body(size, _text(path))
        if following:
            raise DamagedError(
                "ends after an extended header, without its file", offset=self._stream.position
            )

    def body(self, member: TarMember) -> bytes:
        """Return the content of the member that was yielded last; once.

        Raises:
            DamagedError: the stream ends before.
            TransientError: the store ended the object before its planned end.
        """
        data = self._stream.read(member.num_bytes)
        self._unread = 0
        if len(data) < member.num_bytes:
            raise self._cut(member.name)
        return data

    def _header(self) -> tuple[bytes, bytes, int] | None:
        start = self._stream.position
        block = self._stream.read(BLOCK)
        if not block and start:
            return None
        if len(block) < BLOCK:
            raise DamagedError(f"a header is cut at byte {start + len(block):,}", offset=start)
        if block == _ZEROS:
            self._check_rest_is_zero()
            return None
        try:
            stored, size = _number(block[148:156]), _number(block[124:136])
        except ValueError:
            raise DamagedError(f"no tar header at byte {start:,}", offset=start) from None
        # The checksum's own bytes count as spaces; some old tars added signed bytes.
        if stored != sum(block) - sum(block[148:156]) + 8 * 32:
            signed = sum(byte - 256 * (byte > 127) for byte in block[:148] + block[156:]) + 8 * 32
            if stored != signed:
                raise DamagedError(
                    f"the header at byte {start:,} has another checksum than it says", offset=start
                )
        if size < 0:
            raise DamagedError(f"the header at byte {start:,} has a negative size", offset=start)
        name = block[:100].partition(b"\0")[0]
        prefix = block[345:500].partition(b"\0")[0]
        if prefix and block[257:265] != _GNU_MAGIC:  # GNU tar keeps times there
            name = prefix + b"/" + name
        return block[156:157], name, size

    def _extension(self, size: int) -> bytes:
        start = self._stream.position
        data = self._stream.read(size + -size % BLOCK)
        if len(data) < size:
            raise DamagedError(f"an extended header is cut at byte {start:,}", offset=start)
        return data[:size]

    def _start_body(self, size: int, name: str) -> None:
        end = self._stream.num_bytes
        if end is not None and self._stream.position + size > end:
            raise self._cut(name)
        self._unread = size

    def _skip_body(self, size: int, name: str) -> None:
        end = self._stream.position + self._unread
        try:
            self._stream.skip(self._unread)
        except DamagedError:
            raise self._cut(name) from None
        if self._stream.position < end:
            raise self._cut(name)
        self._unread = 0
        padding = -size % BLOCK
        if self._stream.num_bytes is not None:  # the last member's may be missing
            padding = min(padding, self._stream.num_bytes - self._stream.position)
        self._stream.skip(padding)

    def _cut(self, name: str) -> DamagedError:
        start = self._stream.position
        return DamagedError(f"{name!r} is cut at the end of the file", offset=start, name=name)

    def _check_rest_is_zero(self) -> None:
        start = self._stream.position
        while data := self._stream.read(CHUNK_BYTES):
            if data.strip(b"\0"):
                raise DamagedError(
                    f"data follows the end marker at byte {start:,}; tars that were joined with "
                    "`cat` must be unpacked or read one by one",
                    offset=start,
                )


def _number(field: bytes) -> int:
    if field[0] in (0o200, 0o377):  # GNU: base 256, for sizes of 8 GiB and more
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == 0o200 else value - 256 ** (len(field) - 1)
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _pax_records(data: bytes) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    position = 0
    while position < len(data) and data[position]:
        try:
            space = data.index(b" ", position)
            end = position + int(data[position:space])
            name, equals, value = data[space + 1 : end - 1].partition(b"=")
            if not equals or end <= space or end > len(data):
                raise ValueError
            if name == b"size" and int(value) < 0:
                raise ValueError
        except ValueError:
            raise DamagedError("an extended header holds no `length name=value` record") from None
        records[name.decode("utf-8", "replace")] = value
        position = end
    return records


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
