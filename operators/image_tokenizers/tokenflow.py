"""Tokenize images with TokenFlow: grids of ids from coarse to fine, for meaning and pixels at once.

Qu et al., 2024, "TokenFlow: Unified Image Tokenizer for Multimodal Understanding and Generation",
arXiv:2412.03069, section 3.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from operators.errors import SetupError
from operators.extras import import_extra
from operators.image_tokenizers.base import (
    SYMMETRIC,
    ImageTokenizer,
    ImageTokenizerConfig,
    Published,
    RandomWeights,
)
from operators.image_tokenizers.layout import TokenLayout
from operators.image_tokenizers.nn.cnn_arch import CNNArch, llamagen_name
from operators.image_tokenizers.nn.siglip_arch import SiglipArch
from operators.image_tokenizers.nn.tokenflow_arch import TokenFlowArch
from operators.image_tokenizers.published_config import read_config

Size = Literal["siglip_32k"]

_BOOKS = ("embedding_vqkd", "embedding_vqgan")


class TokenFlowConfig(ImageTokenizerConfig):
    """What a job may say about ``tokenflow``."""

    name: Literal["tokenflow"] = "tokenflow"
    weights: Annotated[
        str | RandomWeights[Size],
        Field(
            description="Hub id (ByteFlow-AI/TokenFlow), a folder, the path or URL of the .pt "
            "file, or {random_seed, size}."
        ),
    ]
    model: Annotated[
        Size | None,
        Field(
            description="Which published model the weights are; null goes by the hub id, or "
            "reads the sizes from a config.json beside them."
        ),
    ] = None


class TokenFlow(ImageTokenizer[TokenFlowConfig, TokenFlowArch]):
    """Map RGB images of 384 pixels to 15 square grids of ids, from 1 x 1 to 27 x 27.

    Reads ``image`` uint8 [384, 384, 3]; adds ``tokens`` uint16 [2227]: grids of the sides 1 to 10,
    12, 14, 17, 22 and 27 one after another, each row-major (``scales`` in the layout). Each grid
    quantizes what the coarser ones left over, so that the ids up to the end of any grid are a
    coarser description; ``decode`` draws those too. An id is one of 32,768 pairs of entries, one
    for meaning (width 32), one for pixels (width 8): the pair nearest in both together.

    Latents for meaning are made of the last but one layer of SigLIP so400m, those for pixels by
    convolutions over the image enlarged to 432 pixels. SigLIP's last layer and head are in the
    file, but not loaded.

    Published: ``ByteFlow-AI/TokenFlow`` (tokenflow_siglip_32k.pt); the licence is that of the code,
    Apache-2.0. Pickles are read as data alone. The authors prepare images with ``adm_center_crop``
    and bring them to [-1, 1].

    Checked against the authors' code on a small model with random weights: ids of all scales
    identical, alone and in batches; latents, vectors and decoded images to 1e-4. At bfloat16, on a
    CPU, 0.947 of its 264 ids stay the same, and 0.905 of 2,112 ids of noise images: where one
    changes, finer grids have something else to add.
    """

    Config = TokenFlowConfig
    paper = "arXiv:2412.03069"
    weights_license = "Apache-2.0"
    published = (Published("ByteFlow-AI/TokenFlow", "siglip_32k", 2227, 32_768, 384),)
    min_agreement: ClassVar[Mapping[str, float]] = {
        "float32": 1.0,
        "compiled": 1.0,
        "bfloat16": 0.9,
    }
    normalization = SYMMETRIC
    preprocessing = ({"name": "adm_center_crop", "size": 384},)
    tensors_under = ("ema", "model", "state_dict")
    decoder_ignores = (
        *("encoder.", "encoder_vqkd.", "encode_task_layer.", "quant_conv."),
        "scaling_layer.",
    )
    training_only = ("decoder_vqkd.", "decode_task_layer.", "quantize.codebook_used")
    channels_last = True

    @property
    def encoder_ignores(self) -> tuple[str, ...]:
        """The pixel decoder, the end of SigLIP, and the constants of its normalization."""
        tower = "encoder_vqkd.vision_model."
        last_layer = f"{tower}encoder.layers.{self.arch.siglip.num_layers - 1}."
        unused = (last_layer, f"{tower}post_layernorm.", f"{tower}head.", "scaling_layer.")
        return ("decoder.", "post_quant_conv.", *unused)

    @property
    def weight_file(self) -> str:
        """The published name."""
        return f"tokenflow_{self.model or 'siglip_32k'}.pt"

    def published_arch(self, size: str) -> TokenFlowArch:  # noqa: ARG002 - the only one
        """Return the sizes of a published model."""
        return TokenFlowArch()

    def arch_of_config(self, config: Mapping[str, Any], where: str) -> TokenFlowArch:
        """Read the authors' ``ModelArgs``, and what their code has as constants."""
        args = read_config(config, where, "ModelArgs")
        args.expect("teacher", "siglip_384")
        args.expect("codebook_l2_norm", True)
        args.expect("enhanced_decoder", False)
        mult = args.integers("encoder_ch_mult")
        args.expect("decoder_ch_mult", list(mult))
        sizes = read_config(config, where, "encoder_decoder", default={})
        blocks = sizes.integer("num_res_blocks", 2)
        tower = read_config(config, where, "siglip_vision_config", default={})
        published = SiglipArch()
        siglip = SiglipArch(
            width=tower.integer("hidden_size", published.width),
            hidden=tower.integer("intermediate_size", published.hidden),
            num_layers=tower.integer("num_hidden_layers", published.num_layers),
            num_heads=tower.integer("num_attention_heads", published.num_heads),
            side=tower.integer("image_size", published.side),
            patch=tower.integer("patch_size", published.patch),
        )
        scales = read_config(config, where).integers("scale_rq_layers", TokenFlowArch().scales)
        if scales[-1:] != (siglip.grid,):
            raise SetupError(
                f"{where}: scale_rq_layers is {list(scales)}, expected to end with {siglip.grid}, "
                "the grid of the tower's patches"
            )
        cnn = CNNArch(
            width=sizes.integer("ch", 128),
            mult=mult,
            num_blocks=blocks,
            num_decoder_blocks=blocks + 1,
            z_channels=args.integer("z_channels"),
            attention_levels=(len(mult) - 1,),
        )
        return TokenFlowArch(
            siglip,
            cnn,
            scales,
            codebook_size=args.integer("codebook_size"),
            semantic_dim=args.integer("semantic_code_dim"),
            pixel_dim=args.integer("codebook_embed_dim"),
        )

    @property
    def image_sides(self) -> tuple[int, int]:
        """384 x 384 for the published model."""
        return (self.arch.siglip.side, self.arch.siglip.side)

    @property
    def layout(self) -> TokenLayout:
        """The grids, from coarse to fine."""
        scales = self.arch.scales
        sizes = (self.arch.codebook_size,)
        return TokenLayout(sum(side**2 for side in scales), sizes, scales=scales)

    def stored_name(self, name: str) -> str:
        """Return the published name of a parameter."""
        for number, book in enumerate(_BOOKS):
            name = name.replace(f"quantize.stages.0.codebooks.{number}.", f"quantize.{book}.")
        name = name.replace("encoder_vqkd.", "encoder_vqkd.vision_model.")
        return llamagen_name(self.arch.cnn.num_levels)(name)

    def check_extras(self) -> None:
        """Import the library of the vision tower."""
        import_extra("transformers", extra=self.extra, where=self.config.name)

    def encoder_net(self) -> Any:
        """Build the encoder."""
        from operators.image_tokenizers.nn.tokenflow_net import TokenFlowEncoder

        return TokenFlowEncoder(self.arch)

    def decoder_net(self) -> Any:
        """Build the decoder."""
        from operators.image_tokenizers.nn.tokenflow_net import TokenFlowDecoder

        return TokenFlowDecoder(self.arch)
