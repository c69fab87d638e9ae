"""Sizes of 4M's tokenizers, and what they read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from operators.errors import SetupError
from operators.image_tokenizers.published_config import ConfigSection, read_config

Kind = Literal["image", "edge", "depth", "classes", "feature_map", "feature"]
"""What a model reads: RGB or surface normals; edges, grey; depth; ids of classes; a map of feature
vectors; one feature vector."""

_MLP = re.compile(r"BottleneckMLP/B_(\d+)-Wi_(\d+)(?:-\w+_(\d+))?")


@dataclass(frozen=True, slots=True)
class ViTSizes:
    """A vision transformer; the defaults are those of the published models.

    Attributes:
        width: Of a token.
        depth: Blocks.
        heads: Of attention.
        grid: Side of the stored table of positions.
        patch: Side of a patch, pixels; 1 for feature maps.
        post_mlp: A tanh MLP follows the blocks.
        out_conv: Two convolutional blocks follow the decoder.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    grid: int = 28
    patch: int = 16
    post_mlp: bool = True
    out_conv: bool = False


@dataclass(frozen=True, slots=True)
class MLPSizes:
    """An MLP of residual bottlenecks.

    Attributes:
        width: Of the residual stream.
        depth: Blocks.
        expansion: Width inside a block, in widths.
    """

    width: int = 1024
    depth: int = 6
    expansion: int = 4


@dataclass(frozen=True, slots=True)
class FourMArch:
    """All sizes of one tokenizer.

    Attributes:
        kind: What it reads.
        channels: Of what the encoder reads; of a class's embedding.
        encoder: Its encoder.
        decoder: Its decoder; None where that is a diffusion model.
        patch: Pixels of an image per position, along one side: also of the image that a feature
            map was made of.
        side: Of the largest images it was trained on, pixels.
        codebook_size: K.
        latent_dim: Width of a codebook entry; of all parts for ``num_codebooks`` > 1.
        num_codebooks: Of a feature vector, each with one id.
        cosine: Latents and entries are compared by their angle.
        normalized_latents: Latents have length 1, whatever they are compared by.
        labels: Classes, 0 being no class.
    """

    kind: Kind
    channels: int
    encoder: ViTSizes | MLPSizes
    decoder: ViTSizes | MLPSizes | None
    patch: int = 16
    side: int = 448
    codebook_size: int = 8192
    latent_dim: int = 32
    num_codebooks: int = 1
    cosine: bool = True
    normalized_latents: bool = False
    labels: int | None = None

    @property
    def out_channels(self) -> int:
        """Channels of what the decoder gives."""
        return self.labels or self.channels


def published_arch(size: str) -> FourMArch:
    """Return the sizes of a published model."""
    images = {"rgb_16k": 16_384, "normal_8k": 8192}
    if size in images:
        return FourMArch("image", 3, ViTSizes(), None, codebook_size=images[size])
    if size == "depth_8k":
        return FourMArch("depth", 1, ViTSizes(), None)
    if size == "edge_8k":
        return FourMArch("edge", 1, ViTSizes(grid=32), None, side=512)
    if size == "semseg_4k":
        return FourMArch("classes", 64, ViTSizes(), ViTSizes(), codebook_size=4096, labels=134)
    if size == "CLIP-B16_8k":
        maps = ViTSizes(patch=1)
        return FourMArch("feature_map", 512, maps, maps)
    channels = 768 if size.startswith("DINOv2") else 1280
    if "global" in size:
        mlp = MLPSizes()
        return FourMArch("feature", channels, mlp, mlp, latent_dim=1024, num_codebooks=16)
    maps = ViTSizes(grid=32, patch=1)
    return FourMArch("feature_map", channels, maps, maps, patch=14)


