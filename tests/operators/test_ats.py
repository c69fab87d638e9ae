"""ATS: the recorded samples, the rule spelled out, how many samples there are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.reducer_cases import golden, reducer, tokens_of


@pytest.mark.parametrize(
    ("file", "keep"), [("n64_k17", 16), ("n36_k20_peaky", 19), ("n64_k27_fullgrid", 26)]
)
def test_golden(file: str, keep: int) -> None:
    given, wanted = golden("ats", file)
    attention, value = given["attn_cls_row"][:, :, 1:], given["value"][:, :, 1:]
    op = reducer("ats", attention.shape[2], keep=keep)
    features = torch.randn(*attention.shape[::2], 3)
    found = op.reduce(
        tokens_of(features, cls_attention=attention[:, None], values=value.transpose(1, 2))
    )
    assert found.index is not None
    assert found.lengths is not None
    for row, mask in enumerate(wanted["mask"].bool()):
        index = wanted["token_ids"][row, mask][1:] - 1  # without the class token
        assert torch.equal(found.index[row, : found.lengths[row]], index)
        assert torch.equal(found.features[row, : len(index)], features[row, index])


@pytest.mark.parametrize("keep", [1, 2, 5, 8, 12])
@pytest.mark.parametrize("seed", range(4))
def test_the_rule(seed: int, keep: int) -> None:
    random = np.random.default_rng(seed)
    attention, value = random.random((2, 12)) ** 4, random.normal(size=(12, 2, 3))
    scores = [sum(attention[h, n] * np.linalg.norm(value[n, h]) for h in (0, 1)) for n in range(12)]
    sums = np.cumsum(scores) / sum(scores)
    wanted = set()
    for i in range(keep):
        height = (2 * i + 1) / (2 * keep)
        wanted.add(min(range(12), key=lambda n: (abs(sums[n] - height), n)))
    found = reducer("ats", 12, keep=keep, variant="paper").reduce(
        tokens_of(
            torch.randn(1, 12, 3),
            cls_attention=torch.from_numpy(attention)[None, None].float(),
            values=torch.from_numpy(value)[None].float(),
        )
    )
    assert found.index is not None
    assert found.lengths is not None
    assert found.index[0, : found.lengths[0]].tolist() == sorted(wanted)


def test_rounding_may_add_a_sample() -> None:
    fuller = [keep for keep in range(1, 51) if reducer("ats", 64, keep=keep).num_kept(64) > keep]
    assert fuller == [2, 6, 11, 13, 18, 26, 33, 34, 35, 38, 41, 46, 47, 50]
    assert reducer("ats", 64, keep=26, variant="paper").num_kept(64) == 26


def test_padding_is_not_sampled() -> None:
    """What counts is the result of the same tokens without it."""
    given = tokens_of(
        torch.randn(1, 8, 3),
        cls_attention=torch.rand(1, 1, 2, 8),
        values=torch.randn(1, 8, 2, 4),
    )
    valid = torch.tensor([[True, False, True, True, True, False, True, False]])
    op = reducer("ats", 8, keep=4)
    found = op.reduce(replace(given, valid=valid))
    few = tokens_of(
        given.features[:, valid[0]],
        cls_attention=given.signal("cls_attention")[..., valid[0]],
        values=given.signal("values")[:, valid[0]],
    )
    alone = reducer("ats", 5, keep=4).reduce(few)
    assert found.lengths is not None
    assert alone.lengths is not None
    assert found.lengths.tolist() == alone.lengths.tolist()
    assert torch.equal(found.token_map[valid], alone.token_map[0])
