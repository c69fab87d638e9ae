"""Tokenize images with FlexTok: a nested sequence of FSQ ids, cut at any length.

Bachmann et al., 2025, "FlexTok: Resampling Images into 1D Token Sequences of Flexible Length",
arXiv:2502.13967.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from operators.base import Batch, FieldSpec, Operator, OperatorConfig, Resources, smallest_uint
from operators.columns import check_column
from operators.errors import ContractError, SetupError
from operators.extras import import_extra
from operators.image_tokenizers.nn.flextok_arch import (
    DECODER_MODULES,
    FlexTokArch,
    arch_of_config,
    published_arch,
)
from operators.weights import Checkpoint

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from operators.image_tokenizers.nn.flextok_net import EncoderTrace
    from operators.image_tokenizers.quantize.fsq import FSQ

_LOG = logging.getLogger(__name__)

_PAPER = "arXiv:2502.13967"
_LICENCE = "published weights: Apple Machine Learning Research Model License (research use only)"
_VAE_MODULE = "diffusers.models.autoencoders.vae"
_DECODE_ROWS = 8
_DECODE_STEPS, _DECODE_GUIDANCE = 20, 7.5  # the authors' recommendation, with "apg"


class RandomWeights(BaseModel):
    """A published size with random weights: for smoke and speed runs without a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    random_seed: Annotated[int, Field(ge=0, description="Seed of the weights.")]
    size: Annotated[
        Literal["d12_d12", "d18_d18", "d18_d28"],
        Field(description="Blocks of the encoder and of the decoder."),
    ]


class FlexTokConfig(OperatorConfig):
    """What a job may say about ``flextok``."""

    name: Literal["flextok"] = "flextok"
    weights: Annotated[
        str | RandomWeights,
        Field(
            description="Hub id (EPFL-VILAB/flextok_d18_d28_in1k), or a folder or URL with "
            "config.json and model.safetensors, or {random_seed, size} for a run without a "
            "checkpoint."
        ),
    ]
    revision: Annotated[
        str | None,
        Field(description="Commit, tag or branch of a hub id; a full commit pins the weights."),
    ] = None
    device: Annotated[
        Literal["cuda", "cpu"], Field(description="Part of the recipe: ids may differ by rounding.")
    ] = "cuda"
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        Field(
            description="float32 is exact. bfloat16 runs the encoder's transformer in bfloat16 "
            "and the rest in TF32 on a GPU: faster, a few ids in a hundred differ."
        ),
    ] = "float32"
    posterior: Annotated[
        Literal["mode", "sample", "checkpoint"],
        Field(
            description="Latents of the autoencoder: their mean, a sample drawn from (seed, "
            "sample key), or whichever the checkpoint's configuration asks for."
        ),
    ] = "mode"
    seed: Annotated[int, Field(ge=0, description="Of sampled latents, and of decoding.")] = 0
    num_tokens: Annotated[
        int | None, Field(ge=1, description="Keep this many tokens, from the first; null is all.")
    ] = None


