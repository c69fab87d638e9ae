"""The stage of CPU operators: what a block holds afterwards, and what is counted."""

from collections.abc import Mapping

import numpy as np
import pytest

from operators.base import Batch, FieldSpec
from operators.errors import ContractError, SetupError
from pipeline.stages.cpu import CpuStage
from tests.unit.steps import DropMultiples, Times10, bind, block, end, new_state, values


def test_steps_run_in_order_and_only_what_is_needed_is_kept() -> None:
    state = new_state("cpu")
    chain = bind(Times10("x", "y"), Times10("y", "z"), keep=["key", "z"])
    out = CpuStage("cpu", chain)(block(state, range(4)))
    assert values([out], "z") == {0: 0, 1: 100, 2: 200, 3: 300}
    assert sorted(out.columns) == ["key", "z"]
    counts = state.snapshot()["cpu"]
    assert (counts.samples, sorted(counts.steps)) == (4, ["times_10", "times_10#2"])


def test_rejected_rows_keep_a_dead_slot_and_filtered_rows_do_not() -> None:
    state = new_state("cpu")
    chain = bind(Times10(marks=[1, 5]), DropMultiples())
    out = CpuStage("cpu", chain)(block(state, range(8), dead=[8]))
    assert out.rows.tolist() == [2, 4, 7]
    assert sorted(out.dead.tolist()) == [1, 5, 8]
    assert state.filtered == {"drop_multiples#2: three": 3}
    assert [(item.row, item.key, item.uri) for item in state.rejected] == [
        (1, "k1", "a.tar"),
        (5, "k5", "a.tar"),
    ]
    assert out.columns["key"].to_pylist() == ["k2", "k4", "k7"]
    assert out.columns["y"].tolist() == [20, 40, 70]


@pytest.mark.parametrize("first", [Times10(marks=range(4)), DropMultiples("x")])
def test_later_steps_are_not_called_without_rows(first: Times10 | DropMultiples) -> None:
    state = new_state("cpu")
    later = Times10("x", "z")
    rows = [0, 3] if isinstance(first, DropMultiples) else [0, 1, 2, 3]
    out = CpuStage("cpu", bind(first, later, keep=["key", "z"]))(block(state, rows))
    assert later.calls == []
    assert out.num_rows == 0
    assert {name: len(column) for name, column in out.columns.items()} == {"key": 0, "z": 0}
    assert out.columns["z"].dtype == np.int64
    assert state.error is None


def test_a_block_without_rows_passes() -> None:
    state = new_state("cpu")
    op = Times10()
    assert CpuStage("cpu", bind(op))(block(state, [], dead=[0, 1])).dead.tolist() == [0, 1]
    assert CpuStage("cpu", bind(op))(end(state)).last
    assert op.calls == []


def test_an_error_of_the_run_fails_the_partition_and_stops_its_work() -> None:
    state = new_state("cpu")
    op = Times10(raises={2: SetupError("weights are gone")})
    stage = CpuStage("cpu", bind(op))
    assert stage(block(state, range(4))).num_rows == 4
    assert isinstance(state.error, SetupError)
    stage(block(state, range(4, 8)))
    assert len(op.calls) == 1


class OneRowTooMany(Times10):
    def __call__(self, batch: Batch) -> Batch:
        return {"y": np.append(super().__call__(batch)["y"], 0)}


class Forgetful(Times10):
    def __call__(self, batch: Batch) -> Batch:
        return {}


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (OneRowTooMany(), r"times_10: field 'y' has 5 rows for a batch of 4.*use a Filter"),
        (Forgetful(), r"times_10: adds \[\], expected \['y'\]"),
    ],
)
def test_a_broken_contract_is_told_and_fails_the_partition(op: Times10, message: str) -> None:
    state = new_state("cpu")
    CpuStage("cpu", bind(op))(block(state, range(4)))
    with pytest.raises(ContractError, match=message):
        raise state.error or AssertionError


def test_the_payload_is_what_the_source_gave() -> None:
    state = new_state("cpu", payload=["x", "text"])
    source = {"x": FieldSpec("int64"), "text": FieldSpec("string"), "key": FieldSpec("string")}
    given = block(state, range(3))
    given.columns["text"] = given.columns["key"]
    CpuStage("cpu", bind(Times10(marks=[1]), source=source))(given)
    assert state.rejected[0].payload == {"x": b"1", "text": b"k1"}


def test_tokens_are_counted_by_scalars_of_fields_with_a_vocabulary() -> None:
    class Ids(Times10):
        @property
        def outputs(self) -> Mapping[str, FieldSpec]:
            return {"y": FieldSpec("int64", (), vocab_size=100)}

    state = new_state("cpu")
    CpuStage("cpu", bind(Ids()))(block(state, range(4)))
    assert state.snapshot()["cpu"].tokens == 4
