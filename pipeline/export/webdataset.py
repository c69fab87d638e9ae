"""WebDataset: tar files in which a sample is the files that share a name."""

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import FieldSpec
from pipeline.errors import SpecError
from pipeline.export.base import ExportFormat, Part
from pipeline.export.files import ExportFiles, HashingFile
from pipeline.export.rows import row_bytes
from pipeline.manifest import Manifest

TAR_BYTES = 1 << 30


class WebDataset(ExportFormat):
    """Writes ``00000-00000.tar`` and so on: number of the part, number of the tar in it.

    A sample's files are named after its row in the data set, because keys may hold dots and
    slashes, which mean something in a tar. Its key is in ``.key.txt``; a field is
    ``.<field>.npy``, ``.<field>.txt`` (text) or ``.<field>.bin`` (bytes). Tars end before they
    outgrow 1 GiB. Times and owners in them are zero, so that the same data give the same bytes.
    """

    name = "webdataset"
    reader = "webdataset, wids"
    part_bytes = TAR_BYTES

    def __init__(self, manifest: Manifest, fields: Mapping[str, FieldSpec]) -> None:
        super().__init__(manifest, fields)
        wrong = [name for name in fields if "." in name or "/" in name]
        if wrong:
            raise SpecError(
                f"field {wrong[0]!r}: dots and slashes mean something in a tar's names",
                hint="leave it out with --field, or name it otherwise in the job",
            )

    def write(self, part: Part, files: ExportFiles) -> Mapping[str, Any]:
        """Write one or more tars."""
        row, number = part.first_row, 0
        with ExitStack() as stack:
            file: HashingFile | None = None
            for batch in part.batches():
                for members in self._members(batch):
                    sample = b"".join(_entry(f"{row:010d}.{end}", data) for end, data in members)
                    if file is not None and file.tell() + len(sample) > TAR_BYTES:
                        stack.close()
                        file = None
                    if file is None:
                        path = f"{part.number:05d}-{number:05d}.tar"
                        file = stack.enter_context(_open_tar(files, path))
                        number += 1
                    file.write(sample)
                    row += 1
        return {}

    def _members(self, batch: pa.RecordBatch) -> Iterator[list[tuple[str, bytes]]]:
        """Yield the files of each row: ending and content."""
        columns = []
        for name, spec in self.fields.items():
            values, counts = row_bytes(batch, name, spec)
            if spec.is_numeric:
                heads = _NpyHeads(spec)
                columns.append((f"{name}.npy", [heads.of(count) for count in counts], values))
            else:
                ending = "bin" if spec.dtype == "binary" else "txt"
                columns.append((f"{name}.{ending}", [b""] * len(values), values))
        for row in range(batch.num_rows):
            yield [(ending, heads[row] + values[row]) for ending, heads, values in columns]


class _NpyHeads:
    """What stands before the values in a ``.npy`` file, made once for every length there is."""

    def __init__(self, spec: FieldSpec) -> None:
        self._spec = spec
        self._heads: dict[int, bytes] = {}

    def of(self, count: int) -> bytes:
        if count not in self._heads:
            shape = self._spec.shape and (count, *self._spec.shape[1:])
            file = io.BytesIO()
            descr = np.lib.format.dtype_to_descr(np.dtype(self._spec.dtype))
            np.lib.format.write_array_header_1_0(
                file, {"descr": descr, "fortran_order": False, "shape": shape}
            )
            self._heads[count] = file.getvalue()
        return self._heads[count]


@contextmanager
def _open_tar(files: ExportFiles, path: str) -> Iterator[HashingFile]:
    with files.open(path) as file:
        yield file
        end = file.tell() + 2 * tarfile.BLOCKSIZE  # two blocks of zeros say that it is whole
        file.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))


def _entry(name: str, data: bytes) -> bytes:
    """Return a file as it stands in a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    padding = bytes(-len(data) % tarfile.BLOCKSIZE)
    return b"".join((info.tobuf(tarfile.PAX_FORMAT), data, padding))
