"""Golden models of image tokenizers as local checkpoints: what every family's tests need.

A family lists its models in ``tests/tokenizers/<family>.py`` as ``MODELS``; the suite
``tests/contracts/test_image_tokenizers.py`` runs over all of them.
"""

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from operators import registry
from operators.base import FieldSpec
from operators.image_tokenizers.base import ImageTokenizer

GOLDEN = Path(__file__).parent / "golden"


def _whole(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.flatten(1)


@dataclass(frozen=True)
class GoldenModel:
    """One fixture of ``tests/golden`` and the operator that reproduces it.

    Attributes:
        folder: Its folder.
        operator: Operator's name.
        options: What a job says beside ``weights`` and ``device``.
        config: Makes ``config.json`` of the fixture's own; None when the model has none.
        file: The weight file's name, in the published format.
        under: Key that holds the tensors in a pickle.
        ids: Makes [B, T(, S)] of the golden ``tokens``.
        images: Makes what ``prepare`` gives of the golden ``images``.
        prequant: Makes latents, as ``quantize`` takes them, of the golden outputs; None when
            they are compared elsewhere.
    """

    folder: str
    operator: str
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = dict
    file: str = "model.safetensors"
    under: str | None = None
    ids: Callable[[torch.Tensor], torch.Tensor] = _whole
    images: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.float
    prequant: Callable[[Mapping[str, torch.Tensor]], torch.Tensor] | None = None

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Return ``inputs``, ``outputs`` or ``weights`` (float32) of the fixture."""
        return _tensors(GOLDEN / self.folder / f"{name}.safetensors")

    def golden_config(self) -> dict[str, Any]:
        """Return the fixture's own ``config.json``."""
        found: dict[str, Any] = json.loads(
            (GOLDEN / self.folder / "config.json").read_text(encoding="utf-8")
        )
        return found

    def write(
        self,
        folder: Path,
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> str:
        """Write the model, or a changed copy of it, as a folder that a job can name."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = dict(self.tensors("weights") if weights is None else weights)
        if self.config is not None:
            content = self.config(self.golden_config()) if config is None else config
            (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.file.endswith(".safetensors"):
            save_file(tensors, path, metadata={"format": "pt"})
        else:
            torch.save({self.under: tensors} if self.under else tensors, path)
        return str(folder)

    def build(self, weights: str, **options: Any) -> ImageTokenizer[Any, Any]:
        """Return the operator on a CPU, bound to the golden images; ``setup`` is not called."""
        settings = {"name": self.operator, "weights": weights, "device": "cpu"}
        config: Any = registry.get(self.operator).Config
        op = registry.build(config.model_validate({**settings, **self.options, **options}))
        assert isinstance(op, ImageTokenizer)
        sides = self.images(self.tensors("inputs")["images"]).shape[2:]
        op.bind({"image": FieldSpec("uint8", (*sides, 3))})
        return op

    def pixels(self, op: ImageTokenizer[Any, Any]) -> np.ndarray:
        """Return the golden images as bytes [B, H, W, 3]: what a job gives the operator."""
        images = op.normalization.bytes_of(self.images(self.tensors("inputs")["images"]))
        found: np.ndarray = images.permute(0, 2, 3, 1).contiguous().numpy()
        return found


@cache
def models() -> tuple[GoldenModel, ...]:
    """Return the golden models of all families."""
    import tests.tokenizers as families

    names = sorted(info.name for info in pkgutil.iter_modules(families.__path__))
    modules = [importlib.import_module(f"tests.tokenizers.{name}") for name in names]
    return tuple(model for module in modules for model in module.MODELS)


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Compare within ``tolerance`` of the largest expected value."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=tolerance * scale)


@cache
def _tensors(path: Path) -> dict[str, torch.Tensor]:
    found = load_file(path)
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in found.items()
    }
