"""MustDrop: the authors' merged windows, the rule spelled out, key tokens, mistakes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.reducers.base import sum_by_map
from tests.reducer_cases import batch_for, golden, reducer, tokens_of


@pytest.mark.parametrize(("file", "threshold"), [("12x12_w3", 0.8), ("12x12_w3_b2", 0.75)])
def test_golden(file: str, threshold: float) -> None:
    given, wanted = golden("mustdrop", file)
    x = given["x"][:, 1:]
    op = reducer("mustdrop", 144, threshold=threshold)
    tokens = tokens_of(x, cls_attention=torch.rand(len(x), 1, 1, 144))
    found = op.reduce(tokens)
    assert found.lengths is not None
    sizes = sum_by_map(tokens.sizes[..., None], found.token_map, 144)
    fewest = int(wanted["r"][0])  # of the batch: the authors merge no more windows of the others
    length = wanted["x"].shape[1] - 1
    merged = (found.lengths - 144) // -8
    for row in range(len(x)):
        assert merged[row] == (wanted["similarity"][row] >= threshold).sum()
        features, want = found.features[row], wanted["x"][row, 1:]
        torch.testing.assert_close(features[:fewest], want[:fewest], rtol=1e-5, atol=1e-5)
        assert torch.equal(sizes[row, :fewest, 0], wanted["size"][row, 1 : fewest + 1, 0])
        if merged[row] == fewest:
            assert found.lengths[row] == length
            torch.testing.assert_close(features[:length], want, rtol=1e-5, atol=1e-5)
    assert (merged == fewest).any()


@pytest.mark.parametrize("seed", range(12))
def test_the_rule(seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(6, 1, 3)) + 0.7 * random.normal(size=(6, 4, 3))  # windows, tokens
    grid = x.reshape(3, 2, 2, 2, 3).transpose(0, 2, 1, 3, 4).reshape(24, 3)  # 6 rows of 4
    attention = random.random(24)
    scores = []
    for window in x:
        unit = window / np.linalg.norm(window, axis=1, keepdims=True)
        pairs = [unit[i] @ unit[j] for i in range(4) for j in range(4) if i != j]
        scores.append(sum(pairs) / 12)
    order = [w for w in sorted(range(6), key=lambda w: -scores[w]) if scores[w] >= 0.5]
    members = {w: [w // 2 * 8 + w % 2 * 2 + step for step in (0, 1, 4, 5)] for w in range(6)}
    rows = [members[w] for w in order]
    rows += [[i] for i in range(24) if all(i not in row for row in rows)]
    op = reducer("mustdrop", 24, window=2, threshold=0.5, grid_width=4, key_share=0.2)
    found = op.reduce(
        tokens_of(
            torch.from_numpy(grid)[None].float(),
            cls_attention=torch.from_numpy(attention)[None, None, None].float(),
        )
    )
    assert found.lengths is not None
    assert found.lengths.tolist() == [len(rows)]
    for row, tokens in enumerate(rows):
        assert torch.nonzero(found.token_map[0] == row).flatten().tolist() == tokens
        np.testing.assert_allclose(found.features[0, row], grid[tokens].mean(axis=0), atol=1e-5)
    means = [attention[tokens].mean() for tokens in rows]
    keys = sorted(range(len(rows)), key=lambda i: -means[i])[: math.ceil(0.2 * len(rows))]
    assert torch.nonzero(found.more["key_token"][0]).flatten().tolist() == sorted(keys)


def test_key_tokens_are_written() -> None:
    op = reducer("mustdrop", 36, crops=(2,))
    assert op.outputs["key_token"] == FieldSpec("bool", (None,))
    out = op(batch_for(op, 3))
    assert out["key_token"].lengths.tolist() == out["sizes"].lengths.tolist()
    assert out["key_token"].values.dtype == np.bool_
    assert [int(np.asarray(row).sum()) for row in out["key_token"]] == [6, 6, 6]  # 3 of 36 twice


def test_a_window_with_padding_stays_apart() -> None:
    valid = torch.ones(1, 16, dtype=torch.bool)
    valid[0, 5] = False
    given = tokens_of(torch.ones(1, 16, 2), cls_attention=torch.full((1, 1, 1, 16), 0.1))
    found = reducer("mustdrop", 16, window=2).reduce(replace(given, valid=valid))
    assert found.lengths is not None
    assert found.lengths.tolist() == [3 + 3]
    assert found.token_map[0, [0, 1, 4, 5, 2, 8, 10]].tolist() == [3, 4, 5, -1, 0, 1, 2]


def test_windows_that_do_not_fill_the_grid_are_refused() -> None:
    with pytest.raises(ContractError, match="windows of 4 do not fill a grid of 6 x 6"):
        reducer("mustdrop", 36, window=4)
