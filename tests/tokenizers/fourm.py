"""4M's tokenizers: of RGB, and, beside the suite's, of what is not an image."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from operators.base import FieldSpec
from operators.image_tokenizers.fourm import FourM, FourMConfig
from tests.golden_tokenizer import GOLDEN, GoldenModel


def published_config(golden: Mapping[str, Any]) -> dict[str, Any]:
    """Make config.json of a fixture's: one flat object."""
    return {**golden["VQVAE"], **golden["vit"], "enc_type": "vit_b_enc", "dec_type": "vit_b_dec"}


def grid_latents(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return outputs["prequant"].flatten(2).transpose(1, 2)


MODELS = (GoldenModel("fourm_vqvae", "fourm", config=published_config, prequant=grid_latents),)

FOLDER = GOLDEN / "fourm_modalities"
CONFIG: Mapping[str, Any] = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
INPUTS, OUTPUTS = (load_file(FOLDER / f"{name}.safetensors") for name in ("inputs", "outputs"))

READS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "depth": lambda values: (values.double() / 65_535).float(),
    "semseg": lambda values: values,
    "feature_map": lambda values: values.permute(0, 2, 3, 1).contiguous(),
    "feature": lambda values: values,
}


def written(folder: Path, model: str) -> str:
    """Write one of the models of ``fourm_modalities`` as a folder that a job can name."""
    weights = load_file(FOLDER / "weights.safetensors")
    own = {
        name.removeprefix(f"{model}:"): tensor.float()
        for name, tensor in weights.items()
        if name.startswith(f"{model}:")
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(own, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG[model]), encoding="utf-8")
    return str(folder)


def bound(folder: str, values: torch.Tensor, **options: Any) -> FourM:
    """Return the operator on a CPU, bound to the values; ``setup`` is not called."""
    op = FourM(FourMConfig.model_validate({"weights": folder, "device": "cpu", **options}))
    dtype = str(values.dtype).removeprefix("torch.")
    op.bind({op.input_field: FieldSpec(dtype, tuple(values.shape[1:]))})
    return op


def ready(tmp_path: Path, model: str) -> tuple[FourM, torch.Tensor]:
    """Return the operator of one of the models, set up, and what it reads."""
    values = READS[model](INPUTS[model])
    op = bound(written(tmp_path, model), values)
    op.setup("cpu")
    return op, values
