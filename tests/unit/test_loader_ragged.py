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


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("rest", [(), (2,)])
def test_nested_rows_are_the_rows(dtype: Any, rest: tuple[int, ...]) -> None:
    batch = ragged([2, 0, 3], dtype, rest)
    nested = batch.nested()
    assert nested.layout == torch.jagged
    assert nested.values().data_ptr() == batch.values.data_ptr()
    for i, row in enumerate(nested.unbind()):
        assert row.tolist() == batch[i].tolist()


def test_values_take_another_dtype() -> None:
    batch = ragged([2, 1], torch.uint16).to(torch.int64)
    assert batch.values.dtype == torch.int64
    assert batch[1].tolist() == [2]
