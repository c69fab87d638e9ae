"""ToMe with a stride: the authors' features, and the matching spelled out."""

import numpy as np
import pytest
import torch

from operators.errors import ContractError
from tests.reducer_cases import golden, reducer, tokens_of


def test_golden() -> None:
    given, wanted = golden("tome", "kth_stride")
    op = reducer("tome_stride", 66, stride=4)
    found = op.reduce(tokens_of(given["x"], keys=given["metric"][:, :, None]))
    torch.testing.assert_close(found.features, wanted["merged_mean"], rtol=1e-5, atol=1e-5)
    assert (found.token_map[:, 64:] == -1).all()
    rows = found.token_map[:, :64, None].expand(-1, -1, 24)
    torch.testing.assert_close(
        found.features.gather(1, rows), wanted["unmerged"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_matching(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(11, 4)).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    left = [2, 5, 8]
    wanted = [
        left.index(n) if n in left else max(range(3), key=lambda k: (unit[n] @ unit[left[k]], -k))
        for n in range(9)
    ]
    op = reducer("tome_stride", 11, stride=3, metric="features")
    found = op.reduce(tokens_of(torch.from_numpy(x)[None]))
    assert found.token_map[0].tolist() == [*wanted, -1, -1]
    for row in range(3):
        members = [n for n in range(9) if wanted[n] == row]
        mean = x[members].mean(axis=0)
        np.testing.assert_allclose(found.features[0, row], mean, rtol=1e-5, atol=1e-5)


def test_a_stride_beyond_the_tokens_is_refused() -> None:
    with pytest.raises(ContractError, match="stride=9 is more than the 8 tokens"):
        reducer("tome_stride", 8, stride=9)
