"""Every token reducer with batches to try it on: signals as an encoder gives them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
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


def batch_for(op: Reducer[Any], rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random features and signals: attention in rows that sum to one."""
    random = np.random.default_rng(seed)
    batch = {}
    for name, spec in op.inputs.items():
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
    return Tokens(features, torch.ones(features.shape[:2]), **signals)


def golden(name: str, file: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return inputs and outputs of a recorded call of the authors' function."""
    folder = Path(__file__).parent / "golden" / "reducers" / name
    found = load_file(folder / f"{file}.safetensors")
    inputs = {key[3:]: value for key, value in found.items() if key.startswith("in.")}
    outputs = {key[4:]: value for key, value in found.items() if key.startswith("out.")}
    return inputs, outputs


def rows_of(batch: Batch, rows: list[int]) -> dict[str, torch.Tensor]:
    """Return some rows of a batch of tensors."""
    return {name: column[rows] for name, column in batch.items()}
