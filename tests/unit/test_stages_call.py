"""Calling an operator: which rows are to blame, and for what."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.base import Batch, FieldSpec, Operator, OperatorConfig, Ragged
from operators.errors import ContractError, RowErrors, SampleError, SetupError
from pipeline.errors import TransientError
from pipeline.stages.call import call_on_rows, call_on_slots, take_rows
from tests.unit.steps import DropMultiples, Times10, Times10OnDevice

CALLS: list[Callable[..., Any]] = [call_on_rows, call_on_slots]


def numbers(count: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(count)}


@pytest.mark.parametrize("call", CALLS)
def test_good_rows_cost_one_call(call: Callable[..., Any]) -> None:
    op = Times10()
    result, errors = call(op, numbers(5), 5)
    assert result["y"].tolist() == [0, 10, 20, 30, 40]
    assert (errors, len(op.calls)) == ({}, 1)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    raising=st.sets(st.integers(0, 39)),
    marked=st.sets(st.integers(0, 39)),
)
def test_exactly_the_bad_rows_are_found(count: int, raising: set[int], marked: set[int]) -> None:
    op = Times10(raises={i: ValueError("bad") for i in raising}, marks=marked)
    result, errors = call_on_rows(op, numbers(count), count)
    bad = (raising | marked) & set(range(count))
    assert set(errors) == bad
    good = [10 * i for i in range(count) if i not in bad]
    assert (result["y"].tolist() if result is not None else []) == good


@settings(max_examples=60, deadline=None)
@given(slots=st.integers(1, 12), raising=st.sets(st.integers(0, 11)))
def test_slots_keep_their_places(slots: int, raising: set[int]) -> None:
    op = Times10OnDevice(raises={i: ValueError("bad") for i in raising})
    result, errors = call_on_slots(op, numbers(slots), slots)
    bad = raising & set(range(slots))
    assert set(errors) == bad
    assert {len(call) for call in op.calls} == {slots}
    if len(bad) == slots:
        assert result is None
        return
    for slot in set(range(slots)) - bad:
        assert result["y"][slot] == 10 * slot
    assert len(result["y"]) == slots


def test_one_bad_row_of_many_costs_few_calls() -> None:
    op = Times10(raises={700: ValueError("bad")})
    _, errors = call_on_rows(op, numbers(1024), 1024)
    assert set(errors) == {700}
    assert len(op.calls) == 21  # the whole, then two halves ten times


def test_ragged_text_and_lists_are_halved_too() -> None:
    class Joined(Operator[OperatorConfig]):
        Config = OperatorConfig
        inputs: Mapping[str, FieldSpec] = {
            "text": FieldSpec("string"),
            "image": FieldSpec("pillow"),
        }
        outputs: Mapping[str, FieldSpec] = {"ids": FieldSpec("int64", (None,))}

        def __call__(self, batch: Batch) -> Batch:
            parts = [len(text.as_py()) * [i] for text, i in zip(*batch.values(), strict=True)]
            if 2 in batch["image"]:
                raise KeyError("two")
            offsets = np.cumsum([0, *map(len, parts)])
            return {"ids": Ragged(np.concatenate(parts).astype(np.int64), offsets)}

    batch = {"text": pa.array(["a", "", "ccc", "dd"], pa.large_string()), "image": [0, 1, 2, 3]}
    result, errors = call_on_rows(Joined(OperatorConfig(name="joined")), batch, 4)
    assert [result["ids"][i].tolist() for i in range(3)] == [[0], [], [3, 3]]
    assert [str(error) for error in errors.values()] == ["KeyError: 'two'"]


def test_verdicts_of_halves_are_joined() -> None:
    verdict, errors = call_on_rows(DropMultiples(raises=[4]), numbers(8), 8)
    assert list(errors) == [4]
    assert verdict.codes.tolist() == [1, 0, 0, 1, 2, 1, 0]
    assert verdict.reasons == ("three", "five")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "error", [SetupError("no GPU"), ContractError("wrong"), TransientError("the store is away")]
)
def test_errors_of_the_run_are_no_rows_fault(call: Callable[..., Any], error: Exception) -> None:
    op = Times10(raises={2: error})
    with pytest.raises(type(error)):
        call(op, numbers(4), 4)
    assert len(op.calls) == 1


@pytest.mark.parametrize("call", CALLS)
def test_no_memory_blames_nobody_and_says_what_to_do(call: Callable[..., Any]) -> None:
    with pytest.raises(SetupError, match=r"times_10: out of memory.*lower batch_size"):
        call(Times10(raises={2: MemoryError("9 GiB")}), numbers(4), 4)


@pytest.mark.parametrize("call", CALLS)
def test_accelerator_without_memory_blames_nobody(call: Callable[..., Any]) -> None:
    class OutOfMemoryError(RuntimeError):  # the name that torch.cuda gives it
        pass

    with pytest.raises(SetupError, match="out of memory"):
        call(Times10(raises={2: OutOfMemoryError("9 GiB")}), numbers(4), 4)


class RustPanic(BaseException):
    """What pyo3 raises when a library written in Rust panics: no ``Exception``."""


@pytest.mark.parametrize("call", CALLS)
def test_a_panic_of_a_rust_library_is_a_rows_fault(call: Callable[..., Any]) -> None:
    result, errors = call(Times10(raises={2: RustPanic("index out of bounds")}), numbers(4), 4)
    assert {row: str(error) for row, error in errors.items()} == {
        2: "RustPanic: index out of bounds"
    }
    assert [result["y"][i] for i in (0, 1)] == [0, 10]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_a_wish_to_stop_is_no_rows_fault(call: Callable[..., Any], error: BaseException) -> None:
    with pytest.raises(type(error)):
        call(Times10(raises={2: error}), numbers(4), 4)


@pytest.mark.parametrize("call", CALLS)
def test_reasons_are_one_line_and_short(call: Callable[..., Any]) -> None:
    _, errors = call(Times10(raises={0: ValueError("a\n  b\t" + "c" * 500)}), numbers(1), 1)
    assert str(errors[0]).startswith("ValueError: a b ccc")
    assert len(str(errors[0])) == len("ValueError: ") + 300


@pytest.mark.parametrize("call", CALLS)
def test_all_rows_marked(call: Callable[..., Any]) -> None:
    result, errors = call(Times10(marks=range(3)), numbers(3), 3)
    assert result is None
    assert sorted(errors) == [0, 1, 2]


def test_row_errors_in_a_half_count_from_the_whole() -> None:
    op = Times10(marks=[6], raises={1: ValueError("bad")})
    result, errors = call_on_rows(op, numbers(8), 8)
    assert {row: str(error) for row, error in errors.items()} == {
        1: "ValueError: bad",
        6: "marked 6",
    }
    assert result["y"].tolist() == [0, 20, 30, 40, 50, 70]


def test_tensors_are_taken_where_they_are() -> None:
    import torch

    taken = take_rows(torch.arange(5) * 2, np.array([3, 3, 0]))
    assert taken.tolist() == [6, 6, 0]
    assert take_rows(np.arange(5), np.array([1])).tolist() == [1]


def test_slots_with_an_error_hold_a_copy_of_a_good_one() -> None:
    result, _ = call_on_slots(Times10OnDevice(marks=[0, 3]), numbers(4), 4)
    assert result["y"].tolist()[1:3] == [10, 20]
    assert set(result["y"].tolist()) == {10, 20}


def test_a_row_error_of_the_only_row() -> None:
    class Refuses(Times10):
        def __call__(self, batch: Batch) -> Batch:
            raise RowErrors({0: SampleError("no")}, {"y": batch["x"][:0]})

    result, errors = call_on_rows(Refuses(), numbers(1), 1)
    assert result is None
    assert str(errors[0]) == "no"
