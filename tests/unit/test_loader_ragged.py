"""RaggedBatch: padding against a slow oracle, for every dtype that is stored."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ContractError
from pipeline.loader import RaggedBatch

DTYPES = [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bool]


def ragged(lengths: list[int], dtype: Any, rest: tuple[int, ...] = ()) -> RaggedBatch:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    num = int(offsets[-1])
    values = torch.arange(num * (2 if rest else 1)).reshape(num, *rest).to(dtype)
    return RaggedBatch(values, offsets)


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), max_size=5),
    length=st.none() | st.integers(0, 7),
    dtype=st.sampled_from(DTYPES),
    rest=st.sampled_from([(), (2,)]),
)
def test_padded_rows_are_the_rows(
    lengths: list[int], length: int | None, dtype: Any, rest: tuple[int, ...]
) -> None:
    batch = ragged(lengths, dtype, rest)
    rows, mask = batch.padded(1, length)
    width = max(lengths, default=0) if length is None else length
    assert rows.shape == (len(lengths), width, *rest)
    assert rows.dtype == dtype
    assert batch.lengths.tolist() == lengths
    for i, num in enumerate(lengths):
        kept = min(num, width)
        assert rows[i, :kept].tolist() == batch[i][:kept].tolist()
        assert all(torch.full(rest, 1).tolist() == value for value in rows[i, kept:].tolist())
        assert mask[i].tolist() == [True] * kept + [False] * (width - kept)


def test_value_that_the_dtype_cannot_hold_is_refused() -> None:
    with pytest.raises(ContractError, match=r"value -100 does not fit uint16 \[0, 65535\]"):
        ragged([1], torch.uint16).padded(-100)
