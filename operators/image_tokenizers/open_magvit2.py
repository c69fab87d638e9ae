"""Tokenize images with Open-MAGVIT2: a grid of ids whose bits are the signs of the latents.

Luo et al., 2024, "Open-MAGVIT2: An Open-Source Project Toward Democratizing Auto-regressive Visual
Generation", arXiv:2409.04410, section 2.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from operators.base import Batch
from operators.errors import ContractError
from operators.image_tokenizers.base import (
    SYMMETRIC,
    ImageTokenizerConfig,
    Published,
    RandomWeights,
)
from operators.image_tokenizers.cnn_grid import CNNGridTokenizer
from operators.image_tokenizers.layout import TokenLayout
from operators.image_tokenizers.nn.cnn_arch import CNNArch, magvit2_name
from operators.image_tokenizers.published_config import read_config

if TYPE_CHECKING:
    import torch

Size = Literal["imagenet_256_L", "imagenet_128_L", "pretrain256_262144", "pretrain256_16384"]


@dataclass(frozen=True, slots=True)
class OpenMagvit2Arch:
    """All sizes of one model.

    Attributes:
        cnn: Of encoder and decoder; its ``z_channels`` are the bits of an id.
        side: Of the images it was trained on, pixels.
    """

    cnn: CNNArch
    side: int = 256


def magvit2_cnn(
    bits: int, width: int = 128, mult: tuple[int, ...] = (1, 1, 2, 2, 4), num_blocks: int = 4
) -> CNNArch:
    """Return Open-MAGVIT2's autoencoder: strided convolutions, no attention, no biases."""
    return CNNArch(
        width=width,
        mult=mult,
        num_blocks=num_blocks,
        num_decoder_blocks=num_blocks,
        z_channels=bits,
        mid="blocks",
        biases=False,
        downsample="symmetric",
        head_kernel=1,
        upsample="depth_to_space",
        adaptive=True,
    )


class OpenMagvit2Config(ImageTokenizerConfig):
    """What a job may say about ``open_magvit2``."""

    name: Literal["open_magvit2"] = "open_magvit2"
    weights: Annotated[
        str | RandomWeights[Size],
        Field(
            description="Hub id (TencentARC/Open-MAGVIT2-Tokenizer-256-resolution), a folder, the "
            "path or URL of the .ckpt file, or {random_seed, size}."
        ),
    ]
    model: Annotated[
        Size | None,
        Field(
            description="Which published model the weights are; null goes by the hub id, or "
            "reads the sizes from a config.json beside them."
        ),
    ] = None
    factorized_bits: Annotated[
        tuple[int, int] | None,
        Field(
            description="Split ids in two streams of so many bits, as the authors' autoregressive "
            "models read them ([6, 12]); null keeps whole ids."
        ),
    ] = None


