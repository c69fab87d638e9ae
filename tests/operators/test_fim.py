"""fim: a slow oracle, documents put together again, shares, sentinels, mistakes."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.base import FieldSpec, Invertible, Ragged
from operators.errors import ContractError, RowErrors
from operators.keyed_draws import draws_of_keys
from operators.sequence.fim import Fim, FimConfig
from operators.testing import assert_operator_contract
from tests.ragged_rows import Rows, ragged, rows_of, texts

FROZEN_SHA256 = "999113ae704807d3d438646be84b96d1f118ff2437c725950115a6cd4e3d3b4f"
PRE, SUF, MID = 50, 51, 52


def operator(**options: Any) -> Fim:
    op = Fim(FimConfig(**options))
    op.bind({"tokens": FieldSpec("uint8", (None,), 50)})
    return op


def keys(num: int) -> pa.Array:
    return texts(*(f"sample/{i}" for i in range(num)))


def rearrange_slowly(rows: Rows, rate: float, spm_rate: float, seed: int) -> Rows:
    draws = draws_of_keys(seed, "fim", keys(len(rows))).tolist()
    found = []
    for row, (moves, spm, *places) in zip(rows, draws, strict=True):
        a, b = sorted(int(place * (len(row) + 1)) for place in places)
        prefix, middle, suffix = row[:a], row[a:b], row[b:]
        if moves >= rate:
            found.append(row)
        elif spm < spm_rate:
            found.append([PRE, SUF, *suffix, MID, *prefix, *middle])
        else:
            found.append([PRE, *prefix, SUF, *suffix, MID, *middle])
    return found


@settings(max_examples=100, deadline=None)
@example(rows=[[], [1]], rate=1.0, spm_rate=0.0, seed=0)
@given(
    rows=st.lists(st.lists(st.integers(0, 49), max_size=9), min_size=1, max_size=6),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    spm_rate=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 3),
)
def test_any_documents_are_cut_as_a_loop_would_and_put_together_again(
    rows: Rows, rate: float, spm_rate: float, seed: int
) -> None:
    op = operator(rate=rate, spm_rate=spm_rate, seed=seed)
    batch = {"tokens": ragged(rows, "uint8"), "key": keys(len(rows))}
    out = assert_operator_contract(op, batch)
    assert rows_of(out["tokens"]) == rearrange_slowly(rows, rate, spm_rate, seed)
    assert isinstance(op, Invertible)
    assert rows_of(op.decode(out)["tokens"]) == rows


def test_ids_are_frozen() -> None:
    """Published shards hold documents cut at these places."""
    rows = [list(range(i)) for i in range(50)]
    out = operator(rate=0.7)({"tokens": ragged(rows, "uint8"), "key": keys(50)})["tokens"]
    assert hashlib.sha256(out.values.tobytes()).hexdigest() == FROZEN_SHA256


def test_shares_and_places_are_even() -> None:
    num, length = 20_000, 9
    op = operator(rate=0.6, spm_rate=0.25)
    tokens = np.tile(np.arange(length, dtype=np.uint8), num)
    rows = rows_of(
        op({"tokens": Ragged(tokens, length * np.arange(num + 1)), "key": keys(num)})["tokens"]
    )
    moved = [row for row in rows if row[0] == PRE]
    assert abs(len(moved) / num - 0.6) < 0.02
    # SPM, or PSM with an empty prefix: one of two even places 0..9 is 0.
    suffix_second = 0.25 + 0.75 * (1 - 0.9**2)
    assert abs(sum(row[1] == SUF for row in moved) / len(moved) - suffix_second) < 0.02
    suffixes = [row.index(MID) - row.index(SUF) - 1 for row in moved if row[1] != SUF]
    # Where the earlier place is not 0, the later one is even over pairs of 1..9.
    pairs = [max(a, b) for a in range(1, 10) for b in range(1, 10)]
    assert abs(np.mean(suffixes) - (9 - np.mean(pairs))) < 0.1


def test_sentinels_follow_the_vocabulary() -> None:
    op = operator()
    assert op.outputs == {"tokens": FieldSpec("uint8", (None,), 53)}
    assert op.metadata() == {
        "vocab_size": 53,
        "sentinel_ids": {"prefix": 50, "suffix": 51, "middle": 52},
    }


def test_a_vocabularys_own_sentinels_end_what_was_moved() -> None:
    sentinels = {"prefix": 40, "suffix": 300, "middle": 42, "end": 43}
    op = operator(rate=1, spm_rate=0, sentinels=sentinels)
    batch = {"tokens": ragged([[1, 2, 3], []], "uint8"), "key": keys(2)}
    out = assert_operator_contract(op, batch)["tokens"]
    assert op.outputs == {"tokens": FieldSpec("uint16", (None,), 301)}
    assert [(row[0], row[-1], sorted(row)) for row in rows_of(out)] == [
        (40, 43, [1, 2, 3, 40, 42, 43, 300]),
        (40, 43, [40, 42, 43, 300]),
    ]
    assert rows_of(op.decode({"tokens": out})["tokens"]) == [[1, 2, 3], []]


def test_document_with_a_sentinels_id_is_a_bad_row() -> None:
    op = operator(sentinels={"prefix": 40, "suffix": 41, "middle": 42})
    with pytest.raises(RowErrors) as caught:
        op({"tokens": ragged([[1], [2, 41, 40], [3]]), "key": keys(3)})
    errors = {row: str(error) for row, error in caught.value.errors.items()}
    assert errors == {1: "fim: the document holds 41, a sentinel's id"}
    assert len(caught.value.good["tokens"]) == 2


def test_unknown_vocabulary_is_refused() -> None:
    with pytest.raises(ContractError, match=r"vocabulary of `tokens` \(int64\[\*\]\) is not known"):
        Fim(FimConfig()).bind({"tokens": FieldSpec("int64", (None,))})


def test_sentinels_that_share_an_id_are_refused() -> None:
    with pytest.raises(ValidationError, match="share an id"):
        FimConfig.model_validate({"sentinels": {"prefix": 1, "suffix": 2, "middle": 1}})
