"""The device stage: where batches are cut, what stands in every slot, and what a bad row costs."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.base import Batch, FieldSpec, Ragged
from operators.errors import ContractError, RowErrors, SampleError, SetupError
from pipeline.stages.block import Block, PartitionState
from pipeline.stages.device import DeviceStage
from tests.unit.steps import (
    DropMultiplesOnDevice,
    Times10,
    Times10OnDevice,
    bind,
    block,
    end,
    new_state,
    through,
    values,
)


def run(
    *steps: Any, rows: int = 10, size: int = 4, dead: Sequence[int] = (), chunk: int = 3
) -> tuple[PartitionState, list[Block]]:
    """Send rows through a stage, in blocks of ``chunk`` input rows."""
    state = new_state("device")
    stage = DeviceStage("device", bind(*steps), size)
    blocks = []
    for first in range(0, rows, chunk):
        part = range(first, min(first + chunk, rows))
        live = [row for row in part if row not in dead]
        blocks.append(block(state, live, [row for row in part if row in dead]))
    return state, through(stage, state, blocks)


def reasons(state: PartitionState) -> dict[int, str]:
    return {item.row: f"{item.step}: {item.error}: {item.reason}" for item in state.rejected}


def test_batches_are_full_and_the_last_is_padded_with_a_live_row() -> None:
    op = Times10OnDevice()
    state, out = run(op)
    assert op.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 8, 8]]
    assert values(out, "y") == {i: 10 * i for i in range(10)}
    assert [b.num_rows for b in out] == [4, 4, 2, 0]
    assert [b.last for b in out] == [False, False, False, True]
    assert state.snapshot()["device"].samples == 10


def test_a_dead_slot_leaves_every_neighbour_in_its_batch_and_slot() -> None:
    whole, broken = Times10OnDevice(), Times10OnDevice()
    run(whole)
    _, out = run(broken, dead=[0, 5, 9])
    assert broken.calls == [[1, 1, 2, 3], [4, 4, 6, 7], [8, 8, 8, 8]]
    for before, after in zip(whole.calls, broken.calls, strict=True):
        for slot, value in enumerate(before):
            assert after[slot] == value or value in (0, 5, 9)
    assert set(values(out, "y")) == {1, 2, 3, 4, 6, 7, 8}


def test_dead_slots_of_a_block_without_rows_count() -> None:
    op = Times10OnDevice()
    _, out = run(op, rows=8, dead=[0, 1, 2, 3, 4], chunk=2)
    assert op.calls == [[5, 5, 6, 7]]  # a batch of dead slots alone is not computed
    assert values(out, "y") == {5: 50, 6: 60, 7: 70}


def test_a_row_that_raises_costs_only_itself() -> None:
    op = Times10OnDevice(raises={5: ValueError("no  such\nvalue")})
    state, out = run(op)
    assert values(out, "y") == {i: 10 * i for i in range(10) if i != 5}
    assert reasons(state) == {5: "times_10: SampleError: ValueError: no such value"}
    assert {len(call) for call in op.calls} == {4}  # a batch of another size may round otherwise
    assert op.calls[-2] == [4, 4, 6, 7]
    assert [b.dead.tolist() for b in out] == [[], [5], [], []]


def test_a_sample_error_keeps_its_words() -> None:
    state, _ = run(Times10OnDevice(raises={0: SampleError("row is odd")}))
    assert reasons(state) == {0: "times_10: SampleError: row is odd"}


def test_row_errors_need_no_second_call() -> None:
    op = Times10OnDevice(marks=[4, 7, 9])
    state, out = run(op)
    assert len(op.calls) == 3
    assert values(out, "y") == {i: 10 * i for i in range(10) if i not in (4, 7, 9)}
    assert sorted(reasons(state)) == [4, 7, 9]


@pytest.mark.parametrize("how", ["raises", "marks"])
def test_a_bad_row_that_pads_the_last_batch_is_one_bad_row(how: str) -> None:
    bad: Any = {"raises": {8: ValueError("bad")}, "marks": [8]}[how]
    state, out = run(Times10OnDevice(**{how: bad}))
    assert sorted(reasons(state)) == [8]
    assert set(values(out, "y")) == set(range(10)) - {8}


@pytest.mark.parametrize("how", ["raises", "marks"])
def test_all_rows_bad(how: str) -> None:
    bad: Any = {"raises": {i: ValueError("bad") for i in range(10)}, "marks": range(10)}[how]
    state, out = run(Times10OnDevice(**{how: bad}))
    assert values(out, "y") == {}
    assert sorted(reasons(state)) == list(range(10))
    assert sorted(np.concatenate([b.dead for b in out])) == list(range(10))
    assert state.error is None


def test_a_filter_counts_by_reason_and_later_steps_see_full_batches() -> None:
    op = Times10OnDevice()
    state, out = run(DropMultiplesOnDevice(), op)
    assert state.filtered == {"drop_multiples: three": 4, "drop_multiples: five": 1}
    assert values(out, "y") == {i: 10 * i for i in (1, 2, 4, 7, 8)}
    assert {len(call) for call in op.calls} == {4}
    assert state.rejected == []


def test_a_filter_that_drops_a_whole_batch() -> None:
    state = new_state("device")
    op = Times10OnDevice()
    stage = DeviceStage("device", bind(DropMultiplesOnDevice(), op), 2)
    out = through(stage, state, [block(state, [0, 3, 6, 7])])
    assert values(out, "y") == {7: 70}
    assert op.calls == [[6, 7]]  # tensors of the first step serve the second as they are


def test_a_filter_that_raises_for_one_row() -> None:
    state, out = run(DropMultiplesOnDevice(raises=[4]), Times10OnDevice())
    assert values(out, "y") == {i: 10 * i for i in (1, 2, 7, 8)}
    assert list(reasons(state)) == [4]


@pytest.mark.parametrize("bad", range(4))
def test_a_later_step_may_read_another_field_when_rows_are_gone(bad: int) -> None:
    """The second step's field goes to the device when there are fewer rows than slots."""
    second = Times10OnDevice("z", "w")
    state = new_state("device")
    chain = bind(
        Times10OnDevice(marks=[bad]),
        second,
        source={"x": FieldSpec("int64"), "z": FieldSpec("int64"), "key": FieldSpec("string")},
    )
    given = block(state, range(4))
    given.columns["z"] = np.arange(4) + 100
    out = through(DeviceStage("device", chain, 4), state, [given])
    assert state.error is None
    assert values(out, "w") == {i: 1000 + 10 * i for i in range(4) if i != bad}
    for slot in set(range(4)) - {bad}:
        assert second.calls[0][slot] == 100 + slot


