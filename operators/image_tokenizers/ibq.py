"""Tokenize images with IBQ: a grid of ids, the entries of a large codebook by inner product.

Shi et al., 2024, "Scalable Image Tokenization with Index Backpropagation Quantization",
arXiv:2412.02692.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from operators.image_tokenizers.base import (
    SYMMETRIC,
    ImageTokenizerConfig,
    Published,
    RandomWeights,
)
from operators.image_tokenizers.cnn_grid import CNNGridTokenizer
from operators.image_tokenizers.nn.cnn_arch import CNNArch, taming_name
from operators.image_tokenizers.published_config import read_config

Size = Literal[
    "imagenet256_1024",
    "imagenet256_8192",
    "imagenet256_16384",
    "imagenet256_262144",
    "pretrain256_16384",
    "pretrain256_262144",
]


@dataclass(frozen=True, slots=True)
class IBQArch:
    """All sizes of one model.

    Attributes:
        cnn: Of encoder and decoder.
        codebook_size: K.
        code_dim: Width of a codebook entry.
        side: Of the images it was trained on, pixels.
    """

    cnn: CNNArch
    codebook_size: int
    code_dim: int = 256
    side: int = 256


class IBQConfig(ImageTokenizerConfig):
    """What a job may say about ``ibq``."""

    name: Literal["ibq"] = "ibq"
    weights: Annotated[
        str | RandomWeights[Size],
        Field(
            description="Hub id (TencentARC/IBQ-Tokenizer-16384), a folder, the path or URL of "
            "the .ckpt file, or {random_seed, size}."
        ),
    ]
    model: Annotated[
        Size | None,
        Field(
            description="Which published model the weights are; null goes by the hub id, or "
            "reads the sizes from a config.json beside them."
        ),
    ] = None


class IBQ(CNNGridTokenizer[IBQConfig, IBQArch]):
    """Map RGB images to a row-major grid of ids, one for 16 x 16 pixels.

    Reads ``image`` uint8 [H, W, 3], H and W multiples of 16; adds ``tokens`` uint16 (uint32 for
    262,144 ids) [T], T = H W / 256: 256 for the 256 pixels it was trained on. An id is the entry of
    the codebook whose inner product with the latent is largest; neither is normalized, so that it
    need not be the nearest entry.

    Published: ``TencentARC/IBQ-Tokenizer-{1024,8192,16384,262144}`` (imagenet256_*.ckpt) and
    ``IBQ-Tokenizer-{16384,262144}-Pretrain``; licence Apache-2.0. The checkpoints hold a moving
    average of the weights beside them, which is what the authors evaluate and what is read here.
    Their loader brings the shorter side to 256 with OpenCV's bilinear filter, which does not
    antialias; ``resize`` does, so that ids of shrunk images differ from theirs, those of 256-pixel
    images do not.

    Checked against the authors' code on a small model with random weights: ids identical, alone
    and in batches; latents and decoded images to 1e-4. At bfloat16, on a CPU,
    0.979 of its 384 ids stay the same, and 0.978 of 2,048 ids of noise images.
    """

    Config = IBQConfig
    paper = "arXiv:2412.02692"
    weights_license = "Apache-2.0"
    published = (
        Published("TencentARC/IBQ-Tokenizer-1024", "imagenet256_1024", 256, 1024),
        Published("TencentARC/IBQ-Tokenizer-8192", "imagenet256_8192", 256, 8192),
        Published("TencentARC/IBQ-Tokenizer-16384", "imagenet256_16384", 256, 16_384),
        Published("TencentARC/IBQ-Tokenizer-262144", "imagenet256_262144", 256, 262_144),
        Published("TencentARC/IBQ-Tokenizer-16384-Pretrain", "pretrain256_16384", 256, 16_384),
        Published("TencentARC/IBQ-Tokenizer-262144-Pretrain", "pretrain256_262144", 256, 262_144),
    )
    min_agreement: ClassVar[Mapping[str, float]] = {
        "float32": 1.0,
        "compiled": 1.0,
        "bfloat16": 0.95,
    }
    normalization = SYMMETRIC
    preprocessing = ({"name": "resize", "size": 256}, {"name": "center_crop", "size": 256})
    tensors_under = ("state_dict",)
    ema_prefix = "model_ema."
    encoder_ignores = ("decoder.", "post_quant_conv.")
    decoder_ignores = ("encoder.", "quant_conv.")
    training_only = ("loss.",)
    channels_last = True

    @property
    def weight_file(self) -> str:
        """The published name."""
        return f"{self.model or 'imagenet256_16384'}.ckpt"

    def published_arch(self, size: str) -> IBQArch:
        """Return the sizes of a published model."""
        cnn = CNNArch(num_blocks=4, num_decoder_blocks=5, attention_levels=(4,))
        return IBQArch(cnn, int(size.split("_")[1]))

    def arch_of_config(self, config: Mapping[str, Any], where: str) -> IBQArch:
        """Read the authors' ``ddconfig``, ``n_embed`` and ``embed_dim``."""
        found = read_config(config, where)
        sizes = found.section("ddconfig")
        sizes.expect("double_z", False)
        found.expect("l2_normalize", False)
        mult, side = sizes.integers("ch_mult"), sizes.integer("resolution")
        blocks = sizes.integer("num_res_blocks")
        attended = sizes.integers("attn_resolutions")
        cnn = CNNArch(
            width=sizes.integer("ch"),
            mult=mult,
            num_blocks=blocks,
            num_decoder_blocks=blocks + 1,
            z_channels=sizes.integer("z_channels"),
            # By the configured resolution, whatever the images have.
            attention_levels=tuple(i for i in range(len(mult)) if side >> i in attended),
        )
        return IBQArch(cnn, found.integer("n_embed"), found.integer("embed_dim"), side)

    @property
    def default_side(self) -> int:
        """256 for the published models."""
        return self.arch.side

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """(K,)."""
        return (self.arch.codebook_size,)

    def stored_name(self, name: str) -> str:
        """Return the published name of a parameter."""
        return taming_name(name)

    @property
    def code_dim(self) -> int | None:
        """Width of a codebook entry."""
        return self.arch.code_dim

    def quantizer(self) -> Any:
        """A codebook, by inner product."""
        from operators.image_tokenizers.quantize.vq import VQ

        return VQ(self.arch.codebook_size, self.arch.code_dim, metric="dot")
