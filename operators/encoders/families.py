"""Published encoders, and how images are prepared for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from operators.errors import SetupError
from operators.image_tokenizers.base import CLIP, SYMMETRIC, UNIT, Normalization

Steps = tuple[Mapping[str, object], ...]

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Size = Literal[
    "c_radio_v4_h",
    "clip_vit_b_16",
    "clip_vit_l_14_336",
    "dinov2_base",
    "dinov2_large",
    "dinov2_with_registers_large",
    "dinov3_vit_b_16",
    "dinov3_vit_l_16",
    "internvit_300m",
    "siglip2_so400m_14_384",
    "siglip_base_16_224",
    "siglip_so400m_14_384",
    "vit_base_16_224",
]

_FILTERS = {2: "bilinear", 3: "bicubic", 1: "lanczos"}
"""Pillow's numbers of the filters that ``resize`` has."""


def squashed(side: int, interpolation: str) -> Steps:
    """Return operators that bring images to a square, whatever their aspect."""
    resize = {"name": "resize", "size": side, "mode": "squash", "interpolation": interpolation}
    return (resize, {"name": "center_crop", "size": side})


def cropped(shorter: int, side: int, interpolation: str) -> Steps:
    """Return operators that resize the shorter side and crop the centre."""
    resize = {"name": "resize", "size": shorter, "mode": "shorter", "interpolation": interpolation}
    return (resize, {"name": "center_crop", "size": side})