def arch_of_config(
    config: Mapping[str, Any], where: str, modality: Literal["depth", "edge"] | None
) -> FourMArch:
    """Read the sizes from a checkpoint's configuration: the arguments of the authors' classes.

    Besides them it may give the sizes of transformers as ``dim_tokens``, ``depth`` and
    ``num_heads``.

    Args:
        config: The configuration.
        where: Operator and checkpoint, for errors.
        modality: What a model of one channel reads, where the configuration does not say.

    Raises:
        SetupError: it is of another model, or asks for what these nets do not do.
    """
    nested = config.get("config")  # how the hub's model mixin may keep one argument of that name
    found = read_config(nested if isinstance(nested, Mapping) else config, where)
    codebook_size = found.integer("codebook_size")
    patch, side = found.integer("patch_size", 16), found.integer("image_size", 224)
    on_pixels = found.expect("patch_proj", True, False)
    labels = found.integer("n_labels", 0) or None
    channels = found.integer("n_channels", 3)
    encoder = _net(found, "enc_type", found.integer("image_size_enc", side) // patch, patch)
    if encoder is None:
        raise SetupError(f"{where}: enc_type is {found.get('enc_type')!r}, supported: a ViT or MLP")
    dec_patch = found.integer("patch_size_dec", patch)
    decoder = _net(found, "dec_type", found.integer("image_size_dec", side) // dec_patch, dec_patch)
    is_mlp = isinstance(encoder, MLPSizes)
    kind: Kind = "feature" if is_mlp else "classes" if labels else "feature_map"
    if on_pixels and kind == "feature_map":
        kind = _kind_of_pixels(found, channels, modality, where)
    if modality is not None and (kind not in ("depth", "edge") or channels != 1):
        raise SetupError(
            f"{where}: modality={modality!r} is given, but the model does not read one channel",
            hint="remove it: what the model reads follows from its sizes",
        )
    found.expect("quant_type", *(("memcodes",) if is_mlp else ("lucid",)))
    if not is_mlp:
        found.expect("num_codebooks", 1)
    return FourMArch(
        kind,
        channels,
        encoder,
        decoder,
        patch=patch,
        side=side,
        codebook_size=codebook_size,
        latent_dim=found.integer("latent_dim", 32),
        num_codebooks=found.integer("num_codebooks", 1),
        cosine=found.expect("norm_codes", True, False),
        normalized_latents=found.expect("norm_latents", False, True),
        labels=labels,
    )


def _kind_of_pixels(
    found: ConfigSection, channels: int, modality: Literal["depth", "edge"] | None, where: str
) -> Kind:
    if channels == 3:
        return "image"
    if channels != 1:
        raise SetupError(
            f"{where}: n_channels is {channels}, supported: 3 (RGB, normals) or 1 (depth, edges)",
            hint="models that read a mask beside the image are not covered",
        )
    domain = modality or str(found.get("domain", ""))
    for kind in ("depth", "edge"):
        if domain.endswith(kind):
            return kind
    raise SetupError(
        f"{where}: it has one channel, and its configuration does not say of what",
        hint="set `modality` to depth or edge",
    )


def _net(found: ConfigSection, name: str, grid: int, patch: int) -> ViTSizes | MLPSizes | None:
    """Return sizes; None for what is neither a ViT nor an MLP."""
    kind = str(found.get(name, f"vit_b_{name[:3]}"))
    mlp = _MLP.fullmatch(kind)
    if mlp:
        return MLPSizes(int(mlp[2]), int(mlp[1]), int(mlp[3] or 4))
    presets = {"s": (512, 8, 8), "b": (768, 12, 12), "l": (1024, 24, 16)}
    vit = re.fullmatch(rf"vit_([sbl])_{name[:3]}", kind)
    if not vit:
        return None
    width, depth, heads = presets[vit[1]]
    return ViTSizes(
        found.integer("dim_tokens", width),
        found.integer("depth", depth),
        found.integer("num_heads", heads),
        grid,
        patch if found.expect("patch_proj", True, False) else 1,
        found.expect("post_mlp", False, True),
        found.expect("out_conv", False, True),
    )
