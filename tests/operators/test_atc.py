"""ATC: the authors' partitions, SciPy's trees, and the merging spelled out."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from operators.reducers.atc import Linkage, agglomerate
from tests.reducer_cases import golden, reducer, tokens_of

LINKAGES: tuple[Linkage, ...] = ("single", "average", "complete")


def canonical(labels: np.ndarray) -> list[int]:
    """Number clusters by their first tokens."""
    order: dict[int, int] = {}
    return [order.setdefault(int(label), len(order)) for label in labels]


@pytest.mark.parametrize(
    ("file", "kind"),
    [("average_cls", "average"), ("complete_cls", "complete"), ("single_nocls", "single")],
)
def test_golden(file: str, kind: str) -> None:
    given, wanted = golden("atc", file)
    first = 0 if kind == "single" else 1  # without the class token, which they protect
    labels = wanted["labels"][:, first:] - first
    kept = int(labels.max()) + 1
    keys = given["keys"][:, first:, None]
    op = reducer("atc", keys.shape[1], keep=kept, linkage=kind)
    tokens = tokens_of(given["x"][:, first:], keys=keys)
    for sizes, suffix in ((given["size"][:, first:, 0], ""), (None, "_unit_size")):
        weighed = tokens if sizes is None else replace(tokens, sizes=sizes)
        found = op.reduce(weighed)
        canon = wanted["labels_canonical"][:, first:] - first
        assert torch.equal(found.token_map, canon)
        for row in range(len(labels)):
            rows = torch.empty(kept, dtype=torch.int64)
            rows[canon[row]] = labels[row]
            name = f"x{suffix}"
            mine = wanted[name][row][first:][rows]
            torch.testing.assert_close(found.features[row], mine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", LINKAGES)
@pytest.mark.parametrize("seed", range(8))
def test_the_trees_are_those_of_scipy(kind: Linkage, seed: int) -> None:
    random = np.random.default_rng(seed)
    num = int(random.integers(5, 40))
    x = random.normal(size=(3, num, 4))
    unit = x / np.linalg.norm(x, axis=2, keepdims=True)
    distances = 1 - unit @ unit.transpose(0, 2, 1)
    for row in range(3):
        np.fill_diagonal(distances[row], 0)
    for kept in {1, 2, num // 2 + 1, num - 1, num}:
        found = agglomerate(torch.from_numpy(distances).float(), kept, kind)
        for row in range(3):
            tree = linkage(squareform(distances[row], checks=False), kind)
            wanted = fcluster(tree, kept, "maxclust")
            assert found[row].tolist() == canonical(wanted)


@pytest.mark.parametrize("kind", LINKAGES)
@pytest.mark.parametrize("seed", range(5))
def test_the_merging(kind: Linkage, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(10, 3)).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    apart = 1 - unit @ unit.T
    hows: dict[str, Callable[[np.ndarray], float]] = {
        "single": np.min,
        "average": np.mean,
        "complete": np.max,
    }
    how = hows[kind]
    clusters = [[i] for i in range(10)]
    while len(clusters) > 4:
        pairs = [(a, b) for a in range(len(clusters)) for b in range(a)]
        a, b = min(pairs, key=lambda p: how(apart[np.ix_(clusters[p[0]], clusters[p[1]])]))
        clusters[b] += clusters.pop(a)
    clusters.sort(key=min)
    op = reducer("atc", 10, keep=4, linkage=kind, metric="features")
    found = op.reduce(tokens_of(torch.from_numpy(x)[None]))
    for row, members in enumerate(clusters):
        assert torch.nonzero(found.token_map[0] == row).flatten().tolist() == sorted(members)
        wanted = x[members].mean(axis=0)
        np.testing.assert_allclose(found.features[0, row].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_of_equal_pairs_the_first_is_merged() -> None:
    found = agglomerate(torch.ones(1, 5, 5), 3, "average")
    assert found.tolist() == [[0, 0, 0, 1, 2]]


def test_rows_with_padding_keep_their_budget() -> None:
    x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 5:] = False
    op = reducer("atc", 9, keep=4, metric="features")
    found = op.reduce(replace(tokens_of(x), valid=valid))
    alone = reducer("atc", 5, keep=4, metric="features").reduce(tokens_of(x[1:, :5]))
    assert found.token_map[1].tolist() == [*alone.token_map[0].tolist(), -1, -1, -1, -1]
    assert found.lengths is not None
    assert found.lengths.tolist() == [4, 4]
