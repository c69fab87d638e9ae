"""Tokenize images with TiTok or TA-TiTok: a short row of ids, or of continuous latents.

Yu et al., 2024, "An Image is Worth 32 Tokens for Reconstruction and Generation", arXiv:2406.07550;
Kim et al., 2025, "Democratizing Text-to-Image Masked Generative Models with Compact Text-Aware
One-Dimensional Tokens", arXiv:2501.07730.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from operators.base import Batch, FieldSpec
from operators.errors import ContractError
from operators.image_tokenizers.base import ImageTokenizerConfig, Published, RandomWeights
from operators.image_tokenizers.layout import TokenLayout
from operators.image_tokenizers.nn.titok_arch import TiTokArch, legacy_arch, vae_arch, vq_arch
from operators.image_tokenizers.noise import normal_of_keys
from operators.image_tokenizers.titok_family import TiTokFamily
from operators.weights import WEIGHT_FILE

if TYPE_CHECKING:
    import torch

Legacy = Literal["l32", "b64", "s128"]
Size = Literal[
    Legacy,
    "bl64_vq8k",
    "bl128_vq8k",
    "sl256_vq8k",
    "ll32_vae_c16",
    "bl64_vae_c16",
    "bl128_vae_c16",
    "tatitok_bl32_vq",
    "tatitok_bl64_vq",
    "tatitok_bl128_vq",
    "tatitok_bl32_vae",
    "tatitok_bl64_vae",
    "tatitok_sl128_vae",
]

_FILES = "fun-research/TiTok"
_ARCHS: Mapping[str, TiTokArch] = {
    "l32": legacy_arch("large", 32),
    "b64": legacy_arch("base", 64),
    "s128": legacy_arch("small", 128),
    "bl64_vq8k": vq_arch("base", 64),
    "bl128_vq8k": vq_arch("base", 128),
    "sl256_vq8k": vq_arch("small", 256),
    "ll32_vae_c16": vae_arch("large", 32),
    "bl64_vae_c16": vae_arch("base", 64),
    "bl128_vae_c16": vae_arch("base", 128),
    "tatitok_bl32_vq": vq_arch("base", 32),
    "tatitok_bl64_vq": vq_arch("base", 64),
    "tatitok_bl128_vq": vq_arch("base", 128),
    "tatitok_bl32_vae": vae_arch("base", 32),
    "tatitok_bl64_vae": vae_arch("base", 64),
    "tatitok_sl128_vae": vae_arch("small", 128),
}


def _published(size: str) -> Published:
    text_aware = size.startswith("tatitok_")
    weights = (
        f"turkeyju/tokenizer_{size}"
        if text_aware
        else f"yucornetto/tokenizer_titok_{size}_imagenet"
    )
    return Published(weights, size, _ARCHS[size].num_latents, _ARCHS[size].codebook_size)


class TiTokConfig(ImageTokenizerConfig):
    """What a job may say about ``titok``."""

    name: Literal["titok"] = "titok"
    weights: Annotated[
        str | RandomWeights[Size],
        Field(
            description="Hub id (yucornetto/tokenizer_titok_l32_imagenet, "
            "turkeyju/tokenizer_tatitok_bl32_vq, fun-research/TiTok), a folder, the path or URL of "
            "a weight file, or {random_seed, size}."
        ),
    ]
    model: Annotated[
        Size | None,
        Field(
            description="Published model whose sizes the weights have, for files without a "
            "config.json (those of fun-research/TiTok); null reads it."
        ),
    ] = None
    posterior: Annotated[
        Literal["mode", "sample"],
        Field(
            description="For models with continuous latents: their mean, or a sample drawn from "
            "(seed, sample key)."
        ),
    ] = "mode"
    seed: Annotated[int, Field(ge=0, description="Of sampled latents.")] = 0
    latent_dtype: Annotated[
        Literal["float32", "float16"],
        Field(description="For models with continuous latents: how they are stored."),
    ] = "float32"


class TiTok(TiTokFamily[TiTokConfig]):
    """Map square RGB images to a short row of ids, or of continuous latents.

    Reads ``image`` uint8 [256, 256, 3] in [0, 1]. Models with a codebook add ``tokens`` uint16 [L],
    L from 32 to 256: the entry nearest to each latent, of 4,096 of width 12 (both sides brought to
    length 1) or of 8,192 of width 64. Those without add ``latents`` [L, 16], the posterior's mean,
    or, on request, a sample, for which ``key`` is read as well: the authors' package always
    samples, so that its latents change from run to run. Tokens have no order in space.

    Published: ``yucornetto/tokenizer_titok_*_imagenet`` (l32, b64, s128; bl64_vq8k, bl128_vq8k,
    sl256_vq8k; continuous ll32_vae_c16, bl64_vae_c16, bl128_vae_c16), the first three also as
    files of ``fun-research/TiTok``, and TA-TiTok's ``turkeyju/tokenizer_tatitok_*`` (bl32_vq,
    bl64_vq, bl128_vq; continuous bl32_vae, bl64_vae, sl128_vae). Weights have the Apache-2.0
    licence; the authors say "for research purposes only". TA-TiTok's encoders read no text, but
    its decoders do: give it to ``decode_tokens``.

    The authors resize the shorter side with a bicubic filter and crop the centre to evaluate, and
    use ``adm_center_crop`` to prepare the tokens that generators are trained on.

    Checked against the authors' code on small models with random weights, a legacy, a later and a
    continuous one: ids identical, alone and in batches; latents, samples of given noise, and
    decoded images to 1e-4 (a text-aware decoder was compared once, to 1e-6). At bfloat16, on a
    CPU, 0.938 of 96 ids of the legacy model and 0.958 of 72 of the later one stay the same, 0.951
    and 0.969 of some 1,000 ids of noise images; continuous latents move by 0.024 of their root
    mean square.
    """

    Config = TiTokConfig
    paper = "arXiv:2406.07550"
    weights_license = "Apache-2.0 (research purposes only, say the authors)"
    published = (
        *(_published(size) for size in _ARCHS),
        *(
            Published(_FILES, size, _ARCHS[size].num_latents, _ARCHS[size].codebook_size)
            for size in ("l32", "b64", "s128")
        ),
    )
    min_agreement: ClassVar[Mapping[str, float]] = {
        "float32": 1.0,
        "compiled": 1.0,
        "bfloat16": 0.9,
    }
    preprocessing = (
        {"name": "resize", "size": 256, "interpolation": "bicubic"},
        {"name": "center_crop", "size": 256},
    )
    other_preprocessing = (({"name": "adm_center_crop", "size": 256},),)

    @cached_property
    def model(self) -> str | None:
        """As the job says; every hub id but that of the plain files has a config.json."""
        return super().model if self._weights == _FILES else self.config.model

    @property
    def weight_file(self) -> str:
        """The published name."""
        return f"tokenizer_titok_{self.model}.bin" if self._weights == _FILES else WEIGHT_FILE

    def published_arch(self, size: str) -> TiTokArch:
        """Return the sizes of a published model."""
        return _ARCHS[size]

    @property
    def layout(self) -> TokenLayout:
        """A row of latents.

        Raises:
            ContractError: an option is for continuous latents, but the model has a codebook.
        """
        defaults = TiTokConfig.model_fields
        for option in ("posterior", "latent_dtype"):
            given = getattr(self.config, option)
            if not self.is_continuous and given != defaults[option].default:
                raise ContractError(
                    f"titok: {option}={given!r} is given, but {self._weights} has a codebook",
                    hint=f"remove {option}: it is for models with continuous latents",
                )
        return super().layout

    @property
    def is_continuous(self) -> bool:
        """True when the model has no codebook."""
        return self.arch.codebook_size is None

    @property
    def samples_posterior(self) -> bool:
        """True when latents depend on ``seed`` and ``key``."""
        return self.config.posterior == "sample"

    @cached_property
    def reads_text(self) -> bool:
        """True for TA-TiTok, whose configuration does not tell."""
        size = self._weights.size if isinstance(self._weights, RandomWeights) else self.model
        if size is not None:
            return size.startswith("tatitok_")
        return any(name.startswith("decoder.text_guidance_") for name in self._checkpoint.names())

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """``image``, and ``key`` when latents are sampled."""
        key = {"key": FieldSpec("string")} if self.samples_posterior else {}
        return {**super().inputs, **key}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """``tokens``, or ``latents``."""
        layout = self.layout
        if not self.is_continuous:
            return super().outputs
        shape = (*self._view_shape, *layout.shape, self.arch.channels)
        return {"latents": FieldSpec(self.config.latent_dtype, shape)}

    def tokens_of(self, latents: "torch.Tensor", batch: Batch, view: int) -> "torch.Tensor":
        """Return ids [B, L], or continuous latents float32 [B, L, C]."""
        if not self.is_continuous:
            return super().tokens_of(latents, batch, view)
        posterior = self._encoder.quantize
        if not self.samples_posterior:
            found: torch.Tensor = posterior.mode(latents)
            return found
        shape = (self.arch.num_latents, self.arch.channels)
        noise = normal_of_keys(self.config.seed, batch["key"], shape, latents.device, view=view)
        drawn: torch.Tensor = posterior.sample(latents, noise)
        return drawn

    def columns_of(self, tokens: "torch.Tensor", batch: Batch) -> Batch:
        """Return ``tokens`` or ``latents``."""
        import torch

        if not self.is_continuous:
            return super().columns_of(tokens, batch)
        return {"latents": tokens.to(getattr(torch, self.config.latent_dtype))}

    def codes_of(self, batch: Batch) -> "torch.Tensor":
        """Return ids, or continuous latents."""
        import torch

        if not self.is_continuous:
            return super().codes_of(batch)
        return torch.from_numpy(np.asarray(batch["latents"], np.float32))

    def metadata(self) -> Mapping[str, object]:
        """What a reader of the tokens must know."""
        if not self.is_continuous:
            return super().metadata()
        return {
            **super().metadata(),
            "latent_channels": self.arch.channels,
            "posterior": self.config.posterior,
        }
