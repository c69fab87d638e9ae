"""The two halves of FlexTok: images to registers, and tokens to the velocity of a flow.

Bachmann et al., 2025, "FlexTok: Resampling Images into 1D Token Sequences of Flexible Length",
arXiv:2502.13967. Parameters carry the names of the published checkpoints.

Shapes: B batch, C latent channels, h latent side, S image side, P patches, R registers,
D trunk width, L quantized channels.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from operators.image_tokenizers.nn.flextok_arch import FlexTokArch, TrunkArch
from operators.image_tokenizers.nn.patches import patchify, unpatchify
from operators.image_tokenizers.nn.transformer import Transformer, causal_last_mask, layer_norm
from operators.image_tokenizers.quantize.fsq import FSQ

_TIME_PERIOD = 256.0  # ratio of the highest to the lowest frequency of the time embedding


@dataclass(frozen=True, slots=True)
class EncoderTrace:
    """What the encoder computes on its way, float32.

    Attributes:
        vae_mean: [B, C, h, h], mean of the latents' posterior.
        vae_logvar: [B, C, h, h], its log variance, within [-30, 20].
        latents: [B, C, h, h], mean or sample, scaled.
        registers: [B, R, L], what is quantized.
    """

    vae_mean: torch.Tensor
    vae_logvar: torch.Tensor
    latents: torch.Tensor
    registers: torch.Tensor


class FlexTokEncoder(nn.Module):  # type: ignore[misc]
    """Images to unquantized registers: KL autoencoder, patches, a trunk with registers."""

    def __init__(self, arch: FlexTokArch) -> None:
        from diffusers.models.autoencoders.vae import Encoder

        super().__init__()
        dim, channels = arch.encoder.dim, arch.latent_channels
        self._arch = arch
        self.quantize = FSQ(arch.levels)
        self.vae = _nest(
            vae={
                "encoder": Encoder(
                    out_channels=channels,
                    down_block_types=("DownEncoderBlock2D",) * len(arch.vae.block_out_channels),
                    block_out_channels=arch.vae.block_out_channels,
                    layers_per_block=arch.vae.layers_per_block,
                    norm_num_groups=arch.vae.norm_num_groups,
                ),
                "quant_conv": nn.Conv2d(2 * channels, 2 * channels, 1),
            }
        )
        self.encoder = _nest(
            module_dict={
                "enc_patch_emb": {"patch_proj": nn.Linear(arch.patch**2 * channels, dim)},
                "enc_posemb_module": _parameter("posembs", 1, dim, arch.grid, arch.grid),
                "enc_register_module": _parameter("registers", arch.num_registers, dim),
                "enc_transformer": _trunk(arch.encoder, num_segments=0),
                "enc_to_latents": {"proj": nn.Linear(dim, len(arch.levels))},
            }
        )

    @property
    def trunk(self) -> Any:
        """The transformer: the part that may be bfloat16."""
        return self.encoder["module_dict"]["enc_transformer"]

    def forward(
        self, images_BCSS: torch.Tensor, noise: torch.Tensor | None, num_registers: int
    ) -> EncoderTrace:
        """Encode images.

        Args:
            images_BCSS: float32 [B, 3, S, S] in [-1, 1].
            noise: Standard normal [B, C, h, h] to sample the posterior with; None takes its mean.
            num_registers: How many registers to compute, from the first. No register sees later
                ones, so that fewer registers are a prefix of more.
        """
        vae, parts = self.vae["vae"], self.encoder["module_dict"]
        mean, logvar = vae["quant_conv"](vae["encoder"](images_BCSS)).chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        latents = mean if noise is None else mean + torch.exp(0.5 * logvar) * noise
        latents = latents * self._arch.scaling_factor

        patches_BPD = parts["enc_patch_emb"]["patch_proj"](patchify(latents, self._arch.patch))
        patches_BPD = patches_BPD + _positions(parts["enc_posemb_module"])
        registers_RD = parts["enc_register_module"]["registers"][:num_registers]
        tokens = torch.cat([patches_BPD, registers_RD.expand(len(latents), -1, -1)], dim=1)
        mask = causal_last_mask(patches_BPD.shape[1], num_registers, tokens.device)
        tokens = parts["enc_transformer"](tokens, mask_TT=mask)
        registers = parts["enc_to_latents"]["proj"](layer_norm(tokens[:, -num_registers:]))
        return EncoderTrace(mean, logvar, latents, registers)


class FlexTokDecoder(nn.Module):  # type: ignore[misc]
    """Codes to the velocity of a rectified flow over latents, and latents to images."""

    def __init__(self, arch: FlexTokArch) -> None:
        from diffusers.models.autoencoders.vae import Decoder

        super().__init__()
        dim, channels = arch.decoder.dim, arch.latent_channels
        patch_dim = arch.patch**2 * channels
        self._arch = arch
        self.quantize = FSQ(arch.levels)
        self.vae = _nest(
            vae={
                "decoder": Decoder(
                    in_channels=channels,
                    up_block_types=("UpDecoderBlock2D",) * len(arch.vae.block_out_channels),
                    block_out_channels=arch.vae.block_out_channels,
                    layers_per_block=arch.vae.layers_per_block,
                    norm_num_groups=arch.vae.norm_num_groups,
                ),
                "post_quant_conv": nn.Conv2d(channels, channels, 1),
            }
        )
        self.decoder = _nest(
            module_dict={
                "dec_from_latents": {"proj": nn.Linear(len(arch.levels), dim)},
                "dec_registers_posemb_module": _parameter("posembs", 1, 1, dim, arch.num_registers),
                "dec_nested_dropout": _parameter("dropout_mask_token", dim),
                "dec_latent_dropout": _parameter("nullcond", dim),
                "dec_noise_patch_emb": {"patch_proj": nn.Linear(patch_dim, dim)},
                "dec_patches_posemb_module": _parameter("posembs", 1, dim, arch.grid, arch.grid),
                "dec_time_embedder": {
                    "mlp": nn.Sequential(
                        nn.Linear(arch.time_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
                    )
                },
                "dec_transformer": _trunk(arch.decoder, num_segments=2),
                "dec_to_patches": {
                    "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim)),
                    "proj": nn.Linear(dim, patch_dim),
                },
            }
        )

    def conditions(self, codes_BRL: torch.Tensor, kept_BR: torch.Tensor) -> torch.Tensor:
        """Return [B, R, D]: codes as tokens of the trunk, those not kept masked.

        Args:
            codes_BRL: float32.
            kept_BR: bool, True for the tokens that are there.
        """
        parts = self.decoder["module_dict"]
        tokens_BRD = parts["dec_from_latents"]["proj"](codes_BRL)
        tokens_BRD = tokens_BRD + _positions(parts["dec_registers_posemb_module"])
        masked_D = parts["dec_nested_dropout"]["dropout_mask_token"]
        return torch.where(kept_BR[..., None], tokens_BRD, masked_D)

    def no_conditions(self, batch_size: int) -> torch.Tensor:
        """Return [B, R, D]: what stands for having no tokens at all."""
        null_D = self.decoder["module_dict"]["dec_latent_dropout"]["nullcond"]
        return null_D.expand(batch_size, self._arch.num_registers, -1)

    def forward(
        self, noised_BChh: torch.Tensor, time_B: torch.Tensor, conditions_BRD: torch.Tensor
    ) -> torch.Tensor:
        """Return the velocity [B, C, h, h], noise minus clean latents.

        Args:
            noised_BChh: Latents at ``time_B``.
            time_B: In (0, 1]; 1 is pure noise.
            conditions_BRD: From ``conditions`` or ``no_conditions``.
        """
        parts, patch = self.decoder["module_dict"], self._arch.patch
        patches_BPD = parts["dec_noise_patch_emb"]["patch_proj"](patchify(noised_BChh, patch))
        patches_BPD = patches_BPD + _positions(parts["dec_patches_posemb_module"])
        num_patches, num_registers = patches_BPD.shape[1], conditions_BRD.shape[1]
        emb_BD = parts["dec_time_embedder"]["mlp"](self._time_embedding(time_B))
        index = torch.arange(num_patches + num_registers, device=noised_BChh.device)
        tokens = parts["dec_transformer"](
            torch.cat([patches_BPD, conditions_BRD], dim=1),
            emb_BD=emb_BD,
            segment_T=(index >= num_patches).long(),
        )
        head = parts["dec_to_patches"]
        shift, scale = head["adaLN_modulation"](emb_BD)[:, None].chunk(2, dim=-1)
        out = head["proj"](layer_norm(tokens[:, :num_patches]) * (1 + scale) + shift)
        return unpatchify(out, patch, self._arch.grid)

    def to_images(self, latents_BChh: torch.Tensor) -> torch.Tensor:
        """Return images [B, 3, S, S], about [-1, 1], of scaled latents."""
        vae = self.vae["vae"]
        return vae["decoder"](vae["post_quant_conv"](latents_BChh / self._arch.scaling_factor))

    def _time_embedding(self, time_B: torch.Tensor) -> torch.Tensor:
        half = self._arch.time_dim // 2
        index = torch.arange(half, dtype=torch.float32, device=time_B.device)
        frequency = torch.exp(-math.log(_TIME_PERIOD) * index / half)
        angle = time_B[:, None] * (1000 / self._arch.max_timestep) * frequency
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _trunk(arch: TrunkArch, *, num_segments: int) -> Transformer:
    return Transformer(arch.dim, arch.depth, arch.head_dim, arch.hidden, num_segments=num_segments)


def _positions(module: Any) -> torch.Tensor:
    """Return a stored table [..., D, positions...] as [positions, D]."""
    table = module["posembs"]
    return (table[0, 0] if table.shape[1] == 1 else table[0].flatten(1)).T


def _parameter(name: str, *shape: int) -> nn.ParameterDict:
    return nn.ParameterDict({name: nn.Parameter(torch.empty(shape))})


def _nest(**parts: Any) -> nn.ModuleDict:
    return nn.ModuleDict(
        {name: _nest(**part) if isinstance(part, dict) else part for name, part in parts.items()}
    )
