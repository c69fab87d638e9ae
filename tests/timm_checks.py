"""vision_encoder over timm, against timm without fused attention: ``python -m tests.timm_checks``.

A process of its own, because timm imports torchvision, and where none is installed beside torch
a stand-in takes its place: the models need nothing of it. Prints JSON: check -> what was wrong.
"""

import contextlib
import importlib
import json
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from operators.errors import ContractError, SetupError
from operators.testing import assert_operator_contract
from tests.encoder_models import encode, encoder, pixels, spec_of

SIDE, LAYERS, HEADS, WIDTH = 32, 4, 2, 16
SIGNALS = ("attention", "cls_attention", "cls_logits", "cls", "keys", "values")
CONFIG: dict[str, Any] = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.5],
    "interpolation": "bicubic",
}
MEASURES = {"depth": LAYERS, "num_heads": HEADS, "embed_dim": WIDTH, "img_size": SIDE}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {"patch_size": 8, "init_values": 0.1}),
    "norms of queries and keys": ("vit_tiny_patch16_224", {"patch_size": 8, "qk_norm": True}),
    "registers": ("vit_tiny_patch16_224", {"patch_size": 8, "reg_tokens": 3}),
    "registers alone": (
        "vit_tiny_patch16_224",
        {"patch_size": 8, "reg_tokens": 3, "class_token": False, "global_pool": "avg"},
    ),
    "no class token": (
        "vit_base_patch16_siglip_224",
        {"patch_size": 8, "class_token": False, "global_pool": "map"},
    ),
    "rotary positions": ("vit_small_patch16_dinov3", {"patch_size": 8}),
    "rotary positions of each layer": ("vit_small_patch16_rope_mixed_224", {"patch_size": 8}),
    "position bias": ("beit_base_patch16_224", {"patch_size": 8}),
}
CHECKS: dict[str, Callable[[Path], None]] = {}


def model_of(name: str) -> Any:
    """Build a small model with random values, biases and scales too."""
    timm = importlib.import_module("timm")
    architecture, options = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(architecture, pretrained=False, **MEASURES, **options)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    for block in model.blocks:
        block.attn.fused_attn = False
    return model.eval()