def test_a_later_step_may_read_another_field_when_the_last_row_is_filtered() -> None:
    state = new_state("device")
    source = {"x": FieldSpec("int64"), "z": FieldSpec("int64"), "key": FieldSpec("string")}
    chain = bind(DropMultiplesOnDevice(), Times10OnDevice("z", "w"), source=source)
    given = block(state, [1, 2, 4, 6])
    given.columns["z"] = np.arange(4) + 100
    out = through(DeviceStage("device", chain, 4), state, [given])
    assert state.error is None
    assert values(out, "w") == {1: 1000, 2: 1010, 4: 1020}


def test_partitions_never_share_a_batch() -> None:
    op = Times10OnDevice()
    stage = DeviceStage("device", bind(op), 4)
    for index in range(2):
        state = new_state("device", index=index)
        through(stage, state, [block(state, range(5))])
    assert op.calls == [[0, 1, 2, 3], [4, 4, 4, 4]] * 2


@pytest.mark.parametrize(
    "error", [SetupError("weights are gone"), MemoryError("9 GiB"), ContractError("wrong")]
)
def test_what_is_no_rows_fault_fails_the_partition_and_not_the_next(error: Exception) -> None:
    op = Times10OnDevice(raises={5: error})
    stage = DeviceStage("device", bind(op), 4)
    state = new_state("device")
    out = through(stage, state, [block(state, range(3)), block(state, range(3, 7))])
    assert isinstance(state.error, SetupError | ContractError)
    assert out[-1].last
    after = new_state("device", index=1)
    assert values(through(stage, after, [block(after, range(3))]), "y") == {0: 0, 1: 10, 2: 20}
    assert after.error is None


def test_a_failed_partition_is_not_computed_further() -> None:
    op = Times10OnDevice(raises={0: SetupError("gone")})
    run(op)
    assert len(op.calls) == 1


def test_blocks_that_do_not_fit_together_fail_the_partition() -> None:
    state = new_state("device")
    odd = block(state, [3])
    odd.columns["key"] = np.array([3])
    stage = DeviceStage("device", bind(Times10OnDevice()), 4)
    out = through(stage, state, [block(state, range(3)), odd])
    assert state.error is not None
    assert out[-1].last


class OneRowTooFew(Times10OnDevice):
    def __call__(self, batch: Batch) -> Batch:
        return {"y": super().__call__(batch)["y"][:-1]}


class OfAnotherType(Times10OnDevice):
    def __call__(self, batch: Batch) -> Batch:
        return {"y": super().__call__(batch)["y"].float()}


