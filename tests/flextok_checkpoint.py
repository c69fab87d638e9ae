"""The golden FlexTok model as a local checkpoint folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "golden" / "flextok"


def golden(name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of ``inputs``, ``outputs`` or ``weights``."""
    tensors: dict[str, torch.Tensor] = load_file(GOLDEN / f"{name}.safetensors")
    return tensors


def golden_weights() -> dict[str, torch.Tensor]:
    """Return the model's tensors in float32, as the reference was computed."""
    return {name: tensor.float() for name, tensor in golden("weights").items()}


def golden_config() -> dict[str, Any]:
    """Return ``config.json`` of the model; the autoencoder is smaller than the published one."""
    found = json.loads((GOLDEN / "config.json").read_text(encoding="utf-8"))
    return {"config": found["config"], "vae_arch": found["_fixture"]["vae_arch_override"]}


def write_checkpoint(
    folder: Path,
    *,
    config: Mapping[str, Any] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    config_in_metadata: bool = False,
) -> str:
    """Write the model, or a changed copy of it, and return the folder as a job would name it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = golden_config() if config is None else config
    weights = golden_weights() if weights is None else weights
    metadata = {"format": "pt"}
    if config_in_metadata:
        metadata |= {name: str(value) for name, value in config.items()}
    else:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(dict(weights), folder / "model.safetensors", metadata=metadata)
    return str(folder)
