"""Vision transformers of timm, which look like those of transformers from outside.

timm is not among the extras: it imports torchvision, whose builds must match torch's.
"""

import importlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from operators.encoders.families import Preparation, Steps, cropped, squashed
from operators.encoders.nn.attention import note
from operators.errors import SetupError
from operators.image_tokenizers.base import Normalization

_INSTEAD = (
    "give the same weights in the format of transformers: the hub has facebook/dinov2-*, "
    "google/vit-*, google/siglip-*, facebook/deit-* and others"
)
_CLASSIFIER = re.compile(r"^(?:head|head_dist)\.")
"""What classifies is not built."""

_PIXELS = ("mean", "std", "input_size")
_INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")


def import_timm(where: str) -> Any:
    """Import timm.

    Raises:
        SetupError: it is not there, or the torchvision that it needs does not work.
    """
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another torch
        raise SetupError(
            f"{where}: models of timm need timm, which cannot be imported ({error})",
            hint="pip install timm, and a torchvision that is built for your torch. No extra does "
            "so, because timm imports torchvision, which has no CPU build that works beside the "
            f"torch that this project is tested with. Or {_INSTEAD}",
        ) from None


class TimmConfig:
    """What ``config.json`` of a model of timm says.

    Args:
        found: The file's content.
        where: Who asks.

    Raises:
        SetupError: timm is missing, or does not have the model.
    """

    def __init__(self, found: Mapping[str, Any], where: str) -> None:
        timm = import_timm(where)
        self._where, self._found = where, found
        self.architecture = found.get("architecture")
        self._pretrained: dict[str, Any] = found.get("pretrained_cfg") or {}
        if not isinstance(self.architecture, str) or not timm.is_model(self.architecture):
            raise SetupError(
                f"{where}: config.json has architecture {self.architecture!r}, which timm "
                f"{timm.__version__} does not have",
                hint="give a model that it has, or update it",
            )
        if not self._pretrained:
            raise SetupError(
                f"{where}: config.json has no pretrained_cfg, which says how pixels are normalised",
                hint="give config.json as timm writes it to the hub",
            )

    @property
    def model_type(self) -> str:
        """The name of the architecture, as errors and manifests call it."""
        return f"timm {self.architecture}"

    def to_json_string(self, use_diff: bool) -> str:
        """Return all that the model depends on; ``use_diff`` is of transformers."""
        del use_diff
        return json.dumps(self._found, sort_keys=True)

    def create(self) -> Any:
        """Build the model with values of no meaning, without what classifies.

        Raises:
            SetupError: timm does not build it of these options, or it is no plain transformer.
        """
        timm = import_timm(self._where)
        ours = {"num_classes": 0, "pretrained": False, "checkpoint_path": None}
        try:
            with torch.random.fork_rng(devices=[]):
                model = timm.create_model(
                    self.architecture,
                    pretrained_cfg=dict(self._pretrained),
                    **{**(self._found.get("model_args") or {}), **ours},
                )
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise SetupError(
                f"{self._where}: timm does not build {self.architecture} of config.json ({error})",
                hint="config.json and the version of timm must fit",
            ) from None
        blocks = getattr(model, "blocks", None)
        if (
            not isinstance(blocks, nn.Sequential | nn.ModuleList)
            or not all(hasattr(block, "attn") for block in blocks)
            or not hasattr(model, "num_prefix_tokens")
            or not hasattr(getattr(model, "patch_embed", None), "patch_size")
        ):
            raise SetupError(
                f"{self._where}: {type(model).__name__} of timm is not a list of layers with one "
                "attention each",
                hint="give a plain vision transformer",
            )
        return TimmModel(model.eval(), self)

    @cached_property
    def _parts(self) -> "_Parts":
        with torch.device("meta"):
            model = self.create().timm
        has_class = getattr(model, "cls_token", None) is not None
        return _Parts(model.patch_embed.patch_size, model.num_prefix_tokens, has_class)

    @property
    def patch_size(self) -> int | tuple[int, int]:
        """Pixels."""
        return self._parts.patch

    @property
    def num_prefix_tokens(self) -> int:
        """Class token and registers."""
        return self._parts.prefix

    @property
    def has_class_token(self) -> bool:
        """Whether the first of them is a class token."""
        return self._parts.has_class

    @property
    def preparation(self) -> Preparation:
        """How its authors prepare images.

        Raises:
            SetupError: it does not say.
        """
        mean, std, size = (self._pretrained.get(name, ()) for name in _PIXELS)
        for values in (mean, std, size):
            if not isinstance(values, list) or len(values) != 3:
                raise SetupError(
                    f"{self._where}: pretrained_cfg of config.json has mean {mean!r}, std {std!r} "
                    f"and input_size {size!r}, expected three numbers each",
                    hint="give config.json as timm writes it to the hub",
                )
        normalization = Normalization(tuple(mean), tuple(std))
        height, width = size[1:]
        return Preparation(width, normalization, self._steps(width) if height == width else ())

    def _steps(self, side: int) -> Steps:
        found = self._pretrained
        filter_, mode = found.get("interpolation", "bicubic"), found.get("crop_mode", "center")
        resized = math.floor(side / found.get("crop_pct", 0.875))
        if filter_ in _INTERPOLATIONS and mode == "center":
            return cropped(resized, side, filter_)
        if filter_ in _INTERPOLATIONS and mode == "squash" and resized == side:
            return squashed(side, filter_)
        return ()


