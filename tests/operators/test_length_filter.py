"""length_filter: a slow oracle on ragged and dense rows, and the bounds that make no sense."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import Ragged
from operators.sequence.length_filter import LengthFilter, LengthFilterConfig

BOUND = st.none() | st.integers(1, 6)


def ragged(lengths: list[int]) -> Ragged:
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return Ragged(np.zeros(offsets[-1], np.uint16), offsets)


def judge(length: int, low: int | None, high: int | None) -> int:
    if low is not None and length < low:
        return 1
    return 2 if high is not None and length > high else 0


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(0, 8), max_size=8), low=BOUND, high=BOUND)
def test_ragged_rows_are_judged_one_by_one(
    lengths: list[int], low: int | None, high: int | None
) -> None:
    if (low is None and high is None) or (low or 0) > (high or 9):
        with pytest.raises(ValidationError):
            LengthFilterConfig(min_length=low, max_length=high)
        return
    verdict = LengthFilter(LengthFilterConfig(min_length=low, max_length=high))(
        {"tokens": ragged(lengths)}
    )
    assert verdict.reasons == ("too_short", "too_long")
    assert verdict.codes.dtype == np.uint8
    assert verdict.codes.tolist() == [judge(length, low, high) for length in lengths]


@pytest.mark.parametrize(("width", "code"), [(1, 1), (2, 0), (4, 0), (5, 2)])
def test_dense_rows_all_get_one_verdict(width: int, code: int) -> None:
    op = LengthFilter(LengthFilterConfig(min_length=2, max_length=4))
    verdict = op({"tokens": np.zeros((3, width), np.uint8)})
    assert verdict.codes.tolist() == [code] * 3


def test_two_streams_are_refused_by_the_spec() -> None:
    from operators.base import FieldSpec

    wanted = LengthFilter(LengthFilterConfig(min_length=2)).inputs["tokens"]
    assert wanted.accepts(FieldSpec("uint16", (None,), 300))
    assert wanted.accepts(FieldSpec("uint16", (256,), 300))
    assert not wanted.accepts(FieldSpec("uint16", (None, 2), 300))


def test_no_bound_says_what_to_give() -> None:
    with pytest.raises(ValidationError, match="neither min_length nor max_length is set"):
        LengthFilterConfig()


def test_crossed_bounds_show_both() -> None:
    with pytest.raises(ValidationError, match="min_length=9 is above max_length=3"):
        LengthFilterConfig(min_length=9, max_length=3)


def test_bound_of_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        LengthFilterConfig(min_length=0)