@dataclass(frozen=True, slots=True)
class PublishedEncoder:
    """A published model.

    Attributes:
        weights: Hub id.
        license: Of the weights.
        model_type: As transformers calls it.
        sizes: What its configuration says beside the defaults of the family.
        normalization: Of pixels.
        preprocessing: Operators that prepare images as its authors do.
    """

    weights: str
    license: str
    model_type: str
    normalization: Normalization
    preprocessing: Steps
    sizes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Of the images, pixels."""
        side = self.preprocessing[-1]["size"]
        assert isinstance(side, int)
        return side


def _vit(width: int, layers: int, heads: int, hidden: int, side: int, patch: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "image_size": side,
        "patch_size": patch,
    }


def _without_hidden(sizes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sizes.items() if name != "intermediate_size"}


_BASE, _LARGE, _SO400M = (768, 12, 12, 3072), (1024, 24, 16, 4096), (1152, 27, 16, 4304)

PUBLISHED: Mapping[Size, PublishedEncoder] = {
    "clip_vit_b_16": PublishedEncoder(
        *("openai/clip-vit-base-patch16", "MIT", "clip_vision_model", CLIP),
        cropped(224, 224, "bicubic"),
        _vit(*_BASE, 224, 16),
    ),
    "clip_vit_l_14_336": PublishedEncoder(
        *("openai/clip-vit-large-patch14-336", "MIT", "clip_vision_model", CLIP),
        cropped(336, 336, "bicubic"),
        _vit(*_LARGE, 336, 14),
    ),
    "siglip_base_16_224": PublishedEncoder(
        *("google/siglip-base-patch16-224", "Apache-2.0", "siglip_vision_model", SYMMETRIC),
        squashed(224, "bicubic"),
        _vit(*_BASE, 224, 16),
    ),
    "siglip_so400m_14_384": PublishedEncoder(
        *("google/siglip-so400m-patch14-384", "Apache-2.0", "siglip_vision_model", SYMMETRIC),
        squashed(384, "bicubic"),
        _vit(*_SO400M, 384, 14),
    ),
    "siglip2_so400m_14_384": PublishedEncoder(
        *("google/siglip2-so400m-patch14-384", "Apache-2.0", "siglip_vision_model", SYMMETRIC),
        squashed(384, "bilinear"),
        _vit(*_SO400M, 384, 14),
    ),
    "dinov2_base": PublishedEncoder(
        *("facebook/dinov2-base", "Apache-2.0", "dinov2", IMAGENET),
        cropped(256, 224, "bicubic"),
        _without_hidden(_vit(*_BASE, 518, 14)),
    ),
    "dinov2_large": PublishedEncoder(
        *("facebook/dinov2-large", "Apache-2.0", "dinov2", IMAGENET),
        cropped(256, 224, "bicubic"),
        _without_hidden(_vit(*_LARGE, 518, 14)),
    ),
    "dinov2_with_registers_large": PublishedEncoder(
        *("facebook/dinov2-with-registers-large", "Apache-2.0"),
        *("dinov2_with_registers", IMAGENET),
        cropped(256, 224, "bicubic"),
        {**_without_hidden(_vit(*_LARGE, 518, 14)), "num_register_tokens": 4},
    ),
    "dinov3_vit_b_16": PublishedEncoder(
        *("facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3 License", "dinov3_vit", IMAGENET),
        squashed(224, "bilinear"),
        {**_vit(*_BASE, 224, 16), "num_register_tokens": 4},
    ),
    "dinov3_vit_l_16": PublishedEncoder(
        *("facebook/dinov3-vitl16-pretrain-lvd1689m", "DINOv3 License", "dinov3_vit", IMAGENET),
        squashed(224, "bilinear"),
        {**_vit(*_LARGE, 224, 16), "num_register_tokens": 4},
    ),
    "internvit_300m": PublishedEncoder(
        *("OpenGVLab/InternViT-300M-448px-V2_5", "MIT", "internvl_vision", IMAGENET),
        cropped(448, 448, "bicubic"),
        {**_vit(*_LARGE, 448, 14), "attention_bias": True},
    ),
    "vit_base_16_224": PublishedEncoder(
        *("google/vit-base-patch16-224-in21k", "Apache-2.0", "vit", SYMMETRIC),
        squashed(224, "bilinear"),
        _vit(*_BASE, 224, 16),
    ),
    "c_radio_v4_h": PublishedEncoder(
        *("nvidia/C-RADIOv4-H", "NVIDIA Open Model License", "radio", UNIT),
        cropped(512, 512, "bicubic"),
        _without_hidden(_vit(1280, 32, 16, 5120, 512, 16)),
    ),
}


@dataclass(frozen=True, slots=True)
class Preparation:
    """How images become what a model reads.

    Attributes:
        side: Of the images, pixels; None where nothing says.
        normalization: Of pixels.
        preprocessing: Image operators; empty where they cannot be said with those there are.
    """

    side: int | None
    normalization: Normalization
    preprocessing: Steps


_INTERNAL = {"radio"}
"""Models that normalise pixels in [0, 1] themselves."""


def preparation_of(processor: Mapping[str, Any], model_type: str, where: str) -> Preparation:
    """Read ``preprocessor_config.json``.

    Raises:
        SetupError: it asks for what is not done here.
    """
    normalization = _normalization_of(processor, model_type, where)
    factor = processor.get("rescale_factor", 1 / 255)
    if not processor.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-6:
        raise SetupError(
            f"{where}: preprocessor_config.json has rescale_factor {factor!r} or no do_rescale, "
            "expected bytes to be divided by 255"
        )
    crops = bool(processor.get("do_center_crop", False))
    size, crop = (_sides(processor.get(name), crops) for name in ("size", "crop_size"))
    crops = crops and crop is not None
    filter_ = _FILTERS.get(processor.get("resample", 2))
    resizes = processor.get("do_resize", True) and size is not None
    side = crop[1] if crop is not None and crops else size[1] if size is not None else None
    steps: Steps = ()
    if resizes and size is not None and side is not None and filter_ is not None:
        mode, resized = size
        steps = cropped(resized, side, filter_)
        if mode == "squash":
            steps = squashed(resized, filter_) if resized == side else ()
    return Preparation(side, normalization, steps)


def _normalization_of(processor: Mapping[str, Any], model_type: str, where: str) -> Normalization:
    if model_type in _INTERNAL or not processor.get("do_normalize", True):
        return UNIT
    values = [processor.get(name) for name in ("image_mean", "image_std")]
    if not all(isinstance(value, list) and len(value) == 3 for value in values):
        raise SetupError(
            f"{where}: preprocessor_config.json has image_mean {values[0]!r} and image_std "
            f"{values[1]!r}, expected three numbers each"
        )
    mean, std = values
    return Normalization(tuple(map(float, mean)), tuple(map(float, std)))  # type: ignore[arg-type]


def _sides(size: Any, crops: bool) -> tuple[str, int] | None:
    """Return how images are resized, and to which side, of a processor's ``size``."""
    if isinstance(size, int):  # of old files
        return ("shorter" if crops else "squash", size)
    if not isinstance(size, Mapping):
        return None
    if isinstance(size.get("shortest_edge"), int) and "longest_edge" not in size:
        return ("shorter", size["shortest_edge"])
    height, width = size.get("height"), size.get("width")
    return ("squash", height) if isinstance(height, int) and height == width else None
