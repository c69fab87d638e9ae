"""Tokenize images with LlamaGen's VQGAN: a grid of ids from a codebook on the unit sphere.

Sun et al., 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation",
arXiv:2406.06525, section 2.1.
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
from operators.image_tokenizers.nn.cnn_arch import CNNArch, llamagen_name
from operators.image_tokenizers.published_config import read_config

Size = Literal["ds16_c2i", "ds8_c2i", "ds16_t2i"]

_MULT = {"ds16": (1, 1, 2, 2, 4), "ds8": (1, 2, 2, 4)}


@dataclass(frozen=True, slots=True)
class LlamaGenArch:
    """All sizes of one model.

    Attributes:
        cnn: Of encoder and decoder.
        codebook_size: K.
        code_dim: Width of a codebook entry.
    """

    cnn: CNNArch
    codebook_size: int = 16_384
    code_dim: int = 8


class LlamaGenVQConfig(ImageTokenizerConfig):
    """What a job may say about ``llamagen_vq``."""

    name: Literal["llamagen_vq"] = "llamagen_vq"
    weights: Annotated[
        str | RandomWeights[Size],
        Field(
            description="Hub id (FoundationVision/LlamaGen, peizesun/llamagen_t2i), a folder, the "
            "path or URL of the .pt file, or {random_seed, size}."
        ),
    ]
    model: Annotated[
        Size | None,
        Field(
            description="Which published model the weights are; null goes by the hub id, or "
            "reads the sizes from a config.json beside them."
        ),
    ] = None


class LlamaGenVQ(CNNGridTokenizer[LlamaGenVQConfig, LlamaGenArch]):
    """Map RGB images to a row-major grid of ids, one for 16 x 16 pixels (8 x 8 for ds8).

    Reads ``image`` uint8 [H, W, 3], H and W multiples of 16 (8); adds ``tokens`` uint16 [T],
    T = H W / 256 (64): 256 for images of 256 pixels, 576 for 384, 1,024 for 512. An id is the entry
    of a codebook of 16,384 vectors of width 8 that lies nearest, both sides brought to length 1.
    Given views [V, H, W, 3] it adds [V, T], as the ten crops that LlamaGen trains on.

    Published: ``FoundationVision/LlamaGen`` (vq_ds16_c2i.pt, vq_ds8_c2i.pt) and
    ``peizesun/llamagen_t2i`` (vq_ds16_t2i.pt); code and weights have the MIT licence. Pickles are
    read as data alone. The authors prepare images with ``adm_center_crop`` and bring them to
    [-1, 1].

    Checked against the authors' code on a small model with random weights: ids identical, alone
    and in batches; latents and decoded images to 1e-4. At bfloat16, on a CPU, 0.958 of its 384 ids
    stay the same, and 0.969 of 2,048 ids of noise images.
    """

    Config = LlamaGenVQConfig
    paper = "arXiv:2406.06525"
    weights_license = "MIT"
    published = (
        Published("FoundationVision/LlamaGen", "ds16_c2i", 256, 16_384),
        Published("FoundationVision/LlamaGen", "ds8_c2i", 1024, 16_384),
        Published("peizesun/llamagen_t2i", "ds16_t2i", 256, 16_384),
    )
    min_agreement: ClassVar[Mapping[str, float]] = {
        "float32": 1.0,
        "compiled": 1.0,
        "bfloat16": 0.93,
    }
    normalization = SYMMETRIC
    preprocessing = ({"name": "adm_center_crop", "size": 256},)
    tensors_under = ("ema", "model", "state_dict")
    encoder_ignores = ("decoder.", "post_quant_conv.")
    decoder_ignores = ("encoder.", "quant_conv.")
    training_only = ("quantize.codebook_used",)
    channels_last = True

    @property
    def weight_file(self) -> str:
        """The published name."""
        return f"vq_{self.model or 'ds16_c2i'}.pt"

    def published_arch(self, size: str) -> LlamaGenArch:
        """Return the sizes of a published model."""
        mult = _MULT[size.split("_", maxsplit=1)[0]]
        return LlamaGenArch(CNNArch(mult=mult, attention_levels=(len(mult) - 1,)))

    def arch_of_config(self, config: Mapping[str, Any], where: str) -> LlamaGenArch:
        """Read the authors' ``ModelArgs``, and the defaults of their encoder and decoder."""
        args = read_config(config, where, "ModelArgs")
        defaults = read_config(config, where, "Encoder_Decoder_defaults", default={})
        args.expect("codebook_l2_norm", True)
        mult = args.integers("encoder_ch_mult")
        args.expect("decoder_ch_mult", list(mult))
        blocks = defaults.integer("num_res_blocks", 2)
        cnn = CNNArch(
            width=defaults.integer("ch", 128),
            mult=mult,
            num_blocks=blocks,
            num_decoder_blocks=blocks + 1,
            z_channels=args.integer("z_channels"),
            attention_levels=(len(mult) - 1,),
        )
        return LlamaGenArch(cnn, args.integer("codebook_size"), args.integer("codebook_embed_dim"))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """(K,)."""
        return (self.arch.codebook_size,)

    def stored_name(self, name: str) -> str:
        """Return LlamaGen's name of a parameter."""
        return llamagen_name(self.arch.cnn.num_levels)(name)

    @property
    def code_dim(self) -> int | None:
        """Width of a codebook entry."""
        return self.arch.code_dim

    def quantizer(self) -> Any:
        """A codebook on the unit sphere."""
        from operators.image_tokenizers.quantize.vq import VQ

        arch = self.arch
        return VQ(arch.codebook_size, arch.code_dim, metric="cosine", normalized=True)
