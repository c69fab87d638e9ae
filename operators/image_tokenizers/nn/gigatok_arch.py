"""Sizes of a GigaTok model: of the published ones, or read from the authors' configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from operators.errors import SetupError

FLAT, GRID = "VQVitModelPlus", "VQVitModel2DPlus"
PLAIN_LAYER, QUERY_LAYER = "TransformerLayer", "TransformerDecoderLayer"


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


SIZES = {
    "tiny": TransformerArch(256, 4, 4),
    "small": TransformerArch(512, 6, 8),
    "base": TransformerArch(768, 12, 12),
    "large": TransformerArch(1024, 24, 16),
    "xl": TransformerArch(1280, 36, 20),
    "xxl": TransformerArch(1536, 48, 24),
    "xxxl": TransformerArch(2560, 48, 40),
}


@dataclass(frozen=True, slots=True)
class GigaTokArch:
    """All sizes of one model; the defaults are those of the published models.

    Attributes:
        encoder: Transformer between the convolutional encoder and the codebook.
        decoder: Transformer between the codebook and the convolutional decoder.
        num_latents: Tokens of a 1D model; None for a 2D one, whose tokens are the grid.
        layer: Kind of a 2D model's layers, ``PLAIN_LAYER`` or ``QUERY_LAYER``.
        encoder_mult: Widths of the convolutional encoder's levels, in ``channels``.
        decoder_mult: The same of the decoder, from fine to coarse.
        channels: Width of the finest level.
        num_res_blocks: Residual blocks of a level of the encoder; the decoder has one more.
        z_channels: Channels between convolutions and transformers.
        codebook_size: Ids.
        codebook_dim: Width of an entry.
        unit_codes: Entries and latents are compared at length 1.
        attention: The coarsest levels and the middle of the convolutional nets attend.
        adaptive_norm: The decoder's levels are scaled by statistics of its input.
        depth_to_space: The decoder upsamples by depth to space, not by repeating.
        image_side: Of the images, pixels.
    """

    encoder: TransformerArch
    decoder: TransformerArch
    num_latents: int | None = 256
    layer: str = QUERY_LAYER
    encoder_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    channels: int = 128
    num_res_blocks: int = 2
    z_channels: int = 256
    codebook_size: int = 16_384
    codebook_dim: int = 8
    unit_codes: bool = True
    attention: bool = False
    adaptive_norm: bool = True
    depth_to_space: bool = True
    image_side: int = 256

    @property
    def grid(self) -> int:
        """Side of the map between convolutions and transformers."""
        return self.image_side // int(2 ** (len(self.encoder_mult) - 1))

    @property
    def num_tokens(self) -> int:
        """Ids of an image."""
        return self.grid**2 if self.num_latents is None else self.num_latents


_SMALL, _BASE, _LARGE = (SIZES[size] for size in ("small", "base", "large"))

PUBLISHED = {
    "VQ_SS256_e100": GigaTokArch(_SMALL, _SMALL),
    "VQ_SB256_e200": GigaTokArch(_SMALL, _BASE),
    "VQ_BL256_e200": GigaTokArch(_BASE, _LARGE),
    "VQ_BL256_dino_disc": GigaTokArch(_BASE, _LARGE),
    "VQ_XLXXL256_e300": GigaTokArch(SIZES["xl"], SIZES["xxl"]),
    "VQ_SS256_2d": GigaTokArch(_SMALL, _SMALL, num_latents=None, layer=QUERY_LAYER),
    "VQ_SB256_2d": GigaTokArch(_SMALL, _BASE, num_latents=None, layer=PLAIN_LAYER),
    "VQ_BL256_2d": GigaTokArch(_BASE, _LARGE, num_latents=None, layer=PLAIN_LAYER),
}
"""By the name of the weight file; the 2D ones by the name of the authors' configuration."""

