"""Sizes of a FlexTok model, read from its checkpoint's configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from operators.errors import SetupError

ENCODER_MODULES = (
    "enc_channels_to_last",
    "enc_patch_emb",
    "enc_posemb_module",
    "enc_register_module",
    "enc_seq_packer",
    "enc_transformer",
    "enc_unpacker",
    "enc_to_latents",
)
DECODER_MODULES = (
    "dec_from_latents",
    "dec_registers_posemb_module",
    "dec_nested_dropout",
    "dec_latent_dropout",
    "dec_noise_channels_to_last",
    "dec_noise_patch_emb",
    "dec_patches_posemb_module",
    "dec_seq_packer",
    "dec_time_embedder",
    "dec_transformer",
    "dec_unpacker",
    "dec_to_patches",
    "dec_channels_to_first",
)

_VAE_SCALING_FACTOR = 0.18215  # the autoencoder library's, for a configuration without one

PUBLISHED_DEPTHS = {"d12_d12": (12, 12), "d18_d18": (18, 18), "d18_d28": (18, 28)}


@dataclass(frozen=True, slots=True)
class TrunkArch:
    """A transformer's sizes.

    Attributes:
        dim: Width.
        depth: Blocks.
        head_dim: Width of one attention head.
    """

    dim: int
    depth: int
    head_dim: int = 64

    @property
    def hidden(self) -> int:
        """Width inside the gated MLP: two thirds of four times ``dim``."""
        return int(2 * int(4 * self.dim) / 3)


@dataclass(frozen=True, slots=True)
class VAEArch:
    """Sizes of the KL autoencoder; the defaults are those of the published models.

    Attributes:
        block_out_channels: Channels per resolution; every step but the last halves it.
        layers_per_block: Residual blocks per resolution.
        norm_num_groups: Groups of the group norms.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32

    @property
    def downsampling(self) -> int:
        """Pixels per latent position, along one side."""
        return int(2 ** (len(self.block_out_channels) - 1))


@dataclass(frozen=True, slots=True)
class FlexTokArch:
    """All sizes of one model; the defaults are those of the published models.

    Attributes:
        encoder: Trunk that writes the registers.
        decoder: Trunk of the flow model.
        vae: Autoencoder around both.
        latent_channels: Channels of the autoencoder's latents.
        scaling_factor: What latents are multiplied with.
        sample_posterior: The checkpoint asks for sampled, not mean, latents.
        patch: Patch side, in latent positions.
        grid: Patches along one side.
        num_registers: Tokens per image.
        levels: Values per quantized channel.
        time_dim: Width of the sinusoidal time embedding.
        max_timestep: Largest time the embedding is made for.
    """

    encoder: TrunkArch
    decoder: TrunkArch
    vae: VAEArch = VAEArch()
    latent_channels: int = 16
    scaling_factor: float = _VAE_SCALING_FACTOR
    sample_posterior: bool = True
    patch: int = 2
    grid: int = 16
    num_registers: int = 256
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    time_dim: int = 256
    max_timestep: float = 1.0

    @property
    def latent_side(self) -> int:
        """Side of the latents."""
        return self.grid * self.patch

    @property
    def image_side(self) -> int:
        """Side of the images, pixels."""
        return self.latent_side * self.vae.downsampling


def published_arch(size: str) -> FlexTokArch:
    """Return the sizes of a published model, a key of ``PUBLISHED_DEPTHS``: width 64 x depth."""
    encoder, decoder = (TrunkArch(64 * depth, depth) for depth in PUBLISHED_DEPTHS[size])
    return FlexTokArch(encoder=encoder, decoder=decoder)


def arch_of_config(config: Mapping[str, Any], where: str) -> FlexTokArch:
    """Read the sizes from a checkpoint's configuration.

    The authors' keys stand under ``config`` or at the top. One key is ours: ``vae_arch``, an
    object with the fields of ``VAEArch``, for an autoencoder other than the published one, whose
    sizes the authors' configuration does not hold.

    Args:
        config: Parsed ``config.json`` or weight file metadata.
        where: Where it was read from, for error messages.

    Raises:
        SetupError: an entry is missing, or asks for what these nets do not do.
    """
    root = config.get("config", config)
    encoder, decoder = ("encoder", "module_dict"), ("decoder", "module_dict")

    def get(*path: str) -> Any:
        node = root
        for depth, name in enumerate(path):
            if not isinstance(node, Mapping) or name not in node:
                raise SetupError(
                    f"{where}: the configuration has no {'.'.join(path[: depth + 1])}",
                    hint="the checkpoint must be a FlexTok model",
                )
            node = node[name]
        return node

    def trunk(*path: str) -> TrunkArch:
        return TrunkArch(*(int(get(*path, name)) for name in ("dim", "depth", "head_dim")))

    def expect(path: tuple[str, ...], known: tuple[Any, ...]) -> Any:
        found = get(*path)
        if found not in known:
            raise SetupError(
                f"{where}: {'.'.join(path)} is {found!r}, supported: "
                f"{', '.join(repr(value) for value in known)}"
            )
        return found

    unknown = sorted(set(get(*encoder)) ^ set(ENCODER_MODULES))
    if unknown:
        raise SetupError(
            f"{where}: encoder.module_dict lacks or adds {', '.join(unknown)}",
            hint=f"an encoder of exactly {', '.join(ENCODER_MODULES)} is supported",
        )
    expect((*encoder, "enc_seq_packer", "mask_mode"), ("causal_last",))
    expect((*decoder, "dec_seq_packer", "mask_mode"), ("full",))
    patch = get(*encoder, "enc_patch_emb", "patch_sizes")
    grid = get(*encoder, "enc_posemb_module", "max_sizes")
    for name, sides in (("patch_sizes", patch), ("max_sizes", grid)):
        if len(sides) != 2 or sides[0] != sides[1]:
            raise SetupError(f"{where}: {name} is {sides}, expected a square")
    vae = get("vae")
    return FlexTokArch(
        encoder=trunk(*encoder, "enc_transformer"),
        decoder=trunk(*decoder, "dec_transformer"),
        vae=_vae_arch(config.get("vae_arch", {}), where),
        latent_channels=int(get("vae", "latent_channels")),
        scaling_factor=float(vae.get("scaling_factor") or _VAE_SCALING_FACTOR),
        sample_posterior=bool(vae.get("sample_posterior", True)),
        patch=int(patch[0]),
        grid=int(grid[0]),
        num_registers=int(get(*encoder, "enc_register_module", "n_max")),
        levels=tuple(int(level) for level in get("regularizer", "levels")),
        time_dim=int(get(*decoder, "dec_time_embedder", "frequency_embedding_size")),
        max_timestep=float(get(*decoder, "dec_time_embedder", "max_timestep")),
    )


def _vae_arch(found: Mapping[str, Any], where: str) -> VAEArch:
    known = {field.name for field in fields(VAEArch)}
    if set(found) - known:
        raise SetupError(
            f"{where}: vae_arch has {', '.join(sorted(set(found) - known))}, "
            f"supported: {', '.join(sorted(known))}"
        )
    sizes = dict(found)
    if "block_out_channels" in sizes:
        sizes["block_out_channels"] = tuple(sizes["block_out_channels"])
    return VAEArch(**sizes)