class FlexTok(Operator[FlexTokConfig]):
    """Map square RGB images to nested token ids: any prefix is a coarser description.

    Reads ``image`` uint8 [S, S, 3] (and ``key`` when latents are sampled); adds ``tokens`` of the
    smallest unsigned type, [T] with T = ``num_tokens``, one FSQ id below the codebook size each.
    Published models have S = 256, T up to 256 and 64,000 ids. S, T and the codebook follow the
    checkpoint's configuration, which is read when first asked for; weights are read by ``setup``.

    The authors resize the shorter side to S (bilinear, antialiased) and crop the centre; that is
    left to the image operators.

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
    version = 1
    stage = "device"
    min_agreement: ClassVar[Mapping[str, float]] = {"float32": 1.0, "bfloat16": 0.93}

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__(config)
        if config.revision is not None and not isinstance(config.weights, str):
            raise ContractError(
                f"flextok: revision={config.revision!r} is given, but the weights are random",
                hint="remove the revision, or name a hub id as `weights`",
            )
        self._device: str = config.device
        self._encoder: Any = None
        self._decoder: Any = None

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """``image``, and ``key`` when latents are sampled."""
        side = self.arch.image_side
        image = {"image": FieldSpec("uint8", (side, side, 3))}
        return {**image, "key": FieldSpec("string")} if self.samples_posterior else image

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """``tokens``."""
        size = self._fsq.codebook_sizes[0]
        return {"tokens": FieldSpec(smallest_uint(size), (self.num_tokens,), vocab_size=size)}

    @property
    def resources(self) -> Resources:
        """One core, and one GPU on ``cuda``."""
        return Resources(cpus=1.0, gpus=1.0 if self.config.device == "cuda" else 0.0)

    @property
    def device(self) -> str:
        """The configured device."""
        return self.config.device

    @cached_property
    def arch(self) -> FlexTokArch:
        """The model's sizes.

        Raises:
            SetupError: the checkpoint's configuration is missing or of another model.
        """
        if isinstance(self.config.weights, str):
            return arch_of_config(self._checkpoint.config(), f"flextok: {self.config.weights}")
        return published_arch(self.config.weights.size)

    @property
    def num_tokens(self) -> int:
        """Tokens per image.

        Raises:
            ContractError: more are configured than the model has.
        """
        most = self.arch.num_registers
        asked = self.config.num_tokens or most
        if asked > most:
            raise ContractError(
                f"flextok: num_tokens={asked}, but the model has {most}",
                hint=f"set num_tokens to 1..{most}, or leave it out for all",
            )
        return asked

    @property
    def samples_posterior(self) -> bool:
        """True when latents are sampled, so that ids depend on ``seed`` and ``key``."""
        if self.config.posterior == "checkpoint":
            return self.arch.sample_posterior
        return self.config.posterior == "sample"

    def setup(self, device: str) -> None:
        """Load the encoder; the decoder's weights are not read."""
        self._device = device
        encoder = self._load("FlexTokEncoder", ("decoder.", "vae.vae.decoder.", "vae.vae.post_"))
        if self.config.dtype == "bfloat16":
            import torch

            encoder.trunk.to(torch.bfloat16)
        self._encoder = encoder

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize a batch; see the class."""
        import torch

        images = batch["image"]
        check_column("image", images, self.inputs["image"], len(images), "flextok")
        noise = self._noise_of_keys(batch["key"]) if self.samples_posterior else None
        pixels = images.permute(0, 3, 1, 2).contiguous().float()
        ids = self.encode(((pixels / 255) - 0.5) / 0.5, noise)
        return {"tokens": ids.to(getattr(torch, self.outputs["tokens"].dtype))}

    def identity(self) -> Mapping[str, object]:
        """Digests of the weights, or that they are random."""
        if not isinstance(self.config.weights, str):
            return {
                "random_weights": True,
                "warning": "flextok has random weights: its tokens mean nothing, "
                "use them for smoke and speed runs only",
            }
        found = self._checkpoint.identity()
        if self._checkpoint.is_pinned:
            return found
        return {
            **found,
            "warning": f"flextok: {self.config.weights} is not pinned and may change between "
            f"runs; add `revision: {found['revision']}`",
        }

    def metadata(self) -> Mapping[str, object]:
        """What a reader of the tokens must know."""
        random = not isinstance(self.config.weights, str)
        return {
            "nested": True,
            "positions": self.num_tokens,
            "model_positions": self.arch.num_registers,
            "levels": list(self.arch.levels),
            "codebook_size": self._fsq.codebook_sizes[0],
            "image_side": self.arch.image_side,
            "normalization": {"mean": 0.5, "std": 0.5},
            "posterior": "sample" if self.samples_posterior else "mode",
            "checkpoint": None if random else self.config.weights,
            "weights_license": None if random else _LICENCE,
            "paper": _PAPER,
        }

    def encode(
        self, images_BCSS: "torch.Tensor", noise: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        """Return ids, int64 [B, T].

        Args:
            images_BCSS: float32 [B, 3, S, S] in [-1, 1], on the device.
            noise: Standard normal [B, C, h, h] to sample latents with; None takes their mean.
        """
        return self._fsq.encode(self.trace(images_BCSS, noise).registers)

    def trace(
        self, images_BCSS: "torch.Tensor", noise: "torch.Tensor | None" = None
    ) -> "EncoderTrace":
        """Return what ``encode`` computes before it quantizes; same arguments."""
        import torch

        from operators.image_tokenizers.nn.precision import float32_arithmetic

        tf32 = self.config.dtype == "bfloat16"
        with torch.inference_mode(), float32_arithmetic(tf32=tf32):
            trace: EncoderTrace = self._encoder(images_BCSS, noise, self.num_tokens)
        return trace

    def decode(self, batch: Batch) -> Batch:
        """Draw images that fit the tokens; the decoder's weights are read on the first call.

        Uses the authors' settings (20 steps, normalized guidance 7.5), in float32. Every row
        starts from the same noise, drawn from ``seed``.

        Args:
            batch: ``tokens`` [N, k] with any k up to the model's.

        Returns:
            ``image`` uint8 [N, S, S, 3].
        """
        import torch

        tokens = torch.from_numpy(np.asarray(batch["tokens"]).astype(np.int64))
        images = [self.decode_tokens(rows)[1].cpu() for rows in tokens.split(_DECODE_ROWS)]
        pixels = ((torch.cat(images) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return {"image": pixels.permute(0, 2, 3, 1).contiguous().numpy()}

    def decode_tokens(
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

        if self._decoder is None:
            self._decoder = self._load(
                "FlexTokDecoder", ("encoder.", "vae.vae.encoder.", "vae.vae.quant_")
            )
        decoder, arch = self._decoder, self.arch
        rows, given = ids_BT.shape
        kept = torch.as_tensor(given if num_tokens is None else num_tokens, device=self._device)
        position = torch.arange(arch.num_registers, device=self._device)
        kept_BR = (position < kept.reshape(-1, 1)).expand(rows, -1)
        ids_BR = torch.zeros(rows, arch.num_registers, dtype=torch.int64, device=self._device)
        ids_BR[:, :given] = ids_BT.to(self._device, torch.int64)
        if noise is None:
            noise = torch.from_numpy(self._normal("decode")).to(self._device)
            noise = noise.expand(rows, -1, -1, -1)

        with torch.inference_mode(), float32_arithmetic(tf32=False):
            conditions = decoder.conditions(self._fsq.decode(ids_BR), kept_BR)
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

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        weights = self.config.weights
        assert isinstance(weights, str)
        return Checkpoint(
            weights,
            revision=self.config.revision,
            files=self.model_files,
            where="flextok",
            extra="flextok",
        )

    @cached_property
    def _fsq(self) -> "FSQ":
        from operators.image_tokenizers.quantize.fsq import FSQ

        return FSQ(self.arch.levels)

    def _load(self, net: str, other_parts: Sequence[str]) -> Any:
        import torch

        self._check_device()
        import_extra(_VAE_MODULE, extra="flextok", where="flextok")
        from operators.image_tokenizers.nn import flextok_net
        from operators.image_tokenizers.nn.random_weights import fill_random

        arch = self.arch
        with torch.device("meta"):
            module = getattr(flextok_net, net)(arch)
        if not isinstance(self.config.weights, str):
            fill_random(module, self.config.weights.random_seed)
        else:
            unused = self._checkpoint.load_into(
                module, other_parts=other_parts, training_only=self._training_only()
            )
            if unused:
                _LOG.info("flextok: %d training-only tensors: %s", len(unused), ", ".join(unused))
        return module.to(self._device).eval().requires_grad_(False)

    def _training_only(self) -> tuple[str, ...]:
        config = self._checkpoint.config()
        parts = config.get("config", config)["decoder"]["module_dict"]
        heads = sorted(set(parts) - set(DECODER_MODULES))
        return ("flow_matching_noise_module.", *(f"decoder.module_dict.{name}." for name in heads))

    def _check_device(self) -> None:
        import torch

        if str(self._device).startswith("cuda") and not torch.cuda.is_available():
            raise SetupError(
                "flextok: device is cuda, but torch finds no GPU",
                hint="run where there is one, or set `device: cpu` (slow, but it works)",
            )

    def _noise_of_keys(self, keys: "pa.Array") -> "torch.Tensor":
        import torch

        rows = [self._normal(f"posterior/{key}") for key in keys.to_pylist()]
        return torch.from_numpy(np.stack(rows)).to(self._device)

    def _normal(self, purpose: str) -> np.ndarray:
        """Return standard normal float32 [C, h, h] that depends on seed and purpose alone."""
        digest = hashlib.sha256(f"{self.config.seed}/{purpose}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
        shape = (self.arch.latent_channels, self.arch.latent_side, self.arch.latent_side)
        return generator.standard_normal(shape, dtype=np.float32)
