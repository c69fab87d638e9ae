"""VTC-CLS: the authors' indices, the sum over layers."""

import numpy as np
import pytest
import torch

from tests.reducer_cases import golden, reducer, tokens_of


@pytest.mark.parametrize(
    ("file", "start", "keep"), [("l12_start8_k32", 8, 32), ("l24_start14_k18", 14, 18)]
)
def test_golden(file: str, start: int, keep: int) -> None:
    given, wanted = golden("vtc_cls", file)
    attention = given["cls_attn"][None, start:-1]  # the last layer comes after the features
    op = reducer("vtc_cls", attention.shape[3], keep=keep, num_layers=attention.shape[1])
    features = given["hidden_states_minus2"][:, 1:]
    found = op.reduce(tokens_of(features, cls_attention=attention))
    assert found.index is not None
    assert torch.equal(found.index[0], wanted["keep_idx"])
    assert torch.equal(found.features, wanted["features"])


@pytest.mark.parametrize("seed", range(10))
def test_the_rule(seed: int) -> None:
    attention = np.random.default_rng(seed).integers(0, 3, size=(2, 2, 10)) / 4  # with ties
    scores = [
        sum(attention[layer, head, i] for layer in (0, 1) for head in (0, 1)) for i in range(10)
    ]
    wanted = sorted(sorted(range(10), key=lambda i: (-scores[i], i))[:4])
    op = reducer("vtc_cls", 10, keep=4, num_layers=2)
    signal = torch.from_numpy(attention)[None].float()
    found = op.reduce(tokens_of(torch.randn(1, 10, 3), cls_attention=signal))
    assert found.index is not None
    assert found.index.tolist() == [wanted]
