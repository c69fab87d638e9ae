"""Small vision models with random weights, saved as their authors publish them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from operators import registry
from operators.base import FieldSpec, Ragged
from operators.columns import to_torch
from operators.encoders.vision_encoder import VisionEncoder

SIDE, PATCH, LAYERS, WIDTH, HEADS = 28, 7, 4, 32, 4
TOKENS = (SIDE // PATCH) ** 2

_SIZES: Mapping[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": 0.3,
}

PROCESSOR: Mapping[str, Any] = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "size": {"shortest_edge": 32},
    "crop_size": {"height": SIDE, "width": SIDE},
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
}

MODELS: Mapping[str, Mapping[str, Any]] = {
    "clip_vision_model": _SIZES,
    "siglip_vision_model": _SIZES,
    "siglip2_vision_model": {**_SIZES, "num_patches": TOKENS},
    "dinov2": {**_SIZES, "mlp_ratio": 2},
    "dinov2_with_registers": {**_SIZES, "mlp_ratio": 2, "num_register_tokens": 3},
    "dinov3_vit": {**_SIZES, "num_register_tokens": 3},
    "internvl_vision": {**_SIZES, "use_qk_norm": True, "layer_scale_init_value": 1.0},
    "vit": _SIZES,
    "radio": {**_SIZES, "max_img_size": 56, "num_cls_tokens": 2, "num_registers": 3},
    "deit": _SIZES,
    "ijepa": _SIZES,
}
"""model_type -> sizes. The last two stand for those that nothing here knows by name."""

WITHOUT_CLASS_TOKEN = ("siglip_vision_model", "siglip2_vision_model", "ijepa")
PREFIX = {"dinov2_with_registers": 4, "dinov3_vit": 4, "radio": 5, "deit": 2}


def config_of(model_type: str, **options: Any) -> Any:
    """Return a small configuration."""
    cls = transformers.CONFIG_MAPPING[model_type]
    known = {**MODELS[model_type], **options}
    if model_type in ("dinov2", "dinov2_with_registers", "radio"):
        known.pop("intermediate_size")
    if model_type == "siglip2_vision_model":
        known.pop("image_size")
    return cls(**known)


def model_of(config: Any, seed: int = 0) -> Any:
    """Return transformers' model, with eager attention and every parameter away from zero."""
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.05 * noise
    return model


def write(model: Any, folder: Path, processor: Mapping[str, Any] | None = PROCESSOR) -> str:
    """Save a model and what prepares its images."""
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


def pixels(num: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """Return uint8 [num, side, side, 3]."""
    shape = (num, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoder(weights: Any, asked: tuple[str, ...] = (), **options: Any) -> VisionEncoder:
    """Return the operator, not bound."""
    settings = {"name": "vision_encoder", "weights": weights, "device": "cpu", "tower_batch": 4}
    config = VisionEncoder.Config.model_validate({**settings, **options})
    step = registry.build(config)
    assert isinstance(step, VisionEncoder)
    step.provide(frozenset(asked))
    return step


def encode(step: VisionEncoder, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Bind to a batch of numpy columns, set up, and encode it."""
    step.bind({name: spec_of(column) for name, column in batch.items()})
    step.setup("cpu")
    tensors = {
        name: column if isinstance(column, Ragged) else to_torch(column)
        for name, column in batch.items()
    }
    return dict(step(tensors))


def spec_of(column: Any) -> FieldSpec:
    """Return the spec of a numpy or ragged column."""
    if isinstance(column, Ragged):
        return FieldSpec(str(column.values.dtype), (None, *column.values.shape[1:]))
    return FieldSpec(str(column.dtype), column.shape[1:])


def truth(model: Any, images: np.ndarray) -> Any:
    """Run transformers' model, eagerly, on pixels normalised as ``PROCESSOR`` says."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    if model.config.model_type != "radio":
        mean = torch.tensor(PROCESSOR["image_mean"]).reshape(3, 1, 1)
        std = torch.tensor(PROCESSOR["image_std"]).reshape(3, 1, 1)
        scaled = (scaled - mean) / std
    inputs: dict[str, Any] = {"pixel_values": scaled}
    if model.config.model_type == "siglip2_vision_model":
        grid = images.shape[1] // PATCH
        tiles = scaled.reshape(len(images), 3, grid, PATCH, grid, PATCH).permute(0, 2, 4, 3, 5, 1)
        inputs = {
            "pixel_values": tiles.reshape(len(images), grid * grid, -1),
            "pixel_attention_mask": None,
            "spatial_shapes": torch.tensor([[grid, grid]] * len(images)),
        }
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True, output_attentions=True)
