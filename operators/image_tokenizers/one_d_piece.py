"""Tokenize images with One-D-Piece: a nested row of ids, cut at any length.

Miwa et al., 2025, "One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression",
arXiv:2501.10064.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from operators.errors import SetupError
from operators.image_tokenizers.base import Published, RandomWeights
from operators.image_tokenizers.layout import TokenLayout
from operators.image_tokenizers.nested import NestedImageTokenizer, NestedTokenizerConfig
from operators.image_tokenizers.nn.titok_arch import TiTokArch, legacy_arch
from operators.image_tokenizers.published_config import read_config
from operators.image_tokenizers.titok_family import TiTokFamily

Size = Literal["s256", "b256", "l256"]

_TRUNKS = {"s256": "small", "b256": "base", "l256": "large"}
_TOKENS = 256


class OneDPieceConfig(NestedTokenizerConfig):
    """What a job may say about ``one_d_piece``."""

    name: Literal["one_d_piece"] = "one_d_piece"
    weights: Annotated[
        str | RandomWeights[Size],
        Field(
            description="Hub id (turing-motors/One-D-Piece-L-256), a folder, the path or URL of a "
            "weight file, or {random_seed, size}."
        ),
    ]
    model: Annotated[
        Size | None,
        Field(
            description="Which published model the weights are; null goes by the hub id, or "
            "reads the sizes from a config.json beside them."
        ),
    ] = None


class OneDPiece(NestedImageTokenizer[OneDPieceConfig, TiTokArch], TiTokFamily[OneDPieceConfig]):
    """Map square RGB images to nested token ids: any prefix is a coarser description.

    Reads ``image`` uint8 [256, 256, 3] in [0, 1]; adds ``tokens`` uint16 [T], T = ``num_tokens`` or
    all 256 (ragged where the number follows a caption or a reconstruction's error), ordered by
    importance: the entry nearest to each latent, of 4,096 of width 12, both
    sides brought to length 1. The encoder always reads all 256, so that a shorter row is a prefix
    of a longer one; the decoder takes any length.

    Published: ``turing-motors/One-D-Piece-S-256``, ``-B-256`` and ``-L-256``; code Apache-2.0, the
    hub pages give the weights' licence. The net is that of an original TiTok. The authors resize
    the shorter side with a bilinear filter and crop the centre (bicubic in training).

    Checked against the authors' code on a small model with random weights: ids identical, alone
    and in batches; latents, and images decoded from 1, 2, 5, 16 and all 32 of its tokens, to 1e-4.
    At bfloat16, on a CPU, 0.938 of its 192 ids stay the same, and 0.965 of 2,048 ids of noise
    images.
    """

    Config = OneDPieceConfig
    paper = "arXiv:2501.10064"
    weights_license = "see the hub page (code: Apache-2.0)"
    published = tuple(
        Published(f"turing-motors/One-D-Piece-{size[0].upper()}-256", size, _TOKENS, 4096)
        for size in _TRUNKS
    )
    min_agreement: ClassVar[Mapping[str, float]] = {
        "float32": 1.0,
        "compiled": 1.0,
        "bfloat16": 0.9,
    }
    preprocessing = ({"name": "resize", "size": 256}, {"name": "center_crop", "size": 256})
    other_preprocessing = (
        (
            {"name": "resize", "size": 256, "interpolation": "bicubic"},
            {"name": "center_crop", "size": 256},
        ),
    )

    def published_arch(self, size: str) -> TiTokArch:
        """Return the sizes of a published model."""
        return legacy_arch(_TRUNKS[size], _TOKENS)

    def arch_of_config(self, config: Mapping[str, Any], where: str) -> TiTokArch:
        """Read the authors' entries.

        Raises:
            SetupError: they are of a TiTok, whose tokens are not nested.
        """
        arch = super().arch_of_config(config, where)
        model = read_config(config, where, "model")
        of_this_kind = model.get("type", None) == "one_d_piece"
        varies = model.section("vq_model").get("strict_length_assertion", True) is False
        if arch.codebook_size is None or not arch.legacy or not (of_this_kind or varies):
            raise SetupError(
                f"{where}: the configuration is of a TiTok, whose tokens are not nested",
                hint="use the operator titok, or a checkpoint of One-D-Piece",
            )
        return arch

    @property
    def full_layout(self) -> TokenLayout:
        """A row of all latents, the most important first."""
        return TokenLayout(self.arch.num_latents, (self.arch.codebook_size or 0,), nested=True)

    @property
    def fewest_decoded(self) -> int:
        """Any prefix will do."""
        return 1
