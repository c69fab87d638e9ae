"""Tokenize images with SEED-2: 32 ids in causal order, close to the meaning of words.

Ge et al., 2023, "Making LLaMA SEE and Draw with SEED Tokenizer", arXiv:2310.01218, and "Planting a
SEED of Vision in Large Language Model", arXiv:2307.08041.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from operators.errors import SetupError
from operators.extras import import_extra
from operators.image_tokenizers.base import (
    CLIP,
    ImageTokenizer,
    ImageTokenizerConfig,
    Published,
    RandomWeights,
)
from operators.image_tokenizers.layout import TokenLayout
from operators.image_tokenizers.nn.seed2_arch import Seed2Arch, arch_of_config, stored_name

Size = Literal["seed2"]

_EMBEDDER = (
    "decode_task_layer.",
    "pos_embed_image",
    "blocks_image.",
    "image_down.",
    "distill_image_proj.",
)
_ENCODER = ("visual_encoder.", "ln_vision.", "Qformer.", "query_tokens", "encode_task_layer.")


class Seed2Config(ImageTokenizerConfig):
    """What a job may say about ``seed2``."""

    name: Literal["seed2"] = "seed2"
    weights: Annotated[
        str | RandomWeights[Size],
        Field(
            description="Hub id (AILab-CVC/seed-tokenizer-2), a folder, the path or URL of "
            "seed_quantizer.pt, or {random_seed, size}."
        ),
    ]
    model: Annotated[
        Size | None,
        Field(
            description="Which published model the weights are; null goes by the hub id, or "
            "reads the sizes from a config.json beside them."
        ),
    ] = None


class Seed2(ImageTokenizer[Seed2Config, Seed2Arch]):
    """Map RGB images to 32 ids, each of which depends on the image and is read from left to right.

    Reads ``image`` uint8 [224, 224, 3]; adds ``tokens`` uint16 [32], the entries of a codebook of
    8,192 vectors of width 32 that lie nearest. They are in causal order, as words: query i of the
    Q-Former that makes them sees queries 0 to i, so that id i does not change with what comes
    after. They are no nested code: a prefix was not trained to stand alone.

    BLIP-2's EVA ViT-g (1 billion parameters) reads the image, 32 learned queries gather its 257
    tokens. From the ids a small transformer makes the image embedding [1024] that a Stable
    Diffusion unCLIP model draws from: ``image_embeddings`` gives it. That model is not covered,
    so that ids cannot be decoded to images here.

    The operator covers both SEED papers: this tokenizer supersedes the first one's, whose weights
    are not on the hub. Published: ``AILab-CVC/seed-tokenizer-2``, file seed_quantizer.pt, which
    holds the vision transformer too. The licence is Apache-2.0 with a clause that restricts it to
    academic, non-commercial use. The pickle is read as data alone.

    The authors resize to 224 x 224, whatever the aspect: with Pillow's bicubic filter in their
    ``ImageTokenizer`` (``preprocessing`` here), with the bilinear one in their inference script.
    They run the model in float16, under which a few ids may differ from those of
    ``dtype: float32``.

    Checked against the authors' code on a small model with random weights: ids identical, alone
    and in batches; tokens of the ViT, queries and latents to 2e-4, image embeddings to 1e-4. At
    bfloat16 (the vision transformer), on a CPU, 0.969 of its 192 ids stay the same, and 0.964 of
    2,048 ids of noise images.
    """

    Config = Seed2Config
    paper = "arXiv:2310.01218"
    weights_license = "Apache-2.0 with a clause for academic, non-commercial use only"
    published = (Published("AILab-CVC/seed-tokenizer-2", "seed2", 32, 8192, 224),)
    min_agreement: ClassVar[Mapping[str, float]] = {
        "float32": 1.0,
        "compiled": 1.0,
        "bfloat16": 0.93,
    }
    normalization = CLIP
    preprocessing = (
        {"name": "resize", "size": 224, "mode": "squash", "interpolation": "bicubic"},
        {"name": "center_crop", "size": 224},
    )
    other_preprocessing = (
        (
            {"name": "resize", "size": 224, "mode": "squash"},
            {"name": "center_crop", "size": 224},
        ),
    )
    encoder_ignores = _EMBEDDER
    decoder_ignores = _ENCODER
    training_only = ("pos_embed", "blocks.", "Qformer.bert.embeddings.position_ids")

    @property
    def weight_file(self) -> str:
        """The published name."""
        return "seed_quantizer.pt"

    def published_arch(self, size: str) -> Seed2Arch:  # noqa: ARG002 - there is one
        """Return the sizes of the published model."""
        return Seed2Arch()

    def arch_of_config(self, config: Mapping[str, Any], where: str) -> Seed2Arch:
        """Read the arguments of the authors' classes."""
        return arch_of_config(config, where)

    def stored_name(self, name: str) -> str:
        """Return SEED's name of a parameter."""
        return stored_name(name)

    @property
    def layout(self) -> TokenLayout:
        """32 positions of no place."""
        return TokenLayout(self.arch.queries, (self.arch.codebook_size,))

    @property
    def image_sides(self) -> tuple[int, int]:
        """224 x 224."""
        return (self.arch.side, self.arch.side)

    def metadata(self) -> Mapping[str, object]:
        """What a reader of the tokens must know."""
        return {**super().metadata(), "causal": True}

    def check_extras(self) -> None:
        """Import the library of the vision transformer."""
        import_extra("transformers", extra=self.extra, where=self.config.name)

    def encoder_net(self) -> Any:
        """Build the encoder."""
        from operators.image_tokenizers.nn.seed2_net import Seed2Encoder

        return Seed2Encoder(self.arch)

    def decoder_net(self) -> Any:
        """Refuse.

        Raises:
            SetupError: always.
        """
        raise SetupError(
            "seed2: images are drawn from its ids by Stable Diffusion unCLIP, which is not covered",
            hint="`image_embeddings` of the operator gives what stabilityai/"
            "stable-diffusion-2-1-unclip needs as image_embeds, with noise_level 0",
        )

    def to_bfloat16(self, encoder: Any) -> None:
        """Make the vision transformer bfloat16: nearly all of the work."""
        import torch

        encoder.visual_encoder.to(torch.bfloat16)

    def image_embeddings(self, tokens: np.ndarray) -> np.ndarray:
        """Return the embeddings that unCLIP draws from, float32 [N, 1024], of ids [N, 32].

        Loads what it needs on the first call, without the encoder.

        Raises:
            ContractError: ids are out of range.
        """
        import torch

        from operators.image_tokenizers.nn.precision import float32_arithmetic

        self._check_ids(tokens)
        ids = torch.from_numpy(tokens.astype(np.int64)).to(self._device)
        with torch.inference_mode(), float32_arithmetic(tf32=False):
            found: np.ndarray = self._embedder(ids).cpu().numpy()
        return found

    @cached_property
    def _embedder(self) -> Any:
        from operators.image_tokenizers.nn.seed2_net import Seed2Embedder

        self._check_device()
        return self._load(lambda: Seed2Embedder(self.arch), self.decoder_ignores)
