"""Rows of a record batch as bytes, for formats that hold sample after sample."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import FieldSpec
from pipeline.export.base import flat


def row_bytes(
    batch: pa.RecordBatch, name: str, spec: FieldSpec
) -> tuple[Sequence[Any], Sequence[int]]:
    """Return the bytes of each row's value, and the length of its first dimension.

    Text is UTF-8; numbers are little-endian, without any header, and are views into one buffer.
    """
    column = batch.column(name)
    if not spec.is_numeric:
        texts: list[bytes] = column.cast(pa.binary()).to_pylist()
        return texts, [len(text) for text in texts]
    values, counts = flat(column, spec)
    width = values.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    ends: list[int] = (np.cumsum(counts) * width).tolist()
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)], counts.tolist()