@pytest.mark.parametrize("kind", [OneRowTooFew, OfAnotherType])
def test_an_operator_that_breaks_its_contract_fails_the_partition(
    kind: type[Times10OnDevice],
) -> None:
    state, out = run(kind(), rows=4)
    assert isinstance(state.error, ContractError)
    assert out[-1].last


def test_tensors_go_from_operator_to_operator_untouched() -> None:
    import torch

    first, second = Times10OnDevice("x", "y"), Times10OnDevice("y", "z")
    state = new_state("device")
    stage = DeviceStage("device", bind(first, second, keep=["key", "z"]), 4)
    out = through(stage, state, [block(state, range(4))])
    assert isinstance(second.given[0], torch.Tensor)
    assert second.given[0] is first.gave[0]
    assert second.given[0].data_ptr() == first.gave[0].data_ptr()
    assert values(out, "z") == {i: 100 * i for i in range(4)}
    assert sorted(out[0].columns) == ["key", "z"]
    assert isinstance(out[0].columns["z"], np.ndarray)


def test_cpu_operators_get_arrays_and_device_operators_tensors() -> None:
    import torch

    op = Times10OnDevice()
    run(op, rows=4)
    assert isinstance(op.given[0], torch.Tensor)
    assert op.given[0].dtype == torch.int64
    assert Times10.stage == "cpu"


class Repeated(Times10OnDevice):
    """Gives a row of value v a ragged row of v % 4 times 10 v."""

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        return {"y": FieldSpec("int64", (None,), vocab_size=1_000)}

    def __call__(self, batch: Batch) -> Batch:
        try:
            return {"y": self._ragged(super().__call__(batch)["y"].numpy())}
        except RowErrors as error:
            raise RowErrors(error.errors, {"y": self._ragged(error.good["y"].numpy())}) from None

    def _ragged(self, tens: np.ndarray) -> Ragged:
        lengths = tens // 10 % 4
        return Ragged(np.repeat(tens, lengths), np.concatenate(([0], np.cumsum(lengths))))


@pytest.mark.parametrize("how", ["nothing", "raises", "marks"])
def test_ragged_rows_follow_their_slots(how: str) -> None:
    """Past padding, a filter, and rows that are bad."""
    bad: Any = {
        "nothing": {},
        "raises": {"raises": {4: ValueError("bad")}},
        "marks": {"marks": [4]},
    }
    op = Repeated(**bad[how])
    state, out = run(op, DropMultiplesOnDevice(), rows=9, dead=[2])
    assert state.error is None
    found = {
        int(row): block.columns["y"][i].tolist()
        for block in out
        for i, row in enumerate(block.rows)
        if block.num_rows
    }
    expected = {row: [10 * row] * (row % 4) for row in (1, 4, 7, 8)}
    assert found == {row: ids for row, ids in expected.items() if how == "nothing" or row != 4}
    assert {len(call) for call in op.calls} == {4}
    assert state.snapshot()["device"].tokens == sum(map(len, found.values()))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    size=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 40), max_size=8),
    dead=st.sets(st.integers(0, 39)),
    marked=st.sets(st.integers(0, 39)),
    raising=st.sets(st.integers(0, 39), max_size=4),
)
def test_how_rows_arrive_changes_nothing(
    rows: int, size: int, cuts: list[int], dead: set[int], marked: set[int], raising: set[int]
) -> None:
    """One block, or any cuts: equal results, rejections, filtered rows, and equal batches."""

    def outcome(bounds: Sequence[int]) -> Any:
        op = Times10OnDevice(marks=marked, raises={i: ValueError("bad") for i in raising})
        last = Times10OnDevice("y", "z")
        state = new_state("device")
        stage = DeviceStage("device", bind(op, DropMultiplesOnDevice(), last), size)
        blocks = []
        for first, stop in pairwise(bounds):
            part = range(first, stop)
            blocks.append(block(state, [r for r in part if r not in dead], dead & set(part)))
        out = through(stage, state, blocks)
        assert state.error is None
        return op.calls, last.calls, values(out, "z"), reasons(state), dict(state.filtered)

    bounds = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    whole, parts = outcome([0, rows]), outcome(bounds)
    assert parts == whole
    live = set(range(rows)) - dead - marked - raising
    assert set(whole[2]) == {row for row in live if row % 3 and row % 5}
    assert len(whole[2]) + len(whole[3]) + sum(whole[4].values()) == rows - len(
        dead & set(range(rows))
    )


def test_the_end_of_an_empty_partition_passes() -> None:
    state = new_state("device")
    stage = DeviceStage("device", bind(Times10OnDevice()), 4)
    assert [b.last for b in stage(end(state))] == [True]
