"""One suite over every token reducer: budgets, maps, ties, padding, precision, crops, chains."""

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from operators import registry
from operators.base import FieldSpec, Ragged
from operators.errors import ContractError, RowErrors
from operators.reducers.base import Reducer, Reduction
from tests.reducer_cases import CASES, ReducerCase, batch_for, reducer, rows_of

ROWS = 5


def label(case: ReducerCase) -> str:
    return f"{case.name}-{'-'.join(map(str, case.options.values()))}"


@pytest.fixture(params=CASES, ids=label)
def case(request: pytest.FixtureRequest) -> ReducerCase:
    found: ReducerCase = request.param
    return found


def build(case: ReducerCase, **more: Any) -> Reducer[Any]:
    options = {"num_layers": case.num_layers, "crops": case.crops, **case.options, **more}
    return reducer(case.name, case.num_tokens, **options)


def reduce(op: Reducer[Any], batch: dict[str, torch.Tensor]) -> Reduction:
    return op.reduce(op.tokens(batch))


def tokens_in_a_row(op: Reducer[Any], case: ReducerCase) -> int:
    crops = math.prod(n or 1 for n in case.crops) if op.is_joint else 1
    return case.num_tokens * crops


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
    kept = op.num_kept(tokens_in_a_row(op, case))
    if not op.is_joint:
        kept *= math.prod(n or 1 for n in case.crops)
    for row in range(ROWS):
        token_map = np.asarray(out["token_map"][row])
        sizes = np.asarray(out["sizes"][row])
        assert len(sizes) == len(out["features"][row])
        assert len(sizes) <= kept if op.is_adaptive else len(sizes) == kept
        counts = np.bincount(token_map[token_map >= 0], minlength=len(sizes))
        assert (counts <= sizes).all() if case.overlaps else counts.tolist() == sizes.tolist()
        assert token_map.min() >= -1
        assert token_map.max() < len(sizes)


def test_selected_rows_are_copies_and_merged_ones_lie_between(case: ReducerCase) -> None:
    op = build(case)
    tokens = op.tokens(batch_for(op, ROWS))
    reduction = op.reduce(tokens)
    for row, length in enumerate(lengths_of(reduction)):
        given = tokens.features[row]
        for place in range(length):
            members = given[reduction.token_map[row] == place]
            found = reduction.features[row, place]
            if reduction.index is not None:
                assert torch.equal(found, given[reduction.index[row, place]])
            elif len(members) and case.averages and not case.overlaps:
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
        whole = op.num_kept(tokens_in_a_row(op, case))
        assert length >= 1 if op.is_adaptive else length == whole
        assert np.isfinite(np.asarray(out["features"][row])).all()


def test_duplicates_are_different_tokens(case: ReducerCase) -> None:
    op = build(case)
    batch = batch_for(op, 2)
    half = case.num_tokens // 2
    batch["features"][..., half:, :] = batch["features"][..., : case.num_tokens - half, :]
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
    batch["features"][1, ..., 3, 2] = wrong
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
    found = out["features"]
    features = torch.from_numpy(found.values) if isinstance(found, Ragged) else found.flatten(0, 1)
    assert torch.equal(features, batch["features"].flatten(0, 1))
    assert np.array_equal(out["token_map"], np.tile(np.arange(case.num_tokens), (2, 1)))


def test_crops_are_reduced_one_by_one(case: ReducerCase) -> None:
    cls: Any = registry.get(case.name)
    if cls.is_adaptive or cls.is_joint:
        pytest.skip("see the tests of crops of different lengths, and of all together")
    plain = build(case)
    op = build(case, crops=(3,))
    batch = batch_for(op, 2)
    out = op(batch)
    for row in range(2):
        crops = {name: column[row] for name, column in batch.items() if name != "key"}
        if "key" in batch:
            names = [f"sample-{row}", f"sample-{row}\0001", f"sample-{row}\0002"]
            crops["key"] = pa.array(names, pa.large_string())
        alone = plain(crops)
        for name in alone:
            assert torch.equal(alone[name], out[name][row]), name


def test_padding_is_dropped_and_has_no_influence(case: ReducerCase) -> None:
    shape = (*case.crops, case.num_tokens)
    mask_given = {"token_mask": FieldSpec("bool", shape)}
    if build(case).needs_whole:
        with pytest.raises(ContractError, match="without padding"):
            build(case, extra=mask_given)
        return
    op = build(case, extra=mask_given)
    batch = batch_for(op, 2)
    mask = torch.ones(2, *(n or 0 for n in shape), dtype=torch.bool)
    mask[1, ..., ::5] = False
    batch["token_mask"] = mask
    out = op(batch)
    assert (np.asarray(out["token_map"][1])[..., ::5] == -1).all()
    other = {**batch, "features": batch["features"].clone()}
    other["features"][1, ..., ::5, :] = 7.0
    again = op(other)
    for name in out:
        assert (
            np.array_equal(out[name].values, again[name].values)
            if isinstance(out[name], Ragged)
            else np.array_equal(out[name], again[name])
        ), name


@pytest.mark.parametrize("num_real", [0, 3])
def test_fewer_tokens_than_the_budget(case: ReducerCase, num_real: int) -> None:
    if build(case).needs_whole or case.crops:
        pytest.skip("the method reads no padding, or budgets of several crops")
    op = build(case, extra={"token_mask": FieldSpec("bool", (case.num_tokens,))})
    batch = batch_for(op, 2)
    mask = torch.zeros(2, case.num_tokens, dtype=torch.bool)
    mask[0] = True
    mask[1, 5 : 5 + num_real] = True
    batch["token_mask"] = mask
    out = op(batch)
    token_map, sizes = np.asarray(out["token_map"][1]), out["sizes"][1]
    assert (token_map[~mask[1].numpy()] == -1).all()
    assert token_map.max() < len(sizes)
    assert np.isfinite(out["features"][1]).all()


def test_signals_are_cut_when_a_later_operator_asks(case: ReducerCase) -> None:
    keys = {"keys": FieldSpec("float32", (*case.crops, case.num_tokens, 2, 4))}
    op = build(case)
    if "keys" not in op.offers or (op.is_adaptive and case.crops):
        pytest.skip("there is no such number of tokens, or rows mean no such thing")
    given = {"features": FieldSpec("float32", (*case.crops, case.num_tokens, 8)), **keys}
    given |= {name: op.inputs[name] for name in (*op.signals, *op.further_inputs)}
    op.provide(frozenset({"keys"}))
    op.bind(given)
    batch = batch_for(op, 2)
    out = op(batch)
    kept = op.num_kept(tokens_in_a_row(op, case))
    assert tuple(out["keys"].shape) == (2, kept, 2, 4)
    reduction = reduce(op, batch)
    if reduction.index is not None:
        for row, length in enumerate(lengths_of(reduction)):
            want = batch["keys"][row].reshape(-1, 2, 4)[reduction.index[row, :length]]
            assert torch.equal(out["keys"][row, :length], want)
