"""Write token ids as characters, so that whatever reads documents can read them."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa

from operators.base import Batch, FieldSpec, Operator, OperatorConfig, Ragged
from operators.columns import as_ragged, take_batch
from operators.errors import RowErrors, SampleError
from operators.sequence.vocabulary import ANY_INTEGERS, ids_out_of_range
from operators.text.text_column import check_no_nulls, text_of_bytes, utf8_bytes

_GAP_AT, _GAP = 0xD800, 0x800  # surrogates, which are no characters
MOST_IDS = 0x110000 - _GAP
"""Ids that have a character."""


class IdsAsTextConfig(OperatorConfig):
    """What a job may say about ``ids_as_text``."""

    name: Literal["ids_as_text"] = "ids_as_text"


class IdsAsText(Operator[IdsAsTextConfig]):
    """Write each id as one character: that of the same number, or 2,048 more from 0xD800 on.

    Reads ``tokens`` [T], adds ``text``, which is there to be trained on (``visual_bpe``) or counted
    and means nothing to a reader. An id of 1,112,064 or more, or below 0, makes its row unusable.

    Checked against Python's ``chr``, and that ``decode`` gives the ids again. One core writes 60
    million ids a second.
    """

    Config = IdsAsTextConfig
    inputs: Mapping[str, FieldSpec] = {"tokens": FieldSpec(ANY_INTEGERS, (None,))}
    outputs: Mapping[str, FieldSpec] = {"text": FieldSpec("string")}

    def __call__(self, batch: Batch) -> Batch:
        """Write every row."""
        rows = as_ragged(batch["tokens"])
        bad = ids_out_of_range(rows.values, rows.offsets, MOST_IDS)
        if bad:
            errors = {
                row: SampleError(f"ids_as_text: id {found} has no character (0 to {MOST_IDS - 1})")
                for row, found in bad.items()
            }
            good = take_batch(batch, np.setdiff1d(np.arange(len(rows)), list(bad)))
            raise RowErrors(errors, self(good))
        return {"text": text_of_ids(rows)}

    def decode(self, batch: Batch) -> Batch:
        """Return ``tokens`` of ``text``, as uint32."""
        return {"tokens": ids_of_text(batch["text"])}


def text_of_ids(rows: Ragged) -> pa.Array:
    """Return rows of ids below ``MOST_IDS`` as large_string [N]."""
    codes = rows.values.astype(np.uint32)
    codes += np.where(codes >= _GAP_AT, _GAP, 0).astype(np.uint32)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    bounds = np.concatenate(([0], np.cumsum(widths)))[rows.offsets]
    spelled = codes.astype("<u4").tobytes().decode("utf-32-le").encode()
    return text_of_bytes(Ragged(np.frombuffer(spelled, np.uint8), bounds))


def ids_of_text(texts: pa.Array) -> Ragged:
    """Return the ids, uint32, of texts that ``text_of_ids`` wrote."""
    check_no_nulls(texts, "ids_as_text")
    rows = utf8_bytes(texts)
    is_first = (rows.values & 0xC0) != 0x80
    offsets = np.concatenate(([0], np.cumsum(is_first)))[rows.offsets]
    codes = np.frombuffer(rows.values.tobytes().decode().encode("utf-32-le"), "<u4")
    return Ragged(codes - np.where(codes >= _GAP_AT, _GAP, 0).astype(np.uint32), offsets)