class OpenMagvit2(CNNGridTokenizer[OpenMagvit2Config, OpenMagvit2Arch]):
    """Map RGB images to a row-major grid of ids, one for 16 x 16 pixels (8 x 8 at 128 pixels).

    Reads ``image`` uint8 [H, W, 3], H and W multiples of 16 (8); adds ``tokens`` uint32 (uint16 for
    16,384 ids) [T], T = H W / 256: 256 for images of 256 pixels. Bit c of an id says whether latent
    c is above zero, bit 0 being the first channel: 18 bits, 262,144 ids (14 bits, 16,384). With
    ``factorized_bits`` [a, b] ``tokens`` is [T, 2]: streams ``pre``, the lowest a bits, and
    ``post``, the others.

    Published: ``TencentARC/Open-MAGVIT2-Tokenizer-{256-resolution,128-resolution,262144-Pretrain,
    16384-Pretrain}``; licence Apache-2.0. The checkpoints hold a moving average of the weights
    beside them, which is what the authors evaluate and what is read here. Their loader brings the
    shorter side to 256 with OpenCV's bilinear filter, which does not antialias; ``resize`` does, so
    that ids of shrunk images differ from theirs, those of 256-pixel images do not.

    Checked against the authors' code on a small model with random weights: ids and factorized ids
    identical, alone and in batches; latents and decoded images to 1e-4. At bfloat16, on a CPU,
    0.956 of its 384 ids stay the same, and 0.947 of 2,048 ids of noise images.
    One flipped sign is another id.
    """

    Config = OpenMagvit2Config
    paper = "arXiv:2409.04410"
    weights_license = "Apache-2.0"
    published = (
        Published(
            "TencentARC/Open-MAGVIT2-Tokenizer-256-resolution", "imagenet_256_L", 256, 262_144
        ),
        Published(
            "TencentARC/Open-MAGVIT2-Tokenizer-128-resolution", "imagenet_128_L", 256, 262_144, 128
        ),
        Published(
            "TencentARC/Open-MAGVIT2-Tokenizer-262144-Pretrain", "pretrain256_262144", 256, 262_144
        ),
        Published(
            "TencentARC/Open-MAGVIT2-Tokenizer-16384-Pretrain", "pretrain256_16384", 256, 16_384
        ),
    )
    min_agreement: ClassVar[Mapping[str, float]] = {
        "float32": 1.0,
        "compiled": 1.0,
        "bfloat16": 0.92,
    }
    normalization = SYMMETRIC
    preprocessing = ({"name": "resize", "size": 256}, {"name": "center_crop", "size": 256})
    tensors_under = ("state_dict",)
    ema_prefix = "model_ema."
    training_only = ("loss.",)
    channels_last = True

    @property
    def weight_file(self) -> str:
        """The published name."""
        return f"{self.model or 'imagenet_256_L'}.ckpt"

    def published_arch(self, size: str) -> OpenMagvit2Arch:
        """Return the sizes of a published model."""
        if size == "imagenet_128_L":
            return OpenMagvit2Arch(magvit2_cnn(18, mult=(1, 2, 2, 4)), side=128)
        return OpenMagvit2Arch(magvit2_cnn(14 if size.endswith("_16384") else 18))

    def arch_of_config(self, config: Mapping[str, Any], where: str) -> OpenMagvit2Arch:
        """Read the authors' ``ddconfig``, ``n_embed`` and ``embed_dim``."""
        found = read_config(config, where)
        sizes = found.section("ddconfig")
        sizes.expect("double_z", False)
        bits = sizes.integer("z_channels")
        found.expect("embed_dim", bits)
        found.expect("n_embed", 1 << bits)
        cnn = magvit2_cnn(
            bits,
            sizes.integer("ch"),
            sizes.integers("ch_mult"),
            sizes.integer("num_res_blocks"),
        )
        return OpenMagvit2Arch(cnn, sizes.integer("resolution"))

    @property
    def default_side(self) -> int:
        """256, or 128."""
        return self.arch.side

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """(2 to the bits,)."""
        return (1 << self.arch.cnn.z_channels,)

    @property
    def model_layout(self) -> TokenLayout:
        """Whole ids."""
        return super().layout

    @property
    def layout(self) -> TokenLayout:
        """Whole ids, or two streams.

        Raises:
            ContractError: ``factorized_bits`` are not those of an id.
        """
        whole, parts = self.model_layout, self.config.factorized_bits
        if parts is None:
            return whole
        bits = self.arch.cnn.z_channels
        if sum(parts) != bits or min(parts) < 1:
            raise ContractError(
                f"open_magvit2: factorized_bits={list(parts)}, expected two numbers that add up to "
                f"the {bits} bits of an id",
                hint=f"for example [{bits // 3}, {bits - bits // 3}]",
            )
        return replace(
            whole, codebook_sizes=(1 << parts[0], 1 << parts[1]), streams=("pre", "post")
        )

    def tokens_of(self, latents: "torch.Tensor", batch: Batch, view: int) -> "torch.Tensor":
        """Return int64 ids [B, T], or [B, T, 2]."""
        import torch

        ids = super().tokens_of(latents, batch, view)
        if self.config.factorized_bits is None:
            return ids
        low = self.config.factorized_bits[0]
        return torch.stack([ids & ((1 << low) - 1), ids >> low], dim=-1)

    def decoder_ids(self, ids: "torch.Tensor") -> "torch.Tensor":
        """Return whole ids [B, h, w]."""
        if self.config.factorized_bits is not None:
            ids = ids[..., 0] + (ids[..., 1] << self.config.factorized_bits[0])
        return super().decoder_ids(ids)

    def stored_name(self, name: str) -> str:
        """Return the published name of a parameter."""
        return magvit2_name(name)

    def quantizer(self) -> Any:
        """One bit for each channel."""
        from operators.image_tokenizers.quantize.lfq import LFQ

        return LFQ(self.arch.cnn.z_channels)