# What the authors' code takes where a configuration says nothing.
_DEFAULTS: Mapping[str, Any] = {
    "codebook_size": 16_384,
    "codebook_embed_dim": 8,
    "codebook_l2_norm": True,
    "encoder_ch_mult": [1, 1, 2, 2, 4],
    "decoder_ch_mult": [1, 1, 2, 2, 4],
    "model_size": "small",
    "encoder_size": None,
    "decoder_size": None,
    "z_channels": 256,
    "num_latent_tokens": 256,
    "transformer_layer_type": QUERY_LAYER,
    "adaptive_gn": False,
    "d2s_up": False,
    "use_attn": True,
}
# What these nets do; everything else is refused.
_REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "use_lfq": (False,),
    "stochastic": (False,),
    "simvq": (False,),
    "with_prior_model": (False,),
    "use_rope": (False,),
    "rope_1d": (False,),
    "rope_2d": (False,),
    "use_qk_norm": (False,),
    "use_flash_attn": (False,),
    "learnable_1d_query_init": (False,),
    "last_level_2d_query_init": (False,),
    "multi_level_2d_query_init": (False,),
    "learnable_2d_query_init": (False,),
    "res_up_down_sample": (False,),
    "res_codebook_updown_sample": (False,),
    "downsample_improve": (False,),
    "transformer_layer_type": (PLAIN_LAYER, QUERY_LAYER),
}


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
    model = config.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("init_args"), Mapping):
        raise SetupError(
            f"{where}: the configuration has no model.init_args",
            hint="config.json is the authors' configs/vq/*.yaml as JSON; for a published model "
            f"name it instead, as `model`: {', '.join(PUBLISHED)}",
        )
    kind, given = model.get("model_cls"), model["init_args"]

    def supported(name: str, found: Any, known: tuple[Any, ...]) -> Any:
        if found not in known:
            raise SetupError(
                f"{where}: {name} is {found!r}, supported: {' or '.join(map(repr, known))}"
            )
        return found

    supported("model.model_cls", kind, (FLAT, GRID))
    for name, known in _REQUIRED.items():
        if given.get(name) is not None:
            supported(name, given[name], known)
    if kind == FLAT:
        supported("multi_level_query_init", given.get("multi_level_query_init", False), (True,))
    args = {**_DEFAULTS, **given}
    table = {
        **SIZES,
        **{name: TransformerArch(**sizes) for name, sizes in config.get("size_table", {}).items()},
    }

    def transformer(side: str) -> TransformerArch:
        name = args[f"{side}_size"] or args["model_size"]
        return table[supported(f"{side}_size", name, tuple(table))]

    convolutional = config.get("encoder_decoder", {})
    arch = GigaTokArch(
        encoder=transformer("encoder"),
        decoder=transformer("decoder"),
        num_latents=int(args["num_latent_tokens"]) if kind == FLAT else None,
        layer=args["transformer_layer_type"] if kind == GRID else QUERY_LAYER,
        encoder_mult=tuple(args["encoder_ch_mult"]),
        decoder_mult=tuple(args["decoder_ch_mult"]),
        channels=int(convolutional.get("ch", 128)),
        num_res_blocks=int(convolutional.get("num_res_blocks", 2)),
        z_channels=int(args["z_channels"]),
        codebook_size=int(args["codebook_size"]),
        codebook_dim=int(args["codebook_embed_dim"]),
        unit_codes=bool(args["codebook_l2_norm"]),
        attention=bool(args["use_attn"]),
        adaptive_norm=bool(args["adaptive_gn"]),
        depth_to_space=bool(args["d2s_up"]),
        image_side=int(config.get("image_size", 256)),
    )
    _check_fit(arch, where)
    return arch


def _check_fit(arch: GigaTokArch, where: str) -> None:
    if len(arch.encoder_mult) != len(arch.decoder_mult):
        raise SetupError(
            f"{where}: encoder_ch_mult has {len(arch.encoder_mult)} levels and decoder_ch_mult "
            f"{len(arch.decoder_mult)}, expected as many"
        )
    fits = [2**level for level in range(2 * arch.grid.bit_length() - 1) if arch.grid % 2 ** (level // 2) == 0]
    if arch.num_latents is not None and arch.num_latents not in fits:
        raise SetupError(
            f"{where}: num_latent_tokens is {arch.num_latents}, but pools of a map of "
            f"{arch.grid} x {arch.grid} give {', '.join(map(str, fits))}"
        )
