"""Tokenize images with FlexTok: a nested sequence of FSQ ids, cut at any length.

Bachmann et al., 2025, "FlexTok: Resampling Images into 1D Token Sequences of Flexible Length",
arXiv:2502.13967.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from operators.base import Batch, FieldSpec
from operators.extras import import_extra
from operators.image_tokenizers.base import (
    SYMMETRIC,
    Published,
    RandomWeights,
)
from operators.image_tokenizers.layout import TokenLayout
from operators.image_tokenizers.nested import NestedImageTokenizer, NestedTokenizerConfig
from operators.image_tokenizers.nn.flextok_arch import (
    DECODER_MODULES,
    FlexTokArch,
    arch_of_config,
    published_arch,
)
from operators.image_tokenizers.noise import normal, normal_of_keys

if TYPE_CHECKING:
    import torch

    from operators.image_tokenizers.nn.flextok_net import EncoderTrace

Size = Literal["d12_d12", "d18_d18", "d18_d28"]

_VAE_MODULE = "diffusers.models.autoencoders.vae"
_DECODE_STEPS, _DECODE_GUIDANCE = 20, 7.5  # the authors' recommendation, with "apg"


class FlexTokConfig(NestedTokenizerConfig):
    """What a job may say about ``flextok``."""

    name: Literal["flextok"] = "flextok"
    weights: Annotated[
        str | RandomWeights[Size],
        Field(
            description="Hub id (EPFL-VILAB/flextok_d18_d28_in1k), or a folder or URL with "
            "config.json and model.safetensors, or {random_seed, size} for a run without a "
            "checkpoint."
        ),
    ]
    posterior: Annotated[
        Literal["mode", "sample", "checkpoint"],
        Field(
            description="Latents of the autoencoder: their mean, a sample drawn from (seed, "
            "sample key), or whichever the checkpoint's configuration asks for."
        ),
    ] = "mode"
    seed: Annotated[int, Field(ge=0, description="Of sampled latents, and of decoding.")] = 0


class FlexTok(NestedImageTokenizer[FlexTokConfig, FlexTokArch]):
    """Map square RGB images to nested token ids: any prefix is a coarser description.

    Reads ``image`` uint8 [S, S, 3] (and ``key`` when latents are sampled); adds ``tokens`` of the
    smallest unsigned type, [T] with T = ``num_tokens``, one FSQ id below the codebook size each.
    Published models have S = 256, T up to 256 and 64,000 ids. S, T and the codebook follow the
    checkpoint's configuration, which is read when first asked for; weights are read by ``setup``.

    The authors resize the shorter side to S (bilinear, antialiased) and crop the centre; that is
    left to the image operators.

    Published: ``EPFL-VILAB/flextok_{d12_d12,d18_d18,d18_d28}_in1k`` and ``flextok_d18_d28_dfn``;
    licence of the weights: Apple Machine Learning Research Model License (research use only).

    Latents are the posterior's mean unless asked otherwise; the authors' package samples them by
    default, so that its ids change from run to run. Two differences change no id: images run as
    an ordinary batch under one mask, not packed into one sequence, and only the registers that
    are kept are computed.

    Nothing depends on a row's company. Another batch *size* may sum in another order: at float32
    that moves values by some 1e-6, and an id only when a value lies that near a rounding
    boundary; at bfloat16 a few ids in a hundred change, as they do against float32. The batch
    size, like the device and ``num_tokens``, therefore belongs to the recipe.

    ``min_agreement`` is, by ``dtype``, the least share of ids that equal those of the authors'
    package on the test fixture, a small model with random weights (measured for bfloat16 on a
    CPU: 0.958 of 96 ids, and 0.951 of 1,024 ids of noise images).
    """

    Config = FlexTokConfig
    paper = "arXiv:2502.13967"
    weights_license = "Apple Machine Learning Research Model License (research use only)"
    published = (
        Published("EPFL-VILAB/flextok_d12_d12_in1k", "d12_d12", 256, 64_000),
        Published("EPFL-VILAB/flextok_d18_d18_in1k", "d18_d18", 256, 64_000),
        Published("EPFL-VILAB/flextok_d18_d28_in1k", "d18_d28", 256, 64_000),
        Published("EPFL-VILAB/flextok_d18_d28_dfn", "d18_d28", 256, 64_000),
    )
    min_agreement: ClassVar[Mapping[str, float]] = {
        "float32": 1.0,
        "compiled": 1.0,
        "bfloat16": 0.93,
    }
    normalization = SYMMETRIC
    preprocessing = ({"name": "resize", "size": 256}, {"name": "center_crop", "size": 256})
    extra = "flextok"
    encoder_ignores = ("decoder.", "vae.vae.decoder.", "vae.vae.post_")
    decoder_ignores = ("encoder.", "vae.vae.encoder.", "vae.vae.quant_")

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """``image``, and ``key`` when latents are sampled."""
        image = super().inputs
        return {**image, "key": FieldSpec("string")} if self.samples_posterior else image

    def published_arch(self, size: str) -> FlexTokArch:
        """Return the sizes of a published model."""
        return published_arch(size)

    def arch_of_config(self, config: Mapping[str, Any], where: str) -> FlexTokArch:
        """Read the authors' configuration."""
        return arch_of_config(config, where)

    @property
    def image_sides(self) -> tuple[int, int]:
        """A square."""
        return self.arch.image_side, self.arch.image_side

    @property
    def full_layout(self) -> TokenLayout:
        """All registers."""
        return TokenLayout(self.arch.num_registers, (math.prod(self.arch.levels),), nested=True)

    @property
    def model_layout(self) -> TokenLayout:
        """The registers that are computed."""
        return replace(self.full_layout, positions=self.num_tokens)

    @property
    def samples_posterior(self) -> bool:
        """True when latents are sampled, so that ids depend on ``seed`` and ``key``."""
        if self.config.posterior == "checkpoint":
            return self.arch.sample_posterior
        return self.config.posterior == "sample"

    def metadata(self) -> Mapping[str, object]:
        """What a reader of the tokens must know."""
        return {
            **super().metadata(),
            "levels": list(self.arch.levels),
            "posterior": "sample" if self.samples_posterior else "mode",
        }

    def check_extras(self) -> None:
        """Import the autoencoder."""
        import_extra(_VAE_MODULE, extra="flextok", where="flextok")

    @property
    def training_only(self) -> tuple[str, ...]:
        """Heads of the decoder that only training uses, by the configuration."""
        config = self._checkpoint.config()
        parts = config.get("config", config)["decoder"]["module_dict"]
        heads = sorted(set(parts) - set(DECODER_MODULES))
        return (
            "flow_matching_noise_module.",
            *(f"decoder.module_dict.{name}." for name in heads),
        )

    def encoder_net(self) -> Any:
        """Build the encoder."""
        from operators.image_tokenizers.nn.flextok_net import FlexTokEncoder

        return FlexTokEncoder(self.arch)

    def decoder_net(self) -> Any:
        """Build the decoder."""
        from operators.image_tokenizers.nn.flextok_net import FlexTokDecoder

        return FlexTokDecoder(self.arch)

    def to_bfloat16(self, encoder: Any) -> None:
        """Make the transformer bfloat16: the autoencoder's latents stay float32."""
        import torch

        encoder.trunk.to(torch.bfloat16)

    def latents_of(self, images: "torch.Tensor", batch: Batch, view: int) -> "torch.Tensor":
        """Return the registers, of sampled latents where that is asked for."""
        if not self.samples_posterior:
            return self.latents(images)
        noise = normal_of_keys(
            self.config.seed, batch["key"], self._latent_shape, images.device, view=view
        )
        return self.trace(images, noise).registers

    def latents(self, images: "torch.Tensor") -> "torch.Tensor":
        """Return the registers float32 [B, T, L] of images in [-1, 1]."""
        return self.trace(images).registers

    def trace(
        self, images_BCSS: "torch.Tensor", noise: "torch.Tensor | None" = None
    ) -> "EncoderTrace":
        """Return what is computed before it is quantized.

        Args:
            images_BCSS: float32 [B, 3, S, S] in [-1, 1], on the device.
            noise: Standard normal [B, C, h, h] to sample latents with; None takes their mean.
        """
        import torch

        from operators.image_tokenizers.nn.precision import float32_arithmetic

        tf32 = self.config.dtype == "bfloat16"
        with torch.inference_mode(), float32_arithmetic(tf32=tf32):
            trace: EncoderTrace = self._forward(images_BCSS, noise, self.num_tokens)
        return trace

    def decode_tokens(self, ids: "torch.Tensor") -> "torch.Tensor":
        """Draw images float32 [B, 3, S, S], about [-1, 1], with the authors' settings.

        That is 20 steps with normalized guidance of 7.5. Every row starts from the same noise,
        drawn from ``seed``.

        Args:
            ids: Integers [B, k] with any k up to the model's.
        """
        return self.draw(ids)[1]

    def draw(
        self,
        ids_BT: "torch.Tensor",
        *,
        num_tokens: int | Sequence[int] | None = None,
        steps: int = _DECODE_STEPS,
        guidance: float = _DECODE_GUIDANCE,
        guidance_mode: Literal["none", "cfg", "apg"] = "apg",
        noise: "torch.Tensor | None" = None,
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Draw images that fit the tokens, and the latents they are drawn from.

        Args:
            ids_BT: Integers [B, T], T up to the model's.
            num_tokens: Use this many of them, or this many for each row; None is T.
            steps: Euler steps of the flow.
            guidance: Strength of guidance.
            guidance_mode: ``none``, classifier-free, or its normalized projected form.
            noise: Start of the flow [B, C, h, h]; None draws one from ``seed`` for all rows.

        Returns:
            Latents float32 [B, C, h, h] (scaled), images float32 [B, 3, S, S] about [-1, 1].
        """
        import torch

        from operators.image_tokenizers.nn.precision import float32_arithmetic
        from operators.image_tokenizers.nn.rectified_flow import integrate

        decoder, arch = self.decoder, self.arch
        rows, given = ids_BT.shape
        kept = torch.as_tensor(given if num_tokens is None else num_tokens, device=self._device)
        position = torch.arange(arch.num_registers, device=self._device)
        kept_BR = (position < kept.reshape(-1, 1)).expand(rows, -1)
        ids_BR = torch.zeros(rows, arch.num_registers, dtype=torch.int64, device=self._device)
        ids_BR[:, :given] = ids_BT.to(self._device, torch.int64)
        if noise is None:
            noise = torch.from_numpy(normal(self.config.seed, "decode", self._latent_shape)).to(
                self._device
            )
            noise = noise.expand(rows, -1, -1, -1)

        with torch.inference_mode(), float32_arithmetic(tf32=False):
            conditions = decoder.conditions(decoder.quantize.decode(ids_BR), kept_BR)
            nothing = decoder.no_conditions(rows)
            latents = integrate(
                lambda state, time, conditional: decoder(
                    state, time, conditions if conditional else nothing
                ),
                noise,
                steps=steps,
                guidance=guidance,
                mode=guidance_mode,
            )
            return latents, decoder.to_images(latents)

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        arch = self.arch
        return arch.latent_channels, arch.latent_side, arch.latent_side
