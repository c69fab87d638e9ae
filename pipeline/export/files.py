"""Files of an export: they appear whole, with size and hash."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.storage import Storage, join


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that is whole.

    Attributes:
        path: Below the export's folder.
        num_bytes: Size.
        sha256: Lower-case hex.
    """

    path: str
    num_bytes: int
    sha256: str


class HashingFile:
    """A file to write to from front to back, that counts and hashes what passes.

    Attributes:
        num_bytes: What was written so far.
    """

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: Any) -> int:
        """Write bytes, or the buffer of a contiguous array."""
        view = memoryview(data)
        if not view.nbytes:  # which cannot be cast
            return 0
        view = view.cast("B")
        self._hash.update(view)
        self._file.write(view)
        self.num_bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Return where the next byte goes."""
        return self.num_bytes

    def flush(self) -> None:
        """Nothing is buffered here."""

    def close(self) -> None:
        """Writers close what they are given; the file itself is closed when it is published."""

    @property
    def sha256(self) -> str:
        """Of all that was written so far."""
        return self._hash.hexdigest()


class ExportFiles:
    """Writes files below one folder, and keeps what they became.

    Attributes:
        written: The files that are whole, in the order in which they were closed.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder
        self.written: list[WrittenFile] = []

    @contextmanager
    def open(self, path: str) -> Iterator[HashingFile]:
        """Write a file that appears, whole, when the block ends without an error."""
        with self._storage.open_write(join(self._folder, path)) as file:
            hashing = HashingFile(file)
            yield hashing
        self.written.append(WrittenFile(path, hashing.num_bytes, hashing.sha256))

    def write(self, path: str, data: bytes) -> None:
        """Write a small file."""
        with self.open(path) as file:
            file.write(data)
