"""Sizes of TiTok, TA-TiTok and One-D-Piece models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from operators.errors import SetupError
from operators.image_tokenizers.nn.cnn_arch import CNNArch, maskgit_cnn
from operators.image_tokenizers.nn.latent_vit_arch import VIT_SIZES, ViTSize, vit_size
from operators.image_tokenizers.published_config import ConfigSection, read_config

PIXEL_CODEBOOK = 1024
"""Entries of MaskGIT's codebook, which legacy decoders paint with."""


@dataclass(frozen=True, slots=True)
class TiTokArch:
    """All sizes of one model; the defaults are those of the published ones.

    Attributes:
        encoder: Trunk of the encoder.
        decoder: Trunk of the decoder.
        num_latents: Tokens per image.
        channels: Width of a token's vector.
        codebook_size: Ids; None for continuous latents.
        unit_length: Latents and codebook entries are brought to length 1.
        legacy: The encoder's last layer interleaves the latents, and the decoder gives MaskGIT
            codes, not pixels.
        pixels: Autoencoder whose decoder makes pixels of those codes; None for models that give
            pixels, and for first-stage checkpoints.
        encoder_patch: Patch side of the encoder, pixels.
        decoder_patch: Patch side of the decoder, pixels.
        side: Of the images, pixels.
        text_tokens: Text features that a text-aware decoder takes.
        text_dim: Their width.
    """

    encoder: ViTSize
    decoder: ViTSize
    num_latents: int
    channels: int
    codebook_size: int | None
    unit_length: bool = False
    legacy: bool = False
    pixels: CNNArch | None = None
    encoder_patch: int = 16
    decoder_patch: int = 16
    side: int = 256
    text_tokens: int = 77
    text_dim: int = 768

    @property
    def encoder_grid(self) -> int:
        """Patches along a side of the encoder."""
        return self.side // self.encoder_patch

    @property
    def decoder_grid(self) -> int:
        """Patches along a side of the decoder."""
        return self.side // self.decoder_patch


def legacy_arch(size: str, num_latents: int) -> TiTokArch:
    """Return the sizes of an original TiTok, or of a One-D-Piece, after its second stage."""
    trunk = VIT_SIZES[size]
    return TiTokArch(
        trunk, trunk, num_latents, 12, 4096, unit_length=True, legacy=True, pixels=maskgit_cnn()
    )


def vq_arch(encoder: str, num_latents: int) -> TiTokArch:
    """Return the sizes of a later model with a codebook."""
    return TiTokArch(VIT_SIZES[encoder], VIT_SIZES["large"], num_latents, 64, 8192)


def vae_arch(encoder: str, num_latents: int) -> TiTokArch:
    """Return the sizes of a later model with continuous latents."""
    return TiTokArch(VIT_SIZES[encoder], VIT_SIZES["large"], num_latents, 16, None)


def arch_of_config(config: Mapping[str, Any], where: str) -> TiTokArch:
    """Read the sizes from a checkpoint's configuration.

    Entries of ours: a model size may be an object of ``width``, ``layers`` and ``heads``, and
    ``model.vq_model.pixel_decoder`` gives ``hidden``, ``mult``, ``nres`` and ``z`` of a pixel
    decoder other than the published one, whose sizes the authors' configuration does not hold.

    Args:
        config: Parsed ``config.json``.
        where: Where it was read from, for error messages.

    Raises:
        SetupError: an entry is missing, or asks for what these nets do not do.
    """
    model = read_config(config, where, "model").section("vq_model")
    side = read_config(config, where, "dataset").section("preprocessing").integer("crop_size")
    continuous = model.expect("quantize_mode", "vq", "vae") == "vae"
    legacy = model.expect("is_legacy", True, False)
    makes_pixels = model.expect("finetune_decoder", True, False)
    if makes_pixels and not legacy:
        raise SetupError(
            f"{where}: model.vq_model.finetune_decoder is true, expected false where is_legacy is",
            hint="only legacy decoders have a pixel decoder behind them",
        )
    arch = TiTokArch(
        encoder=vit_size(model, "vit_enc_model_size"),
        decoder=vit_size(model, "vit_dec_model_size"),
        num_latents=model.integer("num_latent_tokens"),
        channels=model.integer("token_size"),
        codebook_size=None if continuous else model.integer("codebook_size"),
        unit_length=not continuous and model.expect("use_l2_norm", False, True),
        legacy=legacy,
        pixels=_pixel_decoder(model) if makes_pixels else None,
        encoder_patch=model.integer("vit_enc_patch_size"),
        decoder_patch=model.integer("vit_dec_patch_size"),
        side=side,
        text_tokens=model.integer("text_context_length", 77),
        text_dim=model.integer("text_embed_dim", 768),
    )
    if side % arch.encoder_patch or side % arch.decoder_patch:
        raise SetupError(
            f"{where}: crop_size is {side}, expected a multiple of the patch sides "
            f"{arch.encoder_patch} and {arch.decoder_patch}"
        )
    return arch


def _pixel_decoder(model: ConfigSection) -> CNNArch:
    if model.get("pixel_decoder", None) is None:
        return maskgit_cnn()
    sizes = model.section("pixel_decoder")
    return maskgit_cnn(
        sizes.integer("hidden"), sizes.integers("mult"), sizes.integer("nres"), sizes.integer("z")
    )