@dataclass(frozen=True, slots=True)
class _Parts:
    patch: int | tuple[int, int]
    prefix: int
    has_class: bool


class TimmModel(nn.Module):  # type: ignore[misc]
    """A model of timm that is called, and whose attention is noted, as one of transformers."""

    def __init__(self, timm: Any, config: TimmConfig) -> None:
        super().__init__()
        self.timm, self.config = timm, config
        for block in timm.blocks:
            _watch(block.attn)

    def forward(self, pixel_values: Any, interpolate_pos_encoding: bool = False) -> SimpleNamespace:
        """Run it on normalised pixels [B, 3, H, W]."""
        sides = tuple(pixel_values.shape[-2:])
        fits = sides == tuple(self.timm.patch_embed.img_size or sides)
        if interpolate_pos_encoding and not fits and hasattr(self.timm, "set_input_size"):
            self.timm.set_input_size(img_size=sides)
        return SimpleNamespace(last_hidden_state=self.timm.forward_features(pixel_values))


def load(config: TimmConfig, tensors: Mapping[str, torch.Tensor], where: str) -> TimmModel:
    """Build the model of stored tensors, in float32 on the CPU.

    Tensors of classifiers are left out.

    Raises:
        SetupError: tensors are missing, too many or of another shape.
    """
    model: TimmModel = config.create()
    own = model.timm.state_dict()
    given = {name: tensor for name, tensor in tensors.items() if not _CLASSIFIER.match(name)}
    found = {
        "missing": sorted(own.keys() - given.keys()),
        "unexpected": sorted(given.keys() - own.keys()),
        "of another shape": sorted(
            name for name in own.keys() & given.keys() if own[name].shape != given[name].shape
        ),
    }
    parts = [f"{len(names)} {what}: {names[0]}" for what, names in found.items() if names]
    if parts:
        raise SetupError(
            f"{where}: the weights are not of the {config.model_type} that config.json describes: "
            f"tensors {'; '.join(parts)}",
            hint="config.json and weights must be of one model",
        )
    model.timm.load_state_dict(given)
    model.float().requires_grad_(False)
    return model


def _watch(attention: Any) -> None:
    """Note what the attention gives to torch's fused one, which it is made to use."""
    attention.fused_attn = True
    forward = attention.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        with _Noting(attention):
            return forward(*args, **kwargs)

    attention.forward = watched


class _Noting(TorchFunctionMode):  # type: ignore[misc]
    """Notes queries, keys and values as they go into the fused attention.

    So norms, rotary positions and biases of every kind of attention in timm are in them.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self._module = module

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``."""
        del types
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            self._note(*args, **kwargs)
        return func(*args, **kwargs)

    def _note(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        scale: float | None = None,
        **_: Any,
    ) -> None:
        note(self._module, query, key, value, (attn_mask,), scale)