def write(name: str, model: Any, folder: Path, **more: Any) -> str:
    """Write it as timm does to the hub."""
    folder.mkdir(exist_ok=True)
    architecture, options = MODELS[name]
    config = {
        "architecture": architecture,
        "num_classes": 1000,
        "model_args": {**MEASURES, **options},
        "pretrained_cfg": {**CONFIG, "input_size": [3, SIDE, SIDE], "crop_pct": 0.8},
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(model.state_dict(), folder / "model.safetensors")
    return str(folder)


def normalised(images: Any) -> torch.Tensor:
    """Return what the model is given."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(CONFIG[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (scaled - mean) / std


def truth(model: Any, images: Any) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Return hidden states, attention maps and the output, of timm with attention spelt out."""
    maps: list[torch.Tensor] = []
    hooks = [
        block.attn.attn_drop.register_forward_pre_hook(lambda _, args: maps.append(args[0]))
        for block in model.blocks
    ]
    states: list[torch.Tensor] = []
    hooks.append(model.blocks[0].register_forward_pre_hook(lambda _, args: states.append(args[0])))
    with torch.no_grad():
        last, between = model.forward_intermediates(
            normalised(images), return_prefix_tokens=True, output_fmt="NLC"
        )
    for hook in hooks:
        hook.remove()
    for state in between:
        whole = state if torch.is_tensor(state) else torch.cat([state[1], state[0]], dim=1)
        states.append(whole)
    return states, maps, last


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def check(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Keep a check under its name."""

    def keep(function: Callable[[Path], None]) -> Callable[[Path], None]:
        CHECKS[name] = function
        return function

    return keep


def check_model(name: str, folder: Path) -> None:
    """Compare hidden states, maps, keys and values."""
    model, images = model_of(name), pixels(3, SIDE)
    prefix, has_class = model.num_prefix_tokens, model.cls_token is not None
    options: dict[str, Any] = {"attention_layers": [1, -2], "layers": [0, 2, -2]}
    asked: tuple[str, ...] = SIGNALS
    if not has_class:
        asked = ("attention", "cls_attention", "keys", "values")
        options["cls_attention"] = "received"
    weights = write(name, model, folder)
    step = encoder(weights, asked, **options)
    found = encode(step, {"image": images})
    states, maps, last = truth(model, images)
    wanted = torch.cat([states[i] for i in (0, 2, LAYERS - 1)], dim=2)
    close(found["features"], wanted[:, prefix:])
    asked_maps = torch.stack([maps[i] for i in (1, LAYERS - 2)], dim=1)
    close(found["attention"], asked_maps[..., prefix:, prefix:])
    if has_class:
        close(found["cls"], wanted[:, 0])
        close(found["cls_attention"], asked_maps[..., 0, prefix:])
        whole, logits = asked_maps[..., 0, prefix:].log(), found["cls_logits"]
        close(logits - logits[..., :1], whole - whole[..., :1])
    else:
        assert {"cls", "cls_logits"} <= step.lacks.keys()
        close(found["cls_attention"], asked_maps[..., prefix:, prefix:].mean(dim=3))
    for output, spec in step.outputs.items():
        assert spec.shape == tuple(found[output].shape[1:]), output
    tokens = (SIDE // 8) ** 2
    assert found["values"].shape == (3, tokens, HEADS, WIDTH // HEADS)
    values = values_of(model.blocks[LAYERS - 2], states[LAYERS - 2])
    close(found["values"], values[:, prefix:])
    again = encode(encoder(weights, layers=["last_hidden_state"]), {"image": images})
    close(again["features"], last[:, prefix:])


def values_of(block: Any, state: torch.Tensor) -> torch.Tensor:
    """Return values [B, T, H, D] of a block's input, by hand."""
    qkv = block.attn.qkv
    bias = block.attn.v_bias if qkv.bias is None else qkv.bias[-WIDTH:]
    values = torch.nn.functional.linear(block.norm1(state), qkv.weight[-WIDTH:], bias)
    return values.unflatten(2, (HEADS, WIDTH // HEADS)).detach()


CHECKS |= {name: partial(check_model, name) for name in MODELS}


@check("keys")
def check_keys(folder: Path) -> None:
    """Compare keys with those of the block, after its norm."""
    name = "norms of queries and keys"
    model, images = model_of(name), pixels(2, SIDE)
    found = encode(encoder(write(name, model, folder), ("keys",)), {"image": images})
    states, _, _ = truth(model, images)
    block = model.blocks[LAYERS - 2]
    keys = block.attn.qkv(block.norm1(states[LAYERS - 2])).unflatten(2, (3, HEADS, -1))[:, :, 1]
    close(found["keys"], block.attn.k_norm(keys)[:, 1:].detach())


@check("by name")
def check_name(folder: Path) -> None:
    """``timm:NAME`` is ``timm/NAME``: a folder here, the hub's repository elsewhere."""
    model, images = model_of("class token"), pixels(1, SIDE)
    (folder / "timm").mkdir()
    write("class token", model, folder / "timm" / "small.of_noise")
    with contextlib.chdir(folder):
        found = encode(encoder("timm:small.of_noise"), {"image": images})
    close(found["features"], truth(model, images)[0][LAYERS - 1][:, 1:])


@check("rows alone")
def check_rows(folder: Path) -> None:
    """A row does not depend on its company, and the operator keeps its contract."""
    step = encoder(write("registers", model_of("registers"), folder), ("attention", "keys"))
    batch = {"image": pixels(6, SIDE)}
    step.bind({"image": spec_of(batch["image"])})
    assert_operator_contract(step, batch)


@check("bfloat16")
def check_bfloat16(folder: Path) -> None:
    """It is computed in bfloat16, rotary positions too."""
    name, images = "rotary positions", pixels(2, SIDE)
    weights = write(name, model_of(name), folder)
    exact, rounded = (
        encode(encoder(weights, ("attention",), dtype=dtype), {"image": images})
        for dtype in ("float32", "bfloat16")
    )
    assert not torch.equal(rounded["features"], exact["features"])
    torch.testing.assert_close(rounded["attention"], exact["attention"], rtol=0.1, atol=0.05)


@check("another size")
def check_another_size(folder: Path) -> None:
    """Images of another size are refused, or the position embeddings fitted to them."""
    model, images = model_of("class token"), pixels(2, 48)
    weights = write("class token", model, folder)
    with pytest.raises(ContractError, match="does not take images of 48 x 48 pixels"):
        encode(encoder(weights), {"image": images})
    found = encode(encoder(weights, ("attention",), interpolate=True), {"image": images})
    model.set_input_size(img_size=48)
    states, maps, _ = truth(model, images)
    close(found["features"], states[LAYERS - 1][:, 1:])
    close(found["attention"][:, 0], maps[LAYERS - 2][..., 1:, 1:])


@check("what is recorded")
def check_record(folder: Path) -> None:
    """The manifest names library and preparation."""
    timm = importlib.import_module("timm")
    step = encoder(write("class token", model_of("class token"), folder))
    step.bind({"image": spec_of(pixels(1, SIDE))})
    identity, metadata = step.identity(), step.metadata()
    assert identity["timm"] == timm.__version__
    assert "transformers" not in identity
    assert metadata["model_type"] == "timm vit_tiny_patch16_224"
    assert metadata["normalization"] == {"mean": CONFIG["mean"], "std": CONFIG["std"]}
    resize = {"name": "resize", "size": 40, "mode": "shorter", "interpolation": "bicubic"}
    assert metadata["preprocessing"] == [resize, {"name": "center_crop", "size": SIDE}]


def refused(weights: str, message: str) -> None:
    """Look for a message of a refusal."""
    with pytest.raises(SetupError, match=re.escape(message)):
        encode(encoder(weights), {"image": pixels(1, SIDE)})


@check("mistakes")
def check_mistakes(folder: Path) -> None:
    """Weights that are not those of the configuration, models that are not known or not plain."""
    name = "class token"
    model = model_of(name)
    deeper = {**MEASURES, "patch_size": 8, "init_values": 0.1, "depth": LAYERS + 1}
    refused(write(name, model, folder, model_args=deeper), "missing: blocks.4.")
    shallower = {**deeper, "depth": LAYERS - 1}
    refused(write(name, model, folder, model_args=shallower), "unexpected: blocks.3.")
    wider = {**deeper, "depth": LAYERS, "mlp_ratio": 2}
    refused(write(name, model, folder, model_args=wider), "of another shape: blocks.0.mlp")
    refused(write(name, model, folder, architecture="hf-hub:a/b"), "'hf-hub:a/b', which timm")
    refused(write(name, model, folder, model_args={"layers": 2}), "timm does not build")
    refused(write(name, model, folder, pretrained_cfg={}), "has no pretrained_cfg")
    refused(write(name, model, folder, pretrained_cfg={"mean": 1}), "has mean 1, std ()")
    convolutions = write(name, model, folder, architecture="resnet18", model_args={})
    refused(convolutions, "ResNet of timm is not a list of layers with one attention each")


class _Anything(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Finder(MetaPathFinder, Loader):
    """Finds torchvision, and any part of it, where there is none."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        del path, target
        if name.partition(".")[0] != "torchvision":
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def main() -> None:
    """Run every check."""
    if find_spec("torchvision") is None:
        sys.meta_path.append(_Finder())
    wrong = {}
    for name, function in CHECKS.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                function(Path(folder))
            except Exception:  # whatever it is, it is shown by the test of that name
                wrong[name] = traceback.format_exc()
            else:
                wrong[name] = ""
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
