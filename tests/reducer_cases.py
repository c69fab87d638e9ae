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
        averages: Rows of the result are averages of the tokens that went into them.
        identity: Options with which it leaves every token as it is, in order; None where none do.
        crops: Of each image, for methods that need several.
        overlaps: Rows also hold tokens that the map sends elsewhere.
    """

    name: str
    digest: str
    options: Mapping[str, Any] = field(default_factory=dict)
    num_tokens: int = 36
    num_layers: int = 1
    averages: bool = True
    identity: Mapping[str, Any] | None = None
    crops: tuple[int | None, ...] = ()
    overlaps: bool = False


CASES = (
    ReducerCase("topk", "fc3f962d89c04412", {"keep": 9}, identity={"keep": 36, "order": "raster"}),
    ReducerCase("topk", "ac45a362357fc6ca", {"keep": 0.3, "order": "raster"}),
    ReducerCase("divprune", "62dd718ca7ec7f92", {"keep": 9}, identity={"keep": 36}),
    ReducerCase("divprune", "a95a4ba8f94d6bc6", {"keep": 0.25, "order": "selection"}),
    ReducerCase("tome", "e5bb50f35406e497", {"keep": 20}),
    ReducerCase("tome", "dbb151cbb99a6174", {"keep": 0.75, "metric": "features"}),
    ReducerCase(
        "evit",
        "c16b9a24fa68ede0",
        {"keep": 9},
        averages=False,
        identity={"keep": 36, "order": "raster"},
    ),
    ReducerCase("evit", "1729d44cad01f7d8", {"keep": 0.5, "order": "raster"}, averages=False),
    ReducerCase("ats", "a392117d07a30057", {"keep": 9}),
    ReducerCase("ats", "1322adcc5379ce61", {"keep": 0.5, "variant": "paper"}),
    ReducerCase("vtc_cls", "da4b06457e6316ab", {"keep": 9}, num_layers=3, identity={"keep": 36}),
    ReducerCase(
        "hiprune",
        "153b4399302c17c3",
        {"keep": 16, "alpha": 1.0},
        num_layers=2,
        identity={"keep": 36},
    ),
    ReducerCase(
        "hiprune",
        "a85d606f929c37f2",
        {"keep": 0.5, "alpha": 0.5, "class_query": False, "variant": "paper"},
        num_layers=2,
    ),
    ReducerCase("fopru", "814aff83b5f293fb", {"keep": 9}, identity={"keep": 36}),
    ReducerCase("fopru", "5048188b3e363bd9", {"keep": 0.5, "strategy": "row"}),
    ReducerCase("zero_tprune", "5f23d3676837ece7", {"keep": 9}, identity={"keep": 36}),
    ReducerCase("zero_tprune", "d57f8995e449c9d0", {"keep": 0.5, "similar": 1.0, "rounds": 30}),
    ReducerCase("mustdrop", "eee2bd2dcf384714", {"threshold": 0.0}, identity={"threshold": 1.0}),
    ReducerCase("mustdrop", "3cddd7af5b1406bd", {"threshold": -0.2, "window": 2}),
    ReducerCase("bat", "6fd48324f8482b6e", {"keep": 12, "matched": 0.3}),
    ReducerCase("bat", "150440c323ace4c2", {"keep": 0.5, "attentive": 0.0, "weights": "size"}),
    ReducerCase(
        "token_corr_compressor",
        "65a65a8a5cc7e82e",
        {"similarity": 0.4},
        num_layers=2,
        identity={"similarity": 1.0},
    ),
    ReducerCase(
        "token_corr_compressor", "dc91e471a2d00dee", {"similarity": 0.2, "repeats": 0.2, "least": 5}
    ),
    ReducerCase("vflowopt", "c52b183cdceec70d", {"keep": 0.4}),
    ReducerCase("vflowopt", "5a7636b42fb978da", {"keep": 20, "threshold": 1.0, "cell": 3}),
    ReducerCase("hired", "5c4c53cfd3018054", crops=(5,), num_layers=2),
    ReducerCase(
        "hired", "ded20af6a8bd23cb", {"keep": 0.3, "variant": "paper"}, crops=(5,), num_layers=2
    ),
    ReducerCase("globalcom2", "15fc22a03f9cf488", crops=(5,)),
    ReducerCase("globalcom2", "b4f8b2df206f165d", {"keep": 0.5, "variant": "paper"}, crops=(5,)),
    ReducerCase("tome_stride", "27bcea2791896539"),
    ReducerCase("tome_stride", "ba46d026cf751837", {"stride": 5, "metric": "features"}),
    ReducerCase("dart", "3bb07473f95eb124"),
    ReducerCase("dart", "97984c23187cd52d", {"keep": 20, "pivots": 3}),
    ReducerCase("m3_pool", "e483e0dba0e167b7", {"scales": (1, 9, 36)}, overlaps=True),
    ReducerCase("m3_pool", "b264eaf56be33f5c", {"scales": (9,)}, identity={"scales": (36,)}),
    ReducerCase("adaptive_pool", "5b3264f6d2cca287", {"grid": (3, 2)}, identity={"grid": (6, 6)}),
    ReducerCase("adaptive_pool", "ed4c8f6d1460e580", {"grid": (4, 5)}, overlaps=True),
    ReducerCase("testa", "7088dbba821b6980", num_tokens=9, crops=(6,)),
    ReducerCase(
        "testa", "982f97f89e882161", {"frames": 6, "tokens": 7, "metric": "features"}, 9, crops=(6,)
    ),
    ReducerCase("fastvggt", "b85ad56786bfda86", num_tokens=16, crops=(3,), overlaps=True),
    ReducerCase(
        "fastvggt",
        "02765b36e5013a05",
        {"keep": 35, "protect": 0.0, "variant": "paper"},
        16,
        crops=(3,),
    ),
    ReducerCase("sta", "793e8d67426b42c6", num_tokens=12, crops=(4,)),
    ReducerCase(
        "sta", "fa9dcc454051aebd", {"keep": 5, "slots": 4, "reverse": True, "metric": "features"}
    ),
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
    ReducerCase("expedit", "f1f2dc7368a760e7", {"clusters": (3, 3)}, averages=False),
    ReducerCase("super_tokens", "6b3b08b3e40ec35d", {"cell": (2, 3)}, averages=False),
    ReducerCase(
        "super_tokens", "3ab55880457b6e76", {"variant": "paper", "iterations": 3}, averages=False
    ),
    ReducerCase("todre", "68f41083f8d73f04", {"keep": 9}, identity={"keep": 36}),
    ReducerCase("todre", "eaafe2e47d2a91ac", {"keep": 9, "rule": "k_center", "pivot": "random"}),
    ReducerCase("random_tokens", "5b7f24880f3f3ee2", {"keep": 9}, identity={"keep": 36}),
    ReducerCase("uniform_tokens", "c19615da6756c14a", {"keep": 7}, identity={"keep": 36}),
    ReducerCase("uniform_tokens", "9663f48f357903f1", {"keep": 9, "pattern": "grid"}),
    ReducerCase("centerclip", "9eba095eaa47c4b4", {"keep": 4, "frames": 2}, 9, crops=(4,)),
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
    op.bind({**op.further_inputs, **fields})
    op.setup("cpu")
    return op


_LETTERS = {
    "cls_attention": "LHN",
    "attention": "LHNN",
    "keys": "NHD",
    "values": "NHD",
    "cls_logits": "LHN",
}


def batch_for(op: Reducer[Any], rows: int, seed: int = 0) -> dict[str, Any]:
    """Return random features and signals: attention in rows that sum to one."""
    random = np.random.default_rng(seed)
    batch: dict[str, Any] = {}
    for name, spec in op.inputs.items():
        if name == "key":
            batch[name] = keys_of(rows)
            continue
        shape = (rows, *(n or 0 for n in spec.shape))
        values = random.normal(size=shape)
        if name == "crop_grid":  # a square picture
            values = np.tile([2, (op.inputs["features"].shape[0] or 5) // 2, 300, 300], (rows, 1))
        if "attention" in name:
            values = np.exp(2 * values)
            values /= values.sum(axis=-1, keepdims=True)
        dtype = getattr(torch, spec.dtype.split("|")[0])
        batch[name] = torch.from_numpy(values).to(dtype)
    return batch


def keys_of(rows: int) -> pa.Array:
    """Return keys of samples."""
    return pa.array([f"sample-{i}" for i in range(rows)], pa.large_string())


def tokens_of(features: torch.Tensor, **signals: torch.Tensor) -> Tokens:
    """Return what ``reduce`` is given, for features [B, N, C] that stand for one token each."""
    more = {"key": keys_of(len(features))}
    return Tokens(features, torch.ones(features.shape[:2]), more=more, **signals)


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
