"""WebDataset: tar files in which a sample is the files that share a name."""

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import FieldSpec
from pipeline.errors import SpecError
from pipeline.export.base import ExportFormat, Part
from pipeline.export.files import ExportFiles
from pipeline.export.rows import row_bytes
from pipeline.manifest import Manifest

TAR_BYTES = 1 << 30
_BLOCK = 512


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
        row, number, filled = part.first_row, 0, 0
        with ExitStack() as stack:
            tar: tarfile.TarFile | None = None
            for batch in part.batches():
                for members in self._members(batch):
                    size = sum(_stored(len(data)) for _, data in members)
                    if tar is None or (filled and filled + size > TAR_BYTES):
                        stack.close()
                        file: Any = stack.enter_context(
                            files.open(f"{part.number:05d}-{number:05d}.tar")
                        )
                        tar = stack.enter_context(
                            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)
                        )
                        number, filled = number + 1, 0
                    for ending, data in members:
                        info = tarfile.TarInfo(f"{row:010d}.{ending}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
                    row, filled = row + 1, filled + size
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


def _stored(num_bytes: int) -> int:
    """Return the bytes that a file takes in a tar."""
    return _BLOCK + -(-num_bytes // _BLOCK) * _BLOCK
