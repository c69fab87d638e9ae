"""Tokenize images with GigaTok: convolutions, a transformer, and a codebook on the unit sphere.

Xiong et al., 2025, "GigaTok: Scaling Visual Tokenizers to 3 Billion Parameters for Autoregressive
Image Generation", arXiv:2504.08736.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from operators.image_tokenizers.base import (
    SYMMETRIC,
    ImageTokenizer,
    ImageTokenizerConfig,
    Published,
    RandomWeights,
)
from operators.image_tokenizers.layout import TokenLayout
from operators.image_tokenizers.nn.cnn_arch import gigatok_name
from operators.image_tokenizers.nn.gigatok_arch import NAMED, GigaTokArch, arch_of_config

Model = Literal[
    "VQ_SS256_e100",
    "VQ_SB256_e200",
    "VQ_BL256_e200",
    "VQ_BL256_dino_disc",
    "VQ_XLXXL256_e300",
    "VQ_SS256_2d",
    "VQ_SB256_2d",
    "VQ_BL256_2d",
]


class GigaTokConfig(ImageTokenizerConfig):
    """What a job may say about ``gigatok``."""

    name: Literal["gigatok"] = "gigatok"
    weights: Annotated[
        str | RandomWeights[Model],
        Field(
            description="Path or URL of the .pt file (/models/VQ_SS256_e100.pt), a folder or hub "
            "id that has it, or {random_seed, size}."
        ),
    ]
    model: Annotated[
        Model | None,
        Field(
            description="Which model the weights are; null reads the sizes from a config.json "
            "beside them, the authors' configs/vq/*.yaml as JSON."
        ),
    ] = None


class GigaTok(ImageTokenizer[GigaTokConfig, GigaTokArch]):
    """Map square RGB images to ids: a 1D sequence, or for 2D models a row-major grid.

    Reads ``image`` uint8 [256, 256, 3]; adds ``tokens`` uint16 [256]. An id is the entry of a
    codebook of 16,384 vectors of width 8 that lies nearest, both sides brought to length 1. In a
    1D model token 0 starts from the mean of the whole image and so does token 1; tokens 2 and 3
    start from the halves, the next four from the quarters and so on to 128 blocks; each then
    gathers from everywhere, so that tokens are neither local nor nested. In a 2D model (16 x 16)
    a token starts from its own 16 x 16 pixels. Sizes follow ``model``, or the checkpoint's
    config.json.

    Published (Google Drive, github.com/SilentView/GigaTok): VQ_SS256_e100.pt, VQ_SB256_e200.pt,
    VQ_BL256_e200.pt, VQ_BL256_dino_disc.pt, VQ_XLXXL256_e300.pt, all 1D; code and weights have
    the MIT licence. Of the 2D models the authors give configurations alone. A moving average of
    the weights is taken where the file has one, as the authors do when they evaluate and train on
    ids made on the fly; their script that stores ids takes the weights as trained. Pickles are
    read as data alone. The authors prepare images with ``adm_center_crop`` and bring them to
    [-1, 1].

    Checked against the authors' code on small models with random weights, 1D and both kinds of
    2D: ids identical, alone and in batches; latents to 2e-5 and decoded images to 1e-4. The
    published files themselves were not at hand. At bfloat16, on a CPU, the least share of ids
    that stay the same is that of the 1D model of three layers: 0.895 of 96 ids, and 0.900 of 512
    ids of noise images.
    """

    Config = GigaTokConfig
    paper = "arXiv:2504.08736"
    weights_license = "MIT"
    published = (
        Published("VQ_SS256_e100.pt", "VQ_SS256_e100", 256, 16_384),
        Published("VQ_SB256_e200.pt", "VQ_SB256_e200", 256, 16_384),
        Published("VQ_BL256_e200.pt", "VQ_BL256_e200", 256, 16_384),
        Published("VQ_BL256_dino_disc.pt", "VQ_BL256_dino_disc", 256, 16_384),
        Published("VQ_XLXXL256_e300.pt", "VQ_XLXXL256_e300", 256, 16_384),
    )
    min_agreement: ClassVar[Mapping[str, float]] = {
        "float32": 1.0,
        "compiled": 1.0,
        "bfloat16": 0.86,
    }
    normalization = SYMMETRIC
    preprocessing = ({"name": "adm_center_crop", "size": 256},)
    tensors_under = ("ema", "model", "state_dict")
    encoder_ignores = ("s1to2decoder.", "s2ddecoder.", "decoder.", "post_quant_conv.")
    decoder_ignores = ("encoder.", "s2to1encoder.", "s2dencoder.", "quant_conv.")
    training_only = (
        "s1to2decoder.distill_mlp.",
        "s2ddecoder.distill_mlp.",
        "distill_mlp.",
        "quantize.codebook_used",
    )
    channels_last = True

    @property
    def weight_file(self) -> str:
        """The published name."""
        return f"{self.model or 'VQ_SS256_e100'}.pt"

    def published_arch(self, size: str) -> GigaTokArch:
        """Return the sizes of a model that the authors name."""
        return NAMED[size]

    def arch_of_config(self, config: Mapping[str, Any], where: str) -> GigaTokArch:
        """Read the authors' configuration."""
        return arch_of_config(config, where)

    @property
    def layout(self) -> TokenLayout:
        """A plain sequence, or a grid."""
        arch = self.arch
        grid = (arch.grid, arch.grid) if arch.num_latents is None else None
        return TokenLayout(arch.num_tokens, (arch.codebook_size,), grid=grid)

    @property
    def image_sides(self) -> tuple[int, int]:
        """A square: the tables of positions are of one size."""
        return (self.arch.image_side, self.arch.image_side)

    def stored_name(self, name: str) -> str:
        """Return the authors' name of a parameter."""
        cnn = self.arch.cnn
        return gigatok_name(cnn.num_levels, to_space=cnn.upsample == "depth_to_space")(name)

    def encoder_net(self) -> Any:
        """Build the encoder."""
        from operators.image_tokenizers.nn.gigatok_net import GigaTokEncoder

        return GigaTokEncoder(self.arch)

    def decoder_net(self) -> Any:
        """Build the decoder."""
        from operators.image_tokenizers.nn.gigatok_net import GigaTokDecoder

        return GigaTokDecoder(self.arch)
