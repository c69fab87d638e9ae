"""Tokenize images, depth, edges, classes and feature maps with 4M's tokenizers.

Mizrahi et al., 2023, "4M: Massively Multimodal Masked Modeling", arXiv:2312.06647, and Bachmann et
al., 2024, "4M-21: An Any-to-Any Vision Model for Tens of Tasks and Modalities", arXiv:2406.09406.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from operators.base import FieldSpec
from operators.errors import ContractError, SetupError
from operators.image_tokenizers.base import (
    SYMMETRIC,
    ImageTokenizerConfig,
    Published,
    RandomWeights,
)
from operators.image_tokenizers.grid import GridTokenizer
from operators.image_tokenizers.layout import TokenLayout
from operators.image_tokenizers.nn.fourm_arch import FourMArch, arch_of_config, published_arch

if TYPE_CHECKING:
    import torch

Size = Literal[
    "rgb_16k",
    "depth_8k",
    "normal_8k",
    "edge_8k",
    "semseg_4k",
    "CLIP-B16_8k",
    "DINOv2-B14_8k",
    "ImageBind-H14_8k",
    "DINOv2-B14-global_8k",
    "ImageBind-H14-global_8k",
]

_HUB = "EPFL-VILAB/4M_tokenizers_"
_BASE_SIDE = 224
_FIELDS = {"depth": "depth", "classes": "classes", "feature_map": "features", "feature": "features"}
_TRIMMED = 0.1
_NO_CLASS = 255
_NAMES = (
    (re.compile(r"^quantize\.embedding\.weight$"), "quantize._codebook.embed"),
    (re.compile(r"^quantize\.(k|v)(?:ey|alue)_weight$"), r"quantize.to_\1.weight"),
    (re.compile(r"(\.blocks\.\d+)\.fc1\."), r"\1.block.0."),
    (re.compile(r"(\.blocks\.\d+)\.fc2\."), r"\1.block.2."),
)


class FourMConfig(ImageTokenizerConfig):
    """What a job may say about ``fourm``."""

    name: Literal["fourm"] = "fourm"
    weights: Annotated[
        str | RandomWeights[Size],
        Field(
            description="Hub id (EPFL-VILAB/4M_tokenizers_rgb_16k_224-448), a folder or URL with "
            "config.json and model.safetensors, or {random_seed, size}."
        ),
    ]
    modality: Annotated[
        Literal["depth", "edge"] | None,
        Field(
            description="What a model of one channel reads; null goes by the `domain` of its "
            "configuration. The others tell by their sizes."
        ),
    ] = None


class FourM(GridTokenizer[FourMConfig, FourMArch]):
    """Map an image, or what a network made of one, to a row-major grid of ids.

    What is read follows from the checkpoint; ``tokens`` uint16 [T] are added, T = 196 at 224 pixels
    and 784 at 448 (16 pixels per id, 14 for DINOv2 and ImageBind: 256 and 1,024). An id is the
    entry of the codebook with the smallest angle to the latent.

    ==================  =======  =============================================================
    model               ids      reads
    ==================  =======  =============================================================
    rgb_16k             16,384   ``image`` uint8 [H, W, 3]
    normal_8k           8,192    ``image`` uint8 [H, W, 3], surface normals (n + 1) / 2 * 255
    edge_8k             8,192    ``image`` uint8 [H, W, 3], Canny or SAM edges, grey
    depth_8k            8,192    ``depth`` float32 [H, W] in [0, 1]: 16-bit values / 65,535
    semseg_4k           4,096    ``classes`` uint8 [H, W], COCO's 0 to 132, 255 for none
    CLIP-B16_8k         8,192    ``features`` float32 [h, w, 512], projected patch tokens
    DINOv2-B14_8k       8,192    ``features`` float32 [h, w, 768], normalized patch tokens
    ImageBind-H14_8k    8,192    ``features`` float32 [h, w, 1280], patch tokens
    DINOv2-B14-global   8,192    ``features`` float32 [768], the class token
    ImageBind-H14-...   8,192    ``features`` float32 [1280], the class token
    ==================  =======  =============================================================

    Depth is standardized here by its mean and deviation without the lowest and highest tenth, and
    classes are moved up by one, as the authors' loader does. A feature vector becomes 16 ids, id i
    out of the i-th of 16 codebooks ("memcodes"). Unusable rows (``RowErrors``): NaN or infinity
    in depth or features, a class that there is not.

    H and W are multiples of the patch; the models were trained on squares of 224 to 448 pixels
    (edges: 512), positions being resampled to the grid. Images without a size of their own are
    taken to have 224. The authors cut the largest centred square and resize it with Pillow's
    bicubic filter. Features are those of images that were normalized by ImageNet's mean and
    deviation in the published training configurations, while the authors' script that stores
    tokens brings them to [-1, 1]; that is left to whoever computes them.

    Published: ``EPFL-VILAB/4M_tokenizers_*``; code Apache-2.0, weights "Sample Code License 1.1"
    of EPFL and Apple, for non-commercial use. RGB, depth, normals and edges are drawn from their
    ids by a diffusion model, which is not covered: they cannot be decoded here. Classes and
    features can. Tokenizers of SAM's instances and human poses are not listed.

    Checked against the authors' code on small models with random weights: ids identical, alone and
    in batches, for RGB, depth, classes, feature maps and vectors, on grids of several sizes;
    latents to 2e-4, decoded values to 1e-4. At bfloat16 (the matrices of the blocks; the residual
    stream and the MLP after them are float32), on a CPU, 260 of their 261 ids stay the same, and
    0.981 of 1,024 ids of noise images.
    """

    Config = FourMConfig
    paper = "arXiv:2406.09406"
    weights_license = "Sample Code License 1.1 (EPFL and Apple), non-commercial"
    published = (
        Published(f"{_HUB}rgb_16k_224-448", "rgb_16k", 196, 16_384, 224),
        Published(f"{_HUB}depth_8k_224-448", "depth_8k", 196, 8192, 224),
        Published(f"{_HUB}normal_8k_224-448", "normal_8k", 196, 8192, 224),
        Published(f"{_HUB}edge_8k_224-512", "edge_8k", 196, 8192, 224),
        Published(f"{_HUB}semseg_4k_224-448", "semseg_4k", 196, 4096, 224),
        Published(f"{_HUB}CLIP-B16_8k_224-448", "CLIP-B16_8k", 196, 8192, 224),
        Published(f"{_HUB}DINOv2-B14_8k_224-448", "DINOv2-B14_8k", 256, 8192, 224),
        Published(f"{_HUB}ImageBind-H14_8k_224-448", "ImageBind-H14_8k", 256, 8192, 224),
        Published(f"{_HUB}DINOv2-B14-global_8k_16_224", "DINOv2-B14-global_8k", 16, 8192, 224),
        Published(
            f"{_HUB}ImageBind-H14-global_8k_16_224", "ImageBind-H14-global_8k", 16, 8192, 224
        ),
    )
    min_agreement: ClassVar[Mapping[str, float]] = {
        "float32": 1.0,
        "compiled": 1.0,
        "bfloat16": 0.95,
    }
    normalization = SYMMETRIC
    preprocessing = (
        {"name": "square_crop"},
        {"name": "resize", "size": 224, "mode": "squash", "interpolation": "bicubic"},
        {"name": "center_crop", "size": 224},
    )
    encoder_ignores = ("decoder.", "post_quant_proj.")
    decoder_ignores = ("encoder.", "quant_proj.", "cls_emb.")
    training_only = (
        "quantize._codebook.initted",
        "quantize._codebook.cluster_size",
        "quantize._codebook.embed_avg",
    )

    def __init__(self, config: FourMConfig) -> None:
        super().__init__(config)
        if config.modality is not None and not self._is_trained:
            raise ContractError(
                f"fourm: modality={config.modality!r} is given, but the weights are random",
                hint="remove it: the size says what is read",
            )

    def published_arch(self, size: str) -> FourMArch:
        """Return the sizes of a published model."""
        return published_arch(size)

    def arch_of_config(self, config: Mapping[str, Any], where: str) -> FourMArch:
        """Read the arguments of the authors' classes."""
        return arch_of_config(config, where, self.config.modality)

    def stored_name(self, name: str) -> str:
        """Return 4M's name of a parameter."""
        for own, stored in _NAMES:
            name = own.sub(stored, name)
        return name

    # --- what is read ---------------------------------------------------------------------------

    def bind(self, fields: Mapping[str, FieldSpec]) -> None:
        """Take the number of views, and the sides, from what the job gives."""
        if self.input_field not in fields:
            return
        shape, rank = fields[self.input_field].shape, len(self.input_spec.shape)
        if len(shape) == rank + 1 and isinstance(shape[0], int):
            self._views = shape[0]
        height, width = shape[-rank:][:2] if len(shape) >= rank > 1 else (None, None)
        if isinstance(height, int) and isinstance(width, int):
            pixels = self.arch.patch if self.arch.kind == "feature_map" else 1
            self._sides = (height * pixels, width * pixels)

    @property
    def stride(self) -> int:
        """The patch."""
        return self.arch.patch

    @property
    def default_side(self) -> int:
        """224, where the model takes that."""
        return min(self.arch.side, _BASE_SIDE)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """(K,)."""
        return (self.arch.codebook_size,)

    @property
    def layout(self) -> TokenLayout:
        """A row-major grid, or one id per codebook of a feature vector."""
        if self.arch.kind == "feature":
            return TokenLayout(self.arch.num_codebooks, self.codebook_sizes)
        return super().layout

    @property
    def input_field(self) -> str:
        """``image``, ``depth``, ``classes`` or ``features``."""
        return _FIELDS.get(self.arch.kind, "image")

    @property
    def input_spec(self) -> FieldSpec:
        """Of what the model reads."""
        arch, sides = self.arch, self.image_sides
        if arch.kind == "depth":
            return FieldSpec("float32", sides)
        if arch.kind == "classes":
            return FieldSpec("uint8", sides)
        if arch.kind == "feature_map":
            cells = (side // arch.patch for side in sides)
            return FieldSpec("float32", (*cells, arch.channels))
        if arch.kind == "feature":
            return FieldSpec("float32", (arch.channels,))
        return super().input_spec

    def prepare(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Return what the encoder reads; see ``FourMEncoder``."""
        import torch

        arch = self.arch
        if arch.kind == "depth":
            return _standardized(pixels)[:, None]
        if arch.kind == "classes":
            assert arch.labels is not None
            # Bytes wrap around: 255, no class, becomes 0.
            return (pixels + torch.ones_like(pixels)).long().clamp(max=arch.labels)
        if arch.kind == "feature_map":
            return pixels.permute(0, 3, 1, 2)
        if arch.kind == "feature":
            return pixels
        return super().prepare(pixels)[:, : arch.channels]

    def unprepare(self, images: "torch.Tensor") -> "torch.Tensor":
        """Return what was read, of what the decoder gives; depth stays standardized."""
        import torch

        kind = self.arch.kind
        if kind == "depth":
            return images[:, 0]
        if kind == "classes":
            classes = images.argmax(dim=1).to(torch.uint8)
            return classes - torch.ones_like(classes)
        if kind == "feature_map":
            return images.permute(0, 2, 3, 1)
        if kind == "feature":
            return images
        return super().unprepare(images)

    def what_is_wrong(self, image: "torch.Tensor") -> str:
        """Say why a row has latents that are not finite."""
        import torch

        field, labels = self.input_field, self.arch.labels
        if labels is not None:
            bad = image[(image >= labels - 1) & (image != _NO_CLASS)]
            if bad.numel():
                return (
                    f"field {field!r} has class {int(bad[0])}, expected 0 to {labels - 2}, "
                    f"or {_NO_CLASS} for none"
                )
        elif not bool(torch.isfinite(image).all()):
            return f"field {field!r} has NaN or infinity, expected finite numbers"
        return super().what_is_wrong(image)

    def metadata(self) -> Mapping[str, object]:
        """What a reader of the tokens must know."""
        found = {**super().metadata(), "reads": self.arch.kind}
        if self.input_field != "image":
            del found["normalization"], found["preprocessing"]
        return found

    # --- nets -----------------------------------------------------------------------------------

    def encoder_net(self) -> Any:
        """Build the encoder."""
        from operators.image_tokenizers.nn.fourm_net import FourMEncoder

        return FourMEncoder(self.arch)

    def decoder_net(self) -> Any:
        """Build the decoder.

        Raises:
            SetupError: it is a diffusion model.
        """
        from operators.image_tokenizers.nn.fourm_net import FourMDecoder

        if self.arch.decoder is None:
            raise SetupError(
                "fourm: this model draws images from its ids by diffusion, which is not covered",
                hint="tokenizers of classes and features, and VQVAEs of images, can be decoded",
            )
        return FourMDecoder(self.arch, self.layout.grid)

    def decoder_ids(self, ids: "torch.Tensor") -> "torch.Tensor":
        """Return ids [B, T]."""
        return ids

    def to_bfloat16(self, encoder: Any) -> None:
        """Make the matrices of the blocks bfloat16, and the projection before them."""
        import torch

        from operators.image_tokenizers.nn.vit import linear_to_bfloat16

        if self.arch.kind == "feature":
            linear_to_bfloat16(encoder.encoder)
            return
        encoder.encoder.proj.to(torch.bfloat16)
        linear_to_bfloat16(encoder.encoder.blocks)


def _standardized(depth_BHW: "torch.Tensor") -> "torch.Tensor":
    """Return depth less its mean, over its deviation, both without the extreme values."""
    flat = depth_BHW.flatten(1)
    count = flat.shape[1]
    kept = flat.sort(dim=1).values[:, int(_TRIMMED * count) : int((1 - _TRIMMED) * count)].double()
    scale = (kept.var(dim=1, keepdim=True) + 1e-6).sqrt()
    standardized = (flat - kept.mean(dim=1, keepdim=True)) / scale
    return standardized.float().unflatten(1, depth_BHW.shape[1:])
