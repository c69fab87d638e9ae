"""One suite over every token reducer: budgets, maps, ties, padding, precision, crops, chains."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from operators import registry
from operators.base import FieldSpec, Ragged
from operators.errors import RowErrors
from operators.reducers.base import Reducer, Reduction, Tokens
from tests.reducer_cases import CASES, ReducerCase, batch_for, reducer, rows_of, tokens_of

ROWS = 5


def label(case: ReducerCase) -> str:
    return f"{case.name}-{'-'.join(map(str, case.options.values()))}"


@pytest.fixture(params=CASES, ids=label)
def case(request: pytest.FixtureRequest) -> ReducerCase:
    found: ReducerCase = request.param
    return found


def build(case: ReducerCase, **more: Any) -> Reducer[Any]:
    options = {"num_layers": case.num_layers, **case.options, **more}
    return reducer(case.name, case.num_tokens, **options)


def reduce(op: Reducer[Any], batch: dict[str, torch.Tensor]) -> Reduction:
    signals = {name: batch[name] for name in op.signals}
    return op.reduce(tokens_of(batch["features"], **signals))


def lengths_of(reduction: Reduction) -> list[int]:
    rows, kept = reduction.features.shape[:2]
    return [kept] * rows if reduction.lengths is None else reduction.lengths.tolist()


def test_every_reducer_has_a_case() -> None:
    there = {name for name, cls in registry.all_classes().items() if issubclass(cls, Reducer)}
    assert {case.name for case in CASES} == there


def test_budget_map_and_sizes_agree(case: ReducerCase) -> None:
    op = build(case)
    out = op(batch_for(op, ROWS))
    assert set(out) == set(op.outputs)
    kept = op.num_kept(case.num_tokens)
    for row in range(ROWS):
        token_map = np.asarray(out["token_map"][row])
        sizes = np.asarray(out["sizes"][row])
        assert len(sizes) == len(out["features"][row])
        assert len(sizes) <= kept if op.is_adaptive else len(sizes) == kept
        counts = np.bincount(token_map[token_map >= 0], minlength=len(sizes))
        assert counts.tolist() == sizes.tolist()
        assert token_map.min() >= -1
        assert token_map.max() < len(sizes)


def test_selected_rows_are_copies_and_merged_ones_lie_between(case: ReducerCase) -> None:
    op = build(case)
    batch = batch_for(op, ROWS)
    reduction = reduce(op, batch)
    for row, length in enumerate(lengths_of(reduction)):
        given = batch["features"][row]
        for place in range(length):
            members = given[reduction.token_map[row] == place]
            found = reduction.features[row, place]
            if reduction.index is not None:
                assert torch.equal(found, given[reduction.index[row, place]])
            elif len(members):
                assert (found >= members.amin(dim=0) - 1e-4).all()
                assert (found <= members.amax(dim=0) + 1e-4).all()


def test_rows_do_not_depend_on_their_company(case: ReducerCase) -> None:
    op = build(case)
    batch = batch_for(op, ROWS)
    together = op(batch)
    backwards = op(rows_of(batch, list(range(ROWS))[::-1]))
    for name in together:
        for row in range(ROWS):
            alone = op(rows_of(batch, [row]))
            want = np.asarray(together[name][row])
            assert np.array_equal(want, np.asarray(alone[name][0])), name
            assert np.array_equal(want, np.asarray(backwards[name][ROWS - 1 - row])), name


def test_the_result_is_the_same_as_ever(case: ReducerCase) -> None:
    op = build(case)
    out = op(batch_for(op, 2))
    digest = hashlib.sha256()
    for name in ("token_map", "sizes"):
        column = out[name]
        digest.update(np.asarray(column.values if isinstance(column, Ragged) else column).tobytes())
    assert digest.hexdigest()[:16] == case.digest


def test_all_equal_features_give_a_whole_budget(case: ReducerCase) -> None:
    op = build(case)
    batch = batch_for(op, 2)
    batch["features"][:] = 1.0
    for name in op.signals:
        batch[name][:] = 1.0 / case.num_tokens
    out = op(batch)
    for row in range(2):
        length = len(np.asarray(out["sizes"][row]))
        assert length >= 1 if op.is_adaptive else length == op.num_kept(case.num_tokens)
        assert np.isfinite(np.asarray(out["features"][row])).all()


def test_duplicates_are_different_tokens(case: ReducerCase) -> None:
    op = build(case)
    batch = batch_for(op, 2)
    for column in batch.values():
        if column.dim() == 3:  # features: the second half repeats the first
            column[:, column.shape[1] // 2 :] = column[:, : column.shape[1] - column.shape[1] // 2]
    reduction = reduce(op, batch)
    if reduction.index is not None:
        for row, length in enumerate(lengths_of(reduction)):
            kept = reduction.index[row, :length].tolist()
            assert len(set(kept)) == len(kept)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(case: ReducerCase, wrong: float) -> None:
    op = build(case)
    batch = batch_for(op, ROWS)
    good = op(rows_of(batch, [0, 2, 3, 4]))
    batch["features"][1, 3, 2] = wrong
    with pytest.raises(RowErrors) as caught:
        op(batch)
    assert list(caught.value.errors) == [1]
    assert "NaN or infinity" in str(caught.value.errors[1])
    for name, column in caught.value.good.items():
        for row in range(ROWS - 1):
            assert np.array_equal(np.asarray(column[row]), np.asarray(good[name][row])), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_goes_in_and_comes_out(case: ReducerCase, dtype: str) -> None:
    wide = build(case)
    half = build(case, dtype=dtype)
    batch = batch_for(wide, 2)
    batch["features"] = batch["features"].to(getattr(torch, dtype))
    found = reduce(half, batch)
    wanted = reduce(wide, {**batch, "features": batch["features"].float()})
    assert found.features.dtype == batch["features"].dtype
    assert torch.equal(found.token_map, wanted.token_map)  # distances are float32
    torch.testing.assert_close(found.features.float(), wanted.features, rtol=0.02, atol=0.02)


def test_budget_of_all_is_the_identity(case: ReducerCase) -> None:
    if case.identity is None:
        pytest.skip("the method always leaves fewer")
    op = build(replace(case, options=case.identity))
    batch = batch_for(op, 2)
    out = op(batch)
    assert torch.equal(out["features"], batch["features"])
    assert np.array_equal(out["token_map"], np.tile(np.arange(case.num_tokens), (2, 1)))


def test_crops_are_reduced_one_by_one(case: ReducerCase) -> None:
    plain = build(case)
    if plain.is_adaptive:
        pytest.skip("see the test of crops of different lengths")
    op = build(case, crops=(3,))
    batch = batch_for(op, 2)
    out = op(batch)
    for row in range(2):
        alone = plain({name: column[row] for name, column in batch.items()})
        for name in alone:
            assert torch.equal(alone[name], out[name][row]), name


def test_padding_is_dropped_and_has_no_influence(case: ReducerCase) -> None:
    op = build(case, extra={"token_mask": FieldSpec("bool", (case.num_tokens,))})
    if op.needs_grid:
        pytest.skip("the method reads a whole grid")
    batch = batch_for(op, 2)
    mask = torch.ones(2, case.num_tokens, dtype=torch.bool)
    mask[1, ::5] = False
    batch["token_mask"] = mask
    out = op(batch)
    assert (np.asarray(out["token_map"][1])[::5] == -1).all()
    other = {name: column.clone() for name, column in batch.items()}
    other["features"][1, ::5] = 7.0
    again = op(other)
    for name in out:
        assert (
            np.array_equal(out[name].values, again[name].values)
            if isinstance(out[name], Ragged)
            else np.array_equal(out[name], again[name])
        ), name


def test_signals_are_cut_when_a_later_operator_asks(case: ReducerCase) -> None:
    keys = {"keys": FieldSpec("float32", (case.num_tokens, 2, 4))}
    op = build(case)
    given = {"features": FieldSpec("float32", (case.num_tokens, 8)), **keys}
    given |= {name: op.inputs[name] for name in op.signals}
    op.provide(frozenset({"keys"}))
    op.bind(given)
    batch = batch_for(op, 2)
    out = op(batch)
    kept = op.num_kept(case.num_tokens)
    assert tuple(out["keys"].shape) == (2, kept, 2, 4)
    tokens = Tokens(batch["features"], torch.ones(2, case.num_tokens))
    signals = {name: batch[name] for name in op.signals}
    reduction = op.reduce(replace(tokens, **signals))
    if reduction.index is not None:
        for row, length in enumerate(lengths_of(reduction)):
            want = batch["keys"][row][reduction.index[row, :length]]
            assert torch.equal(out["keys"][row, :length], want)
