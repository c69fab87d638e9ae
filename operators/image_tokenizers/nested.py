"""What nested image tokenizers share: how many tokens of an image are kept.

Shapes: B images (the batch), T positions of the model, S streams.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.base import Batch, FieldSpec, Ragged
from operators.columns import take
from operators.errors import ContractError
from operators.image_tokenizers.base import (
    DECODE_ROWS,
    ArchT,
    ImageTokenizer,
    ImageTokenizerConfig,
)
from operators.image_tokenizers.layout import TokenLayout
from operators.text.text_column import check_no_nulls

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

Count = Annotated[int, Field(ge=1)]


class CaptionLength(BaseModel):
    """Keep more tokens of images with longer captions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: Literal["caption"]
    tokens_per_word: Annotated[
        int, Field(ge=1, description="Words are what whitespace separates.")
    ] = 4
    min: Annotated[int, Field(ge=1, description="Least tokens of an image.")] = 16
    max: Annotated[
        int | None, Field(ge=1, description="Most tokens of an image; null is the model's.")
    ] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max={self.max} is less than min={self.min}; swap them")
        return self


class ErrorLength(BaseModel):
    """Keep as few tokens as reconstruct an image well enough; loads the decoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: Literal["error"]
    max_error: Annotated[
        float,
        Field(ge=0, description="Largest error of a reconstruction, pixels being from 0 to 1."),
    ]
    measure: Annotated[
        Literal["mse", "mae"],
        Field(description="Mean over pixels and channels: of squared or of absolute differences."),
    ] = "mse"
    candidates: Annotated[
        tuple[Count, ...] | None,
        Field(
            min_length=1,
            description="Numbers of tokens to try, from the least; all tokens are kept where none "
            "is enough. null is the powers of two.",
        ),
    ] = None


class NestedTokenizerConfig(ImageTokenizerConfig):
    """What a job may say about any nested image tokenizer."""

    num_tokens: Annotated[
        Count | Annotated[CaptionLength | ErrorLength, Field(discriminator="by")] | None,
        Field(
            description="Keep this many tokens, from the first; null is all. Or a number for each "
            "image: {by: caption, ...} or {by: error, ...}, which make `tokens` ragged."
        ),
    ] = None


NestedConfigT = TypeVar("NestedConfigT", bound=NestedTokenizerConfig)


class NestedImageTokenizer(ImageTokenizer[NestedConfigT, ArchT]):
    """An image tokenizer of which any prefix of the tokens is a coarser description.

    All tokens are kept unless ``num_tokens`` says otherwise, since readers can cut any prefix.
    Where it differs from image to image ``tokens`` is ragged: [k] (or [k, S]), k up to T, which
    allows no views.

    - ``{by: caption}`` also reads ``caption``: k is ``tokens_per_word`` times its words (what
      whitespace separates), no less than ``min`` and no more than ``max``.
    - ``{by: error}`` decodes prefixes of rising length, as ``decode`` does, in float32: k is the
      first of ``candidates`` at which the error is at most ``max_error``, else T. The error is the
      mean over an image's pixels and channels, both images in [0, 1], what was decoded being
      clamped to it.

    Beside what any image tokenizer has, a nested one has a ``full_layout``, and its
    ``decode_tokens`` takes any prefix, ids [B, k(, S)]. An encoder that can be asked for fewer
    positions gives ``num_tokens`` of them, and ``model_layout`` says so.
    """

    @property
    @abstractmethod
    def full_layout(self) -> TokenLayout:
        """How all T positions of the model are laid out."""

    @property
    def model_layout(self) -> TokenLayout:
        """All positions: what the encoder gives."""
        return self.full_layout

    @property
    def layout(self) -> TokenLayout:
        """The positions that are kept.

        Raises:
            ContractError: more are configured than the model has.
        """
        kept, varies = self.num_tokens, self._varies
        return replace(self.full_layout, positions=kept, nested=True, ragged=varies)

    @property
    def num_tokens(self) -> int:
        """Positions that are kept; the most, where that differs from image to image.

        Raises:
            ContractError: more are configured than the model has.
        """
        asked, most = self.config.num_tokens, self.full_layout.positions
        if isinstance(asked, ErrorLength):
            self._check_most("num_tokens.candidates", max(asked.candidates or (1,)))
            return most
        if isinstance(asked, CaptionLength):
            self._check_most("num_tokens.min", asked.min)
            self._check_most("num_tokens.max", asked.max or most)
            return asked.max or most
        self._check_most("num_tokens", asked or most)
        return asked or most

    def bind(self, fields: Mapping[str, FieldSpec]) -> None:
        """Take what the images are from the job.

        Raises:
            ContractError: they are views, whose tokens cannot differ in number.
        """
        super().bind(fields)
        if self._views is not None and self._varies:
            raise ContractError(
                f"{self.config.name}: num_tokens differs from image to image, but `image` holds "
                f"{self._views} views of each, whose tokens must be equally many",
                hint="set num_tokens to a number, or leave it out and cut the tokens when reading",
            )

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """``image``, and ``caption`` where it decides on the number of tokens."""
        by_caption = isinstance(self.config.num_tokens, CaptionLength)
        return {**super().inputs, **({"caption": FieldSpec("string")} if by_caption else {})}

    def setup(self, device: str) -> None:
        """Load the encoder, and the decoder only where errors of reconstructions are asked for."""
        super().setup(device)
        if isinstance(self.config.num_tokens, ErrorLength):
            _ = self.decoder

    def metadata(self) -> Mapping[str, object]:
        """What a reader of the tokens must know."""
        return {**super().metadata(), "model_positions": self.full_layout.positions}

    def columns_of(self, tokens: "torch.Tensor", batch: Batch) -> Batch:
        """Return the outputs: the prefixes that are kept."""
        position = 1 if self._views is None else 2
        kept = tokens.narrow(position, 0, self.num_tokens)
        rule = self.config.num_tokens
        if isinstance(rule, CaptionLength):
            lengths = self._lengths_by_caption(rule, batch["caption"])
        elif isinstance(rule, ErrorLength):
            lengths = self._lengths_by_error(rule, kept, batch[self.input_field])
        else:
            return super().columns_of(kept, batch)
        values = kept.cpu().numpy()[np.arange(kept.shape[1]) < lengths[:, None]]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        return {"tokens": Ragged(values.astype(self.outputs["tokens"].dtype), offsets)}

    def decode(self, batch: Batch) -> Batch:
        """Draw images that fit the tokens; ragged ones are decoded in groups of equal length."""
        tokens = batch["tokens"]
        if not isinstance(tokens, Ragged):
            return super().decode(batch)
        images = np.empty((len(tokens), *self.image_sides, 3), np.uint8)
        for length in np.unique(tokens.lengths):
            rows = np.flatnonzero(tokens.lengths == length)
            ids = take(tokens, rows).values.reshape(len(rows), length, *tokens.values.shape[1:])
            images[rows] = super().decode({"tokens": ids})["image"]
        return {"image": images}

    @property
    def _varies(self) -> bool:
        return isinstance(self.config.num_tokens, CaptionLength | ErrorLength)

    def _check_most(self, option: str, asked: int) -> None:
        most = self.full_layout.positions
        if asked > most:
            raise ContractError(
                f"{self.config.name}: {option}={asked}, but the model has {most}",
                hint=f"set {option} to 1..{most}"
                + (", or leave it out for all" if option == "num_tokens" else ""),
            )

    def _lengths_by_caption(self, rule: CaptionLength, captions: "pa.Array") -> np.ndarray:
        check_no_nulls(captions, self.config.name)
        words = np.array([len(caption.split()) for caption in captions.to_pylist()], np.int64)
        return np.clip(words * rule.tokens_per_word, rule.min, self.num_tokens)

    def _lengths_by_error(
        self, rule: ErrorLength, ids: "torch.Tensor", pixels_BHW3: "torch.Tensor"
    ) -> np.ndarray:
        most = ids.shape[1]
        lengths = np.full(len(ids), most)
        undecided = np.ones(len(ids), bool)
        candidates = rule.candidates or [1 << i for i in range(most.bit_length())]
        for count in sorted(set(candidates) - {most}):
            # All rows every time: in a batch of another size they might be rounded otherwise.
            fits = undecided & (self._errors(rule, ids[:, :count], pixels_BHW3) <= rule.max_error)
            lengths[fits] = count
            undecided &= ~fits
            if not undecided.any():
                break
        return lengths

    def _errors(
        self, rule: ErrorLength, ids: "torch.Tensor", pixels_BHW3: "torch.Tensor"
    ) -> np.ndarray:
        """Return float64 [B], the errors of what the ids are decoded to."""
        import torch

        found = []
        pairs = zip(ids.split(DECODE_ROWS), pixels_BHW3.split(DECODE_ROWS), strict=True)
        for some, pixels in pairs:
            decoded = self.normalization.unit_of(self.decode_tokens(some)).clamp(0, 1)
            difference = decoded.double() - pixels.permute(0, 3, 1, 2).double() / 255
            size = difference.square() if rule.measure == "mse" else difference.abs()
            found.append(size.flatten(1).mean(dim=1))
        errors: np.ndarray = torch.cat(found).cpu().numpy()
        return errors
