"""Sizes of a GigaTok model: of the authors' configurations, or read from one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from operators.errors import SetupError
from operators.image_tokenizers.nn.cnn_arch import CNNArch
from operators.image_tokenizers.published_config import ConfigSection, read_config

Layer = Literal["TransformerLayer", "TransformerDecoderLayer"]


@dataclass(frozen=True, slots=True)
class TransformerArch:
    """A transformer's sizes.

    Attributes:
        width: Of a token.
        layers: How many.
        heads: Of every attention.
    """

    width: int
    layers: int
    heads: int


SIZES: Mapping[str, TransformerArch] = {
    "tiny": TransformerArch(256, 4, 4),
    "small": TransformerArch(512, 6, 8),
    "base": TransformerArch(768, 12, 12),
    "large": TransformerArch(1024, 24, 16),
    "xl": TransformerArch(1280, 36, 20),
    "xxl": TransformerArch(1536, 48, 24),
    "xxxl": TransformerArch(2560, 48, 40),
}

_CNN = CNNArch(mid="pair", upsample="depth_to_space", adaptive=True)


@dataclass(frozen=True, slots=True)
class GigaTokArch:
    """All sizes of one model; the defaults are those of the published models.

    Attributes:
        encoder: Transformer between the convolutional encoder and the codebook.
        decoder: Transformer between the codebook and the convolutional decoder.
        num_latents: Tokens of a 1D model; None for a 2D one, whose tokens are the grid.
        layer: The authors' name of the layers' kind.
        cnn: The convolutional encoder and decoder.
        codebook_size: K.
        code_dim: Width of a codebook entry.
        unit_codes: Entries and latents are brought to length 1.
        image_side: Of the images, pixels.
    """

    encoder: TransformerArch
    decoder: TransformerArch
    num_latents: int | None = 256
    layer: Layer = "TransformerDecoderLayer"
    cnn: CNNArch = _CNN
    codebook_size: int = 16_384
    code_dim: int = 8
    unit_codes: bool = True
    image_side: int = 256

    @property
    def grid(self) -> int:
        """Side of the map between convolutions and transformers."""
        return self.image_side // self.cnn.downsampling

    @property
    def num_tokens(self) -> int:
        """Ids of an image."""
        return self.grid**2 if self.num_latents is None else self.num_latents


_SMALL, _BASE, _LARGE = (SIZES[size] for size in ("small", "base", "large"))

NAMED: Mapping[str, GigaTokArch] = {
    "VQ_SS256_e100": GigaTokArch(_SMALL, _SMALL),
    "VQ_SB256_e200": GigaTokArch(_SMALL, _BASE),
    "VQ_BL256_e200": GigaTokArch(_BASE, _LARGE),
    "VQ_BL256_dino_disc": GigaTokArch(_BASE, _LARGE),
    "VQ_XLXXL256_e300": GigaTokArch(SIZES["xl"], SIZES["xxl"]),
    "VQ_SS256_2d": GigaTokArch(_SMALL, _SMALL, None),
    "VQ_SB256_2d": GigaTokArch(_SMALL, _BASE, None, "TransformerLayer"),
    "VQ_BL256_2d": GigaTokArch(_BASE, _LARGE, None, "TransformerLayer"),
}
"""By the name of the weight file; 2D models by that of the authors' configuration."""

_UNSUPPORTED = (
    "use_lfq",
    "stochastic",
    "simvq",
    "with_prior_model",
    "use_rope",
    "rope_1d",
    "rope_2d",
    "use_qk_norm",
    "use_flash_attn",
    "learnable_1d_query_init",
    "last_level_2d_query_init",
    "multi_level_2d_query_init",
    "learnable_2d_query_init",
    "res_up_down_sample",
    "res_codebook_updown_sample",
    "downsample_improve",
)
"""Switches of the authors' code that no published model turns on."""


def arch_of_config(config: Mapping[str, Any], where: str) -> GigaTokArch:
    """Read the sizes from the authors' configuration, ``configs/vq/*.yaml`` as JSON.

    What is read stands under ``model``: ``model_cls`` and ``init_args``. Three entries beside it
    are ours, for models of other sizes than the authors' code has: ``image_size``, ``size_table``
    (width, layers and heads by name) and ``encoder_decoder`` (``ch`` and ``num_res_blocks`` of
    the convolutional nets).

    Args:
        config: Parsed ``config.json``.
        where: Where it was read from, for error messages.

    Raises:
        SetupError: it is of another model, or asks for what these nets do not do.
    """
    top = read_config(config, where)
    model = top.section("model")
    flat = model.expect("model_cls", "VQVitModelPlus", "VQVitModel2DPlus") == "VQVitModelPlus"
    args = model.section("init_args")
    for name in _UNSUPPORTED:
        args.expect(name, False)
    if flat and args.get("multi_level_query_init", False) is not True:
        raise SetupError(
            f"{where}: model.init_args.multi_level_query_init is False, supported: True"
        )
    # Where an entry is absent, the authors' code has these values.
    layer: Layer = "TransformerDecoderLayer"
    if not flat:
        layer = args.expect("transformer_layer_type", layer, "TransformerLayer")
    arch = GigaTokArch(
        encoder=_transformer(args, top, "encoder_size"),
        decoder=_transformer(args, top, "decoder_size"),
        num_latents=args.integer("num_latent_tokens", 256) if flat else None,
        layer=layer,
        cnn=_cnn(args, top.section("encoder_decoder", {})),
        codebook_size=args.integer("codebook_size", 16_384),
        code_dim=args.integer("codebook_embed_dim", 8),
        unit_codes=args.expect("codebook_l2_norm", True, False),
        image_side=top.integer("image_size", 256),
    )
    _check_pools(arch, where)
    return arch


def _transformer(args: ConfigSection, top: ConfigSection, name: str) -> TransformerArch:
    size = str(args.get(name, args.get("model_size", "small")))
    if size in SIZES:
        return SIZES[size]
    sizes = top.section("size_table", {}).section(size)
    return TransformerArch(*(sizes.integer(each) for each in ("width", "layers", "heads")))


def _cnn(args: ConfigSection, convolutions: ConfigSection) -> CNNArch:
    mult = args.integers("encoder_ch_mult", (1, 1, 2, 2, 4))
    args.expect("decoder_ch_mult", list(mult))
    attends = args.expect("use_attn", True, False)
    num_blocks = convolutions.integer("num_res_blocks", 2)
    return CNNArch(
        width=convolutions.integer("ch", 128),
        mult=mult,
        num_blocks=num_blocks,
        num_decoder_blocks=num_blocks + 1,
        z_channels=args.integer("z_channels", 256),
        attention_levels=(len(mult) - 1,) if attends else (),
        mid="attention" if attends else "pair",
        upsample="depth_to_space" if args.expect("d2s_up", False, True) else "nearest",
        adaptive=args.expect("adaptive_gn", False, True),
    )


def _check_pools(arch: GigaTokArch, where: str) -> None:
    """Latents start from pools of the map; see ``gigatok_net.pools``."""
    levels = range(2 * arch.grid.bit_length() - 1)
    fitting = [2**level for level in levels if arch.grid % 2 ** (level // 2) == 0]
    if arch.num_latents not in (None, *fitting):
        raise SetupError(
            f"{where}: num_latent_tokens is {arch.num_latents}, expected one of "
            f"{', '.join(map(str, fitting))} for a map of {arch.grid} x {arch.grid}"
        )
