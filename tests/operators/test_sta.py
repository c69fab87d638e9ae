"""STA: the authors' tokens at three stages, and the accumulation spelled out."""

import numpy as np
import pytest
import torch

from operators.errors import ContractError
from tests.reducer_cases import golden, reducer, tokens_of


@pytest.mark.parametrize(
    ("file", "slots", "dropped", "reverse"),
    [("layer0_T8", 8, 6, False), ("layer4_T4", 4, 10, True), ("layer8_T2", 2, 12, False)],
)
def test_golden(file: str, slots: int, dropped: int, reverse: bool) -> None:
    given, wanted = golden("sta", file)
    num, width = given["x"].shape[1:]
    keep = num // slots - dropped
    op = reducer("sta", num, channels=width, keep=keep, slots=slots, reverse=reverse)
    found = op.reduce(tokens_of(given["x"], keys=given["keys"][:, :, None]))
    assert torch.equal(found.index, wanted["keep_idx"])
    assert torch.equal(found.features, wanted["x"])


def brute_force(x: np.ndarray, keep: int) -> list[list[int]]:
    """Tokens of each slot that are kept, in order, from features [T, N, C]."""
    unit = x / np.linalg.norm(x, axis=2, keepdims=True)
    num = x.shape[1]
    odd = list(range(1, num, 2))
    best = {a: max(unit[0, a] @ unit[0, b] for b in odd) for a in range(0, num, 2)}
    listed = odd + sorted(best, key=lambda a: (best[a], a))
    chosen, before, scores = [listed[:keep]], unit[0][listed], None
    for slot in range(1, len(x)):
        flow = np.exp(unit[slot] @ before.T)
        flow /= flow.sum(axis=0)
        total = flow.sum(axis=1) if scores is None else flow @ scores
        loud = np.abs(x[slot]).sum(axis=1)
        rank = total * (1 - (loud - loud.min()) / (loud.max() - loud.min()))
        listed = sorted(range(num), key=lambda n: (rank[n], n))[:keep]
        chosen.append(listed)
        before, scores = unit[slot][listed], total[listed] / total[listed].sum()
    return chosen


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_definition(seed: int, reverse: bool) -> None:
    x = np.random.default_rng(seed).normal(size=(4, 7, 5))
    turned = brute_force(x[::-1] if reverse else x, 4)
    wanted = turned[::-1] if reverse else turned
    op = reducer("sta", 7, channels=5, crops=(4,), keep=4, metric="features", reverse=reverse)
    out = op({"features": torch.from_numpy(x)[None].float()})
    rows = np.argsort(np.where(out["token_map"] < 0, 99, out["token_map"]).reshape(-1))[:16]
    assert rows.tolist() == [slot * 7 + n for slot in range(4) for n in wanted[slot]]


def test_stages_in_a_row() -> None:
    first = reducer("sta", 6, crops=(4,), keep=5, metric="features")
    second = reducer(
        "sta", 20, keep=7, slots=2, reverse=True, metric="features",
        extra={name: first.outputs[name] for name in ("token_map", "sizes")},
    )  # fmt: skip
    features = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    out = second(first({"features": features}))
    assert out["features"].shape == (2, 14, 8)
    assert out["token_map"].shape == (2, 4, 6)
    for image in range(2):
        is_kept = out["token_map"][image] >= 0
        rows = out["features"][image][out["token_map"][image][is_kept].long()]
        assert torch.equal(rows, features[image][is_kept])


def test_slots_divide_the_tokens() -> None:
    with pytest.raises(ContractError, match="slots=5 of 36 tokens, which are not divided by it"):
        reducer("sta", 36, slots=5)
    with pytest.raises(ContractError, match="which are no frames"):
        reducer("sta", 36)
