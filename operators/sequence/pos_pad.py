"""PosPad: a marker for each run of dropped tokens, so that positions tell where they were."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from operators.base import Batch, FieldSpec, Operator, OperatorConfig, Ragged
from operators.columns import as_ragged, take_batch
from operators.errors import RowErrors, SampleError

MARKER = -1


class PosPadConfig(OperatorConfig):
    """What a job may say about ``pos_pad``."""

    name: Literal["pos_pad"] = "pos_pad"


class PosPad(Operator[PosPadConfig]):
    """Say how a sequence of kept tokens and markers is laid out, one marker for each dropped run.

    Reads ``token_map`` [N] of a reducer that keeps tokens as they are. Adds ``pad_rows`` int32 [M],
    the row of ``features`` that stands at each place, in raster order, or -1 for a marker; and
    ``pad_positions`` int32 [M], where in the raster it is: a marker is at the last token of its
    run. A model puts one learnt vector in for every marker. A map that leads two tokens to one row
    is of a reducer that merges, and makes its row unusable.

    Source: "FocusUI: Efficient UI Grounding via Position-Preserving Visual Token Selection", its
    PosPad alone: the scores that it drops by are learnt. Checked: runs spelled out.
    """

    Config = PosPadConfig
    inputs: Mapping[str, FieldSpec] = {"token_map": FieldSpec("int16|int32", (None,))}
    outputs: Mapping[str, FieldSpec] = {
        "pad_rows": FieldSpec("int32", (None,)),
        "pad_positions": FieldSpec("int32", (None,)),
    }

    def metadata(self) -> Mapping[str, object]:
        """What stands for a marker."""
        return {"marker": MARKER}

    def __call__(self, batch: Batch) -> Batch:
        """Lay out every row."""
        maps = as_ragged(batch["token_map"])
        rows, starts = maps.values, maps.offsets[:-1]
        image = np.repeat(np.arange(len(maps)), maps.lengths)
        bad = _that_merge(rows, image)
        if len(bad):
            error = "pos_pad: token_map leads several tokens to one row, expected one to each"
            errors = {int(row): SampleError(error) for row in bad}
            raise RowErrors(
                errors, self(take_batch(batch, np.setdiff1d(np.arange(len(maps)), bad)))
            )
        is_dropped = rows < 0
        goes_on = np.zeros(len(rows), bool)  # the next token is dropped too, so a run is not over
        goes_on[:-1] = is_dropped[:-1] & is_dropped[1:] & (image[:-1] == image[1:])
        at = np.flatnonzero(~goes_on)
        offsets = np.searchsorted(at, maps.offsets)
        positions = at - starts[image[at]]
        return {
            "pad_rows": Ragged(
                np.where(is_dropped[at], MARKER, rows[at]).astype(np.int32), offsets
            ),
            "pad_positions": Ragged(positions.astype(np.int32), offsets),
        }


def _that_merge(rows: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return the images two of whose tokens lead to one row."""
    kept = np.flatnonzero(rows >= 0)
    keys = (image[kept] << 32) | rows[kept]
    different, counts = np.unique(keys, return_counts=True)
    merging: np.ndarray = np.unique(different[counts > 1] >> 32)
    return merging
