"""CenterCLIP: the authors' medoids, the rounds spelled out, segments of frames."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.reducers.unreduce import unreduce
from tests.reducer_cases import batch_for, golden, reducer, tokens_of


@pytest.mark.parametrize(
    ("file", "keep", "options"),
    [
        ("km_n98_k16", 16, {}),
        ("km_n64_k9_cos_prenorm", 9, {"distance": "cosine", "normalize": True}),
    ],
)
def test_golden(file: str, keep: int, options: dict[str, Any]) -> None:
    given, wanted = golden("centerclip", file)
    tokens = tokens_of(given["x"])
    op = reducer("centerclip", given["x"].shape[1], keep=keep, **options)
    found = op.reduce(tokens)
    assert found.index is not None
    assert torch.equal(found.index, wanted["medoids"])
    assert torch.equal(found.token_map, wanted["assign"])
    assert torch.equal(found.features, wanted["medoid_tokens"])
    op = reducer("centerclip", given["x"].shape[1], keep=keep, rows="means", **options)
    torch.testing.assert_close(
        op.reduce(tokens).features, wanted["cluster_means"], rtol=1e-5, atol=1e-5
    )


def test_golden_spectral() -> None:
    given, wanted = golden("centerclip", "spectral_heat_n64_k8")
    # Their whole graph; the first of the rows of equal norm is rounding, here as there the first.
    op = reducer("centerclip", 64, keep=8, algorithm="spectral", neighbours=64)
    found = op.reduce(tokens_of(given["x"]))
    for row in range(2):
        order: dict[int, int] = {}
        labels = [order.setdefault(int(slot), len(order)) for slot in found.token_map[row]]
        assert labels == wanted["assign_canonical"][row].tolist()


def reference(x: np.ndarray, k: int, first: int) -> tuple[list[int], list[int]]:
    """The greedy start from ``first`` and rounds until nothing moves, in plain Python."""
    num = len(x)
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)
    centres = [first]
    while len(centres) < k:
        left = [i for i in range(num) if i not in centres]
        centres.append(max(left, key=lambda i: min(apart[i, c] for c in centres)))
    while True:
        slots = [min(range(k), key=lambda s: apart[i, centres[s]]) for i in range(num)]
        groups = [[i for i in range(num) if slots[i] == s] for s in range(k)]
        moved = [min(group, key=lambda i: sum(apart[i, j] for j in group)) for group in groups]
        if moved == centres:
            break
        centres = moved
    centres.sort()
    return centres, [min(range(k), key=lambda s: apart[i, centres[s]]) for i in range(num)]


@pytest.mark.parametrize("seed", range(12))
def test_the_rounds(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(12, 3))
    centres, slots = reference(x, 4, int(np.linalg.norm(x, axis=1).argmax()))
    op = reducer("centerclip", 12, keep=4)
    found = op.reduce(tokens_of(torch.from_numpy(x).float()[None]))
    assert found.index is not None
    assert found.index[0].tolist() == centres
    assert found.token_map[0].tolist() == slots


@pytest.mark.parametrize("seed", range(4))
def test_the_spectrum(seed: int) -> None:
    """Three groups of points, well apart; the graph joins the two nearest."""
    random = np.random.default_rng(seed)
    group = random.permutation(np.repeat(np.arange(3), 4))
    x = random.normal(size=(12, 3)) * 0.3 + np.eye(3)[group] * 6
    squared = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    near = np.argsort(squared, axis=1)[:, :3]
    weights = np.zeros((12, 12))
    for i in range(12):
        for j in range(12):
            if j in near[i] or i in near[j]:
                weights[i, j] = np.exp(-squared[i, j] / 8)
    degree = weights.sum(axis=1)
    laplacian = (np.diag(degree) - weights) / np.sqrt(degree[:, None] * degree[None])
    vectors = np.linalg.svd(laplacian)[0][:, -3:]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    _, slots = reference(vectors, 3, 0)
    op = reducer("centerclip", 12, keep=3, algorithm="spectral", neighbours=3)
    found = op.reduce(tokens_of(torch.from_numpy(x).float()[None])).token_map[0]
    for i in range(12):
        for j in range(12):
            assert (found[i] == found[j]) == (slots[i] == slots[j]) == (group[i] == group[j])


def test_padding_is_joined_to_nothing_in_the_graph() -> None:
    x = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(1))
    valid = torch.zeros(1, 20, dtype=torch.bool)
    valid[0, 3:15] = True
    options: dict[str, Any] = {"algorithm": "spectral", "keep": 3, "neighbours": 5}
    found = reducer("centerclip", 20, **options).reduce(replace(tokens_of(x), valid=valid))
    alone = reducer("centerclip", 12, **options).reduce(tokens_of(x[:, 3:15]))
    assert torch.equal(found.token_map[0, 3:15], alone.token_map[0])


def test_frames_of_a_segment_are_clustered_together() -> None:
    op = reducer("centerclip", 9, keep=5, crops=(6,), frames=3)
    batch = batch_for(op, 2)
    out = op(batch)
    plain = reducer("centerclip", 27, keep=5)
    for row in range(2):
        alone = plain({"features": batch["features"][row].reshape(2, 27, 8)})
        assert torch.equal(out["features"][row], alone["features"].flatten(0, 1))
        assert torch.equal(out["sizes"][row], alone["sizes"].flatten())
        rows = alone["token_map"] + torch.tensor([[0], [5]])
        assert torch.equal(out["token_map"][row], rows.reshape(6, 9))
        dense, is_there = unreduce(out["features"][row].numpy(), out["token_map"][row].numpy())
        assert dense.shape == (6, 9, 8)
        assert is_there.all()


def test_frames_after_another_reducer_lead_back_to_the_encoder() -> None:
    first = reducer("divprune", 9, keep=4, crops=(4,))
    batch = batch_for(first, 2)
    between = {**first(batch)}
    given = {name: first.outputs[name] for name in ("token_map", "sizes")}
    op = reducer("centerclip", 4, keep=3, crops=(4,), frames=2, extra=given)
    out = op(between)
    alone = reducer("centerclip", 4, keep=3, crops=(4,), frames=2)(
        {"features": between["features"]}
    )
    assert torch.equal(out["features"], alone["features"])
    assert out["token_map"].shape == (2, 4, 9)
    for row, crop, token in np.ndindex(2, 4, 9):
        before = between["token_map"][row, crop, token]
        wanted = -1 if before < 0 else alone["token_map"][row, crop, before]
        assert out["token_map"][row, crop, token] == wanted
    assert out["sizes"].sum(dim=1).tolist() == [16, 16]


@pytest.mark.parametrize("crops", [(), (4,), (None,)])
def test_frames_that_are_no_whole_segments(crops: tuple[int | None, ...]) -> None:
    with pytest.raises(ContractError, match="frames=3 does not divide"):
        reducer("centerclip", 9, keep=3, crops=crops, frames=3)


def test_padded_frames_of_a_segment() -> None:
    mask = {"token_mask": FieldSpec("bool", (2, 6))}
    op = reducer("centerclip", 6, keep=5, crops=(2,), frames=2, extra=mask)
    batch = batch_for(op, 2)
    batch["token_mask"] = torch.ones(2, 2, 6, dtype=torch.bool)
    batch["token_mask"][1, :, 2:] = False
    out = op(batch)
    assert out["features"].lengths.tolist() == [5, 4]
    assert out["token_map"][1, :, :2].flatten().tolist() == [0, 1, 2, 3]
    assert (out["token_map"][1, :, 2:] == -1).all()
