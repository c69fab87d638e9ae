"""Every token reducer with batches to try it on: signals as an encoder gives them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file

from operators import registry
from operators.base import Batch, FieldSpec
from operators.reducers.base import SIGNALS, Reducer, Tokens

HEADS, WIDTH = 2, 4


@dataclass(frozen=True)
class ReducerCase:
    """A reducer with options that fit ``num_tokens`` tokens.

    Attributes:
        name: Of the operator.
        digest: Of ``token_map`` and ``sizes`` on ``batch_for(op, 2)``: they never change.
        options: Of its config.
        num_tokens: N, a square where the method needs a grid.
        num_layers: Of the attention that it reads.
        identity: Options with which it leaves every token as it is, in order; None where none do.
    """

    name: str
    digest: str
    options: Mapping[str, Any] = field(default_factory=dict)
    num_tokens: int = 36
    num_layers: int = 1
    identity: Mapping[str, Any] | None = None


CASES = (
    ReducerCase("topk", "fc3f962d89c04412", {"keep": 9}, identity={"keep": 36, "order": "raster"}),
    ReducerCase("topk", "ac45a362357fc6ca", {"keep": 0.3, "order": "raster"}),
    ReducerCase("divprune", "62dd718ca7ec7f92", {"keep": 9}, identity={"keep": 36}),
    ReducerCase("divprune", "a95a4ba8f94d6bc6", {"keep": 0.25, "order": "selection"}),
    ReducerCase("tome", "e5bb50f35406e497", {"keep": 20}),
    ReducerCase("tome", "dbb151cbb99a6174", {"keep": 0.75, "metric": "features"}),
    ReducerCase("atc", "53f42ac7439be27a", {"keep": 9}, identity={"keep": 36}),
    ReducerCase(
        "atc", "02b9ce2b0bd7dfee", {"keep": 0.4, "linkage": "single", "metric": "features"}
    ),
    ReducerCase("atc", "0e45a7dfe4004c27", {"keep": 12, "linkage": "complete"}),
    ReducerCase(
        "kmedoids", "49a9e81f394fc7f7", {"keep": 9}, identity={"keep": 36, "order": "raster"}
    ),
    ReducerCase("kmedoids", "2614456763081d8e", {"keep": 0.3, "weights": "none", "iterations": 5}),
    ReducerCase(
        "dpc_knn", "64dae4d34c29ba4d", {"keep": 9}, identity={"keep": 36, "order": "raster"}
    ),
    ReducerCase("centerclip", "61abeceff4c2ca1e", {"keep": 9}, identity={"keep": 36}),
    ReducerCase("centerclip", "a030bff031e24f64", {"keep": 0.3, "algorithm": "spectral"}),
    ReducerCase(
        "centerclip", "49b99805647c9394", {"keep": 7, "distance": "cosine", "rows": "means"}
    ),
    ReducerCase("expedit", "f1f2dc7368a760e7", {"clusters": (3, 3)}),
    ReducerCase("super_tokens", "6b3b08b3e40ec35d", {"cell": (2, 3)}),
    ReducerCase("super_tokens", "3ab55880457b6e76", {"variant": "paper", "iterations": 3}),
    ReducerCase("todre", "68f41083f8d73f04", {"keep": 9}, identity={"keep": 36}),
    ReducerCase("todre", "eaafe2e47d2a91ac", {"keep": 9, "rule": "k_center", "pivot": "random"}),
    ReducerCase("random_tokens", "5b7f24880f3f3ee2", {"keep": 9}, identity={"keep": 36}),
    ReducerCase("uniform_tokens", "c19615da6756c14a", {"keep": 7}, identity={"keep": 36}),
    ReducerCase("uniform_tokens", "9663f48f357903f1", {"keep": 9, "pattern": "grid"}),
)


def reducer(
    name: str,
    num_tokens: int,
    *,
    channels: int = 8,
    num_layers: int = 1,
    crops: tuple[int | None, ...] = (),
    dtype: str = "float32",
    extra: Mapping[str, FieldSpec] | None = None,
    **options: Any,
) -> Reducer[Any]:
    """Return a reducer on the CPU, bound to features and whatever signals it asks for."""
    cls: Any = registry.get(name)
    op: Reducer[Any] = cls(cls.Config(name=name, device="cpu", **options))
    sizes = {"L": num_layers, "H": HEADS, "N": num_tokens, "D": WIDTH}
    fields = {"features": FieldSpec(dtype, (*crops, num_tokens, channels)), **(extra or {})}
    for signal in op.signals:
        shape = tuple(sizes[letter] for letter in _LETTERS[signal])
        fields[signal] = FieldSpec(SIGNALS[signal][0].dtype.split("|")[0], (*crops, *shape))
    op.bind(fields)
    op.setup("cpu")
    return op


_LETTERS = {"cls_attention": "LHN", "attention": "LHNN", "keys": "NHD", "values": "NHD"}


def batch_for(op: Reducer[Any], rows: int, seed: int = 0) -> dict[str, Any]:
    """Return random features and signals (attention in rows that sum to one), and keys."""
    random = np.random.default_rng(seed)
    batch: dict[str, Any] = {}
    for name, spec in op.inputs.items():
        if name == "key":
            batch[name] = pa.array([f"sample-{i}" for i in range(rows)], pa.large_string())
            continue
        shape = (rows, *(n or 0 for n in spec.shape))
        values = random.normal(size=shape)
        if "attention" in name:
            values = np.exp(2 * values)
            values /= values.sum(axis=-1, keepdims=True)
        dtype = getattr(torch, spec.dtype.split("|")[0])
        batch[name] = torch.from_numpy(values).to(dtype)
    return batch


def tokens_of(features: torch.Tensor, **signals: torch.Tensor) -> Tokens:
    """Return what ``reduce`` is given, for features [B, N, C] that stand for one token each."""
    names = tuple(f"sample-{i}" for i in range(len(features)))
    return Tokens(features, torch.ones(features.shape[:2]), names=names, **signals)


def golden(name: str, file: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return inputs and outputs of a recorded call of the authors' function."""
    folder = Path(__file__).parent / "golden" / "reducers" / name
    found = load_file(folder / f"{file}.safetensors")
    inputs = {key[3:]: value for key, value in found.items() if key.startswith("in.")}
    outputs = {key[4:]: value for key, value in found.items() if key.startswith("out.")}
    return inputs, outputs


def rows_of(batch: Batch, rows: list[int]) -> dict[str, Any]:
    """Return some rows of a batch of tensors, and of keys."""
    return {
        name: column.take(rows) if isinstance(column, pa.Array) else column[rows]
        for name, column in batch.items()
    }
