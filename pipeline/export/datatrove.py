"""datatrove's tokenized files: ``.ds`` of ids, ``.ds.index`` of document ends, ``.ds.metadata``."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.export.base import Part, TokenFormat
from pipeline.export.files import ExportFiles


class Datatrove(TokenFormat):
    """Writes ``<n>_<field>.ds`` with index and metadata.

    Ids are uint16, or uint32 when the vocabulary is larger than 65,536 (``token_size`` 2 or 4, to
    be told to the reader). The index holds a uint64 per sample: where it ends, counted in ids from
    the file's beginning. The metadata are three lines: ``<tokenizer>|<token size>``, the number of
    ids, and that number for people.
    """

    name = "datatrove"
    reader = "datatrove, nanotron (DatatroveFolderDataset)"
    part_bytes = 4 << 30

    def write(self, part: Part, files: ExportFiles) -> Mapping[str, Any]:
        """Write one ``.ds`` with its two companions."""
        kind = self.unsigned_dtype()
        name = f"{part.number:05d}_{self.field}.ds"
        ends = [np.empty(0, np.uint64)]
        num_ids = 0
        with files.open(name) as file:
            for batch in part.batches():
                ids, counts = self.ids(batch, kind)
                file.write(ids)
                ends.append((np.cumsum(counts) + num_ids).astype(np.uint64))
                num_ids += len(ids)
        with files.open(f"{name}.index") as file:
            for chunk in ends:
                file.write(chunk)
        first = f"{self._tokenizer()}|{kind.itemsize}"
        files.write(f"{name}.metadata", f"{first}\n{num_ids}\n{_for_people(num_ids)}".encode())
        return {"token_size": kind.itemsize, "tokens": num_ids}

    def _tokenizer(self) -> str:
        """Return the operator that made the ids."""
        makers = [item for item in self.manifest.operators if self.field in item.get("outputs", ())]
        return str(makers[-1]["label"]) if makers else "unknown"


def _for_people(num_ids: int) -> str:
    number = float(num_ids)
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {unit}T"
        number /= 1000
    return f"{number:.3g} TT"
