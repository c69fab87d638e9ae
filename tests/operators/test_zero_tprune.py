"""Zero-TPrune: the three stages spelled out, heads that are left out, mistakes."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.reducer_cases import reducer, tokens_of

LOW, HIGH = 0.01, 0.7


def ranked(attention: np.ndarray, there: list[int], rounds: int) -> dict[int, float]:
    """Weighted PageRank of attention [H, N, N] among some tokens, heads as root mean square."""
    kept = []
    every = []
    for head in attention:
        scores = dict.fromkeys(there, 1.0)
        for _ in range(rounds):
            got = {i: sum(head[j, i] * scores[j] for j in there) for i in there}
            mean = sum(got.values()) / len(there)
            scores = {i: got[i] / mean for i in there}
        variance = sum((s - 1) ** 2 for s in scores.values()) / len(there)
        every.append(scores)
        if LOW <= variance <= HIGH:
            kept.append(scores)
    heads = kept or every
    return {i: (sum(s[i] ** 2 for s in heads) / len(heads)) ** 0.5 for i in there}


@pytest.mark.parametrize("sharpness", [0.05, 1.0, 2.0])  # heads: too even, some, too uneven
@pytest.mark.parametrize("seed", range(6))
def test_the_stages(seed: int, sharpness: float) -> None:
    random = np.random.default_rng(seed)
    attention = np.exp(
        random.normal(size=(3, 11, 11)) * sharpness * np.array([1, 2, 3])[:, None, None]
    )
    attention /= attention.sum(axis=2, keepdims=True)
    keys = random.normal(size=(11, 2, 2))
    flat = keys.reshape(11, 4)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    first = ranked(attention, list(range(11)), 1)
    order = sorted(range(11), key=lambda i: -first[i])
    upper, lower = order[:6], order[6:]
    alike = sorted(lower, key=lambda i: -max(unit[i] @ unit[j] for j in upper))
    left = sorted(set(range(11)) - set(alike[:3]))  # half of the six that go
    last = ranked(attention, left, 4)
    wanted = sorted(sorted(left, key=lambda i: -last[i])[:5])
    op = reducer("zero_tprune", 11, keep=5, similar=0.5, rounds=4)
    found = op.reduce(
        tokens_of(
            torch.randn(1, 11, 3),
            attention=torch.from_numpy(attention)[None, None].float(),
            keys=torch.from_numpy(keys)[None].float(),
        )
    )
    assert found.index is not None
    assert found.index.tolist() == [wanted]


def test_at_most_half_go_because_they_are_alike() -> None:
    """All keys are equal: the lower half goes, the rest by rank."""
    attention = torch.zeros(1, 1, 1, 6, 6)
    attention[..., :] = torch.tensor([0.3, 0.25, 0.05, 0.2, 0.1, 0.1])
    tokens = tokens_of(torch.randn(1, 6, 3), attention=attention, keys=torch.ones(1, 6, 1, 2))
    for keep, wanted in ((4, [0, 1, 3, 5]), (2, [0, 1])):
        found = reducer("zero_tprune", 6, keep=keep, similar=1.0).reduce(tokens).index
        assert found is not None
        assert found.tolist() == [wanted]


def test_bounds_of_the_variance() -> None:
    with pytest.raises(ValidationError, match=r"min_variance 0.8 is above max_variance 0.7"):
        reducer("zero_tprune", 6, keep=2, min_variance=0.8)
