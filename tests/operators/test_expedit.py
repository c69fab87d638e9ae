"""Expedit: the authors' clusters and reconstructions, and the rules spelled out."""

from typing import Any

import numpy as np
import pytest
import torch

from operators.base import FieldSpec
from operators.errors import ContractError
from operators.reducers.unreduce import reconstruct, unreduce
from tests.reducer_cases import batch_for, golden, reducer, tokens_of

FIELDS = ("reconstruction_index", "reconstruction_weights")


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("12x12_to_6x6", {"clusters": (6, 6), "neighbours": 10}),
        (
            "14x10_to_5x4_t1",
            {
                "clusters": (5, 4),
                "grid": (14, 10),
                "iterations": 3,
                "temperature": 1.0,
                "radius": 1,
                "neighbours": 4,
            },
        ),
    ],
)
def test_golden(file: str, options: dict[str, Any]) -> None:
    given, wanted = golden("expedit", file)
    x = given["x"].flatten(1, 2)
    found = reducer("expedit", x.shape[1], **options).reduce(tokens_of(x))
    close: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.features, wanted["centroids"].flatten(1, 2), **close)
    assert torch.equal(found.token_map, wanted["hard_labels"])
    index, weights = (found.extra[name] for name in FIELDS)
    dense = reconstruct(given["z"], index, weights)
    # Theirs is 3e-5 from float64: distances are differences of large numbers.
    torch.testing.assert_close(dense, wanted["reconstructed"], rtol=1e-4, atol=1e-4)
    for row, z in enumerate(given["z"].numpy()):
        placed, _ = unreduce(z, found.token_map[row].numpy())
        assert np.array_equal(placed, wanted["naive_unpooled"][row].numpy())
        again = reconstruct(z, index[row].numpy(), weights[row].numpy())
        np.testing.assert_allclose(again, dense[row].numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", ["authors", "paper"])
@pytest.mark.parametrize("seed", range(4))
def test_the_rules(seed: int, variant: str) -> None:
    """Three rows of four tokens become two rows of two clusters; cells of rows overlap."""
    tau, kept = 0.3, 3
    x = np.random.default_rng(seed).normal(size=(12, 3))
    rows = ((0, 1), (1, 2))
    members = [[4 * r + c for r in rs for c in cs] for rs in rows for cs in ((0, 1), (2, 3))]
    centres = np.array([x[cell].mean(axis=0) for cell in members])
    home = {i: (int((i // 4) * 2 / 3), (i % 4) // 2) for i in range(12)}
    for _ in range(2):
        share = np.zeros((12, 4))
        for i in range(12):
            for k in range(4):
                if home[i] == (k // 2, k % 2):  # radius 0
                    share[i, k] = np.exp(-tau * ((x[i] - centres[k]) ** 2).sum())
            share[i] /= share[i].sum()
        centres = share.T @ x / share.sum(axis=0)[:, None]
    op = reducer(
        "expedit",
        12,
        clusters=(2, 2),
        grid=(3, 4),
        iterations=2,
        temperature=tau,
        radius=0,
        neighbours=kept,
        variant=variant,
    )
    found = op.reduce(tokens_of(torch.from_numpy(x).float()[None]))
    np.testing.assert_allclose(found.features[0].numpy(), centres, rtol=1e-4, atol=1e-5)
    z = np.random.default_rng(99).normal(size=(4, 5)).astype(np.float32)
    dense = reconstruct(z, *(found.extra[name][0].numpy() for name in FIELDS))
    for i in range(12):
        apart = ((x[i] - centres) ** 2).sum(axis=1)
        assert found.token_map[0, i] == apart.argmin()
        weight = np.exp(-tau * apart)
        weight[np.argsort(-weight)[kept:]] = 0
        weight /= np.linalg.norm(weight) if variant == "authors" else weight.sum()
        np.testing.assert_allclose(dense[i], weight @ z, rtol=1e-4, atol=1e-5)


def test_a_radius_reaches_further() -> None:
    x = torch.randn(1, 36, 4, generator=torch.Generator().manual_seed(0))
    near, far = (
        reducer("expedit", 36, clusters=(3, 3), radius=radius, temperature=1).reduce(tokens_of(x))
        for radius in (0, 2)
    )
    assert not torch.equal(near.features, far.features)


def test_reconstruction_is_written_on_request_for_every_crop() -> None:
    op = reducer("expedit", 36, clusters=(3, 3), neighbours=4, crops=(2,))
    assert not set(FIELDS) & set(op.outputs)
    op.provide(frozenset(FIELDS))
    assert op.outputs["reconstruction_index"] == FieldSpec("int16", (2, 36, 4))
    batch = batch_for(op, 3)
    out = op(batch)
    assert out["reconstruction_index"].dtype == torch.int16
    dense = reconstruct(out["features"], *(out[name] for name in FIELDS))
    assert dense.shape == (3, 2, 36, 8)
    again = reconstruct(out["features"].numpy(), *(out[name].numpy() for name in FIELDS))
    np.testing.assert_allclose(again, dense.numpy(), rtol=1e-5, atol=1e-6)


def test_weights_of_large_features_do_not_underflow() -> None:
    x = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0)) * 1e4
    op = reducer("expedit", 16, clusters=(2, 2), temperature=1)
    weights = op.reduce(tokens_of(x)).extra["reconstruction_weights"]
    torch.testing.assert_close(weights.norm(dim=2), torch.ones(1, 16))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"clusters": (7, 2)}, r"clusters=\[7, 2\] of a grid of \[6, 6\]"),
        ({"clusters": (2, 2), "grid": (5, 7)}, r"36 tokens are not grid=\[5, 7\]"),
        (
            {"clusters": (2, 2), "extra": {"token_mask": FieldSpec("bool", (36,))}},
            "token_mask says that some tokens are padding",
        ),
    ],
)
def test_grids_that_do_not_fit(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ContractError, match=match):
        reducer("expedit", 36, **options)


def test_tokens_that_are_no_square() -> None:
    with pytest.raises(ContractError, match="35 tokens are no square"):
        reducer("expedit", 35, clusters=(2, 2))
