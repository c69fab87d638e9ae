"""nanoGPT's ``train.bin``: ids one after the other, and nothing else."""

from collections.abc import Mapping
from typing import Any

from pipeline.export.base import Part, TokenFormat
from pipeline.export.files import ExportFiles


class NanoGpt(TokenFormat):
    """Writes ``train.bin``, or ``train_00000.bin`` and so on when the size of files is limited.

    Ids are little-endian uint16, as nanoGPT maps them, or uint32 when the vocabulary is larger
    than 65,536; the reader has to be told then. The format knows no documents: where one ends is
    only to be seen from the ids, so have an end-of-document id written in the job.
    """

    name = "nanogpt"
    reader = "nanoGPT and its kin (numpy.memmap)"
    part_bytes = 0

    def write(self, part: Part, files: ExportFiles) -> Mapping[str, Any]:
        """Write one file."""
        kind = self.unsigned_dtype()
        with files.open("train.bin" if part.count == 1 else f"train_{part.number:05d}.bin") as file:
            for batch in part.batches():
                file.write(self.ids(batch, kind)[0])
        return {"dtype": kind.name}
