"""What all image tokenizers share: weights, precision, views, checks, and what readers are told.

A tokenizer adds a config, the sizes of its published models, and two nets. See ``llamagen_vq.py``
for one that needs nothing else.
"""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from operators.base import (
    Batch,
    FieldSpec,
    Operator,
    OperatorConfig,
    Ragged,
    Resources,
    smallest_uint,
)
from operators.columns import check_column, num_rows, take
from operators.errors import ContractError, RowErrors, SampleError, SetupError
from operators.image_tokenizers.layout import TokenLayout
from operators.weights import CONFIG_FILE, WEIGHT_FILE, Checkpoint

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)

DECODE_ROWS = 8

SizeT = TypeVar("SizeT", bound=str)


class RandomWeights(BaseModel, Generic[SizeT]):
    """A published size with random weights: for smoke and speed runs without a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    random_seed: Annotated[int, Field(ge=0, description="Seed of the weights.")]
    size: Annotated[SizeT, Field(description="Which published model's sizes.")]


class ImageTokenizerConfig(OperatorConfig):
    """What a job may say about any image tokenizer; each adds its ``weights``."""

    revision: Annotated[
        str | None,
        Field(description="Commit, tag or branch of a hub id; a full commit pins the weights."),
    ] = None
    device: Annotated[
        Literal["cuda", "cpu"], Field(description="Part of the recipe: ids may differ by rounding.")
    ] = "cuda"
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        Field(
            description="float32 is exact. bfloat16 is faster on a GPU and changes some ids; "
            "codebook distances are float32 either way."
        ),
    ] = "float32"
    compile: Annotated[
        bool,
        Field(
            description="Let torch.compile fuse the encoder: a minute at the start of every "
            "worker, then faster on a GPU; ids may differ by rounding."
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class Published:
    """A published model.

    Attributes:
        weights: What a job names: a hub id, or the name of a file that is published elsewhere.
        size: Key of its sizes, as in ``RandomWeights`` and ``model``.
        tokens: Ids per image (all streams), at ``side``.
        codebook: Ids per stream; None for features.
        side: Of the images, pixels.
    """

    weights: str
    size: str
    tokens: int
    codebook: int | None
    side: int = 256


@dataclass(frozen=True, slots=True)
class Normalization:
    """How bytes become the numbers that a model reads: ``(byte / 255 - mean) / std``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Return float32 of pixels [B, C, H, W] that are bytes; the order of steps matters."""
        scaled = pixels.float() / 255
        if set(self.mean) == {0.0} and set(self.std) == {1.0}:
            return scaled
        return (scaled - self._row(self.mean, scaled)) / self._row(self.std, scaled)

    def bytes_of(self, images: "torch.Tensor") -> "torch.Tensor":
        """Return uint8 [B, C, H, W] of images in the model's range: rounded, clamped."""
        import torch

        return (self.unit_of(images) * 255).round().clamp(0, 255).to(torch.uint8)

    def unit_of(self, images: "torch.Tensor") -> "torch.Tensor":
        """Return float32 [B, C, H, W], bytes / 255, of images in the model's range."""
        wide = images.float()
        return wide * self._row(self.std, wide) + self._row(self.mean, wide)

    @staticmethod
    def _row(values: Sequence[float], like: "torch.Tensor") -> "torch.Tensor":
        import torch

        return torch.tensor(values, dtype=torch.float32, device=like.device).reshape(1, -1, 1, 1)


UNIT = Normalization((0.0,) * 3, (1.0,) * 3)
"""[0, 1]"""
SYMMETRIC = Normalization((0.5,) * 3, (0.5,) * 3)
"""[-1, 1]"""
CLIP = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

ConfigT = TypeVar("ConfigT", bound=ImageTokenizerConfig)
ArchT = TypeVar("ArchT")


class ImageTokenizer(Operator[ConfigT], Generic[ConfigT, ArchT]):
    """Reads ``image`` uint8 [H, W, 3]; adds ``tokens``, laid out as ``layout`` says.

    Tokenizers of other things than images say what with ``input_field`` and ``input_spec``.

    Given ``image`` [V, H, W, 3], views of one image, ``tokens`` has V in front as well. Ids are of
    the smallest unsigned type: [T], or [T, S] where a position has S of them.

    Nets come in two halves, so that tokenizing loads no decoder:

    - ``encoder_net`` is a module on the meta device that maps images [B, 3, H, W] to latents, and
      has a ``quantize`` with ``encode(latents) -> ids`` (``quantize/``);
    - ``decoder_net`` maps int64 ids [B, T(, S)] to images [B, 3, H, W] in the model's range.

    Their parameters are called as in the published files, or ``stored_name`` says how they are
    called there.
    """

    stage = "device"

    paper: ClassVar[str]
    """Where the method is from: arXiv:..."""
    weights_license: ClassVar[str]
    """Of the published weights."""
    published: ClassVar[tuple[Published, ...]]
    """The models that are out, for listings."""
    min_agreement: ClassVar[Mapping[str, float]]
    """The least share of ids equal to the authors' on the golden fixtures, measured on a CPU: at
    float32, at float32 compiled, at bfloat16."""
    normalization: ClassVar[Normalization]
    preprocessing: ClassVar[tuple[Mapping[str, object], ...]]
    """Image operators that prepare images as the authors do; ``size`` is the model's side."""
    other_preprocessing: ClassVar[tuple[tuple[Mapping[str, object], ...], ...]] = ()
    """Others that the authors use for the same model."""

    extra: ClassVar[str] = "vision"
    config_file: ClassVar[str] = CONFIG_FILE
    tensors_under: ClassVar[tuple[str, ...]] = ()
    """Keys under which a pickle may hold the tensors."""
    decoder_ignores: ClassVar[tuple[str, ...]] = ("encoder.",)
    """Prefixes of stored tensors that only the encoder needs."""
    ema_prefix: ClassVar[str | None] = None
    """Before the names, without their dots, of a moving average that is read where it is stored."""
    channels_last: ClassVar[bool] = False
    """The encoder is convolutional, and on a GPU faster with channels last."""

    def __init__(self, config: ConfigT) -> None:
        super().__init__(config)
        for option in ("revision", "model"):
            if getattr(config, option, None) is not None and not self._is_trained:
                raise ContractError(
                    f"{config.name}: {option}={getattr(config, option)!r} is given, but the "
                    "weights are random",
                    hint=f"remove the {option}, or name a checkpoint as `weights`",
                )
        self._device: str = config.device
        self._views: int | None = None
        self._sides: tuple[int, int] | None = None
        self._encoder: Any = None
        self._forward: Any = None
        self._decoder: Any = None

    # --- what a tokenizer says ------------------------------------------------------------------

    @abstractmethod
    def published_arch(self, size: str) -> ArchT:
        """Return the sizes of a published model."""

    @abstractmethod
    def arch_of_config(self, config: Mapping[str, Any], where: str) -> ArchT:
        """Read the sizes from a checkpoint's configuration.

        Raises:
            SetupError: it is of another model, or asks for what these nets do not do.
        """

    @property
    @abstractmethod
    def layout(self) -> TokenLayout:
        """How ``tokens`` are laid out, for images of ``image_sides``."""

    @property
    @abstractmethod
    def image_sides(self) -> tuple[int, int]:
        """Height and width of the images, pixels.

        Models that take several follow ``given_sides``, those of the job's images.
        """

    @property
    def input_field(self) -> str:
        """Name of what is read."""
        return "image"

    @property
    def input_spec(self) -> FieldSpec:
        """What is read of one view."""
        return FieldSpec("uint8", (*self.image_sides, 3))

    @abstractmethod
    def encoder_net(self) -> Any:
        """Build the encoder; see the class."""

    def decoder_net(self) -> Any:
        """Build the decoder; see the class.

        Raises:
            SetupError: there is none.
        """
        raise SetupError(
            f"{self.config.name}: its tokens cannot be turned back into images",
            hint="it has no decoder here; see `pipeline operators` for those that do",
        )

    @property
    def weight_file(self) -> str:
        """Name of the weights in a folder or repository."""
        return WEIGHT_FILE

    @property
    def encoder_ignores(self) -> tuple[str, ...]:
        """Prefixes of stored tensors that the encoder does without: those of the decoder."""
        return ("decoder.",)

    def stored_name(self, name: str) -> str:
        """Return what the published files call a parameter of the nets."""
        return name

    def check_extras(self) -> None:
        """Import the packages that the nets need.

        Raises:
            SetupError: one is not installed.
        """

    @property
    def training_only(self) -> tuple[str, ...]:
        """Prefixes of stored tensors that play no role after training."""
        return ()

    def decoder_ids(self, ids: "torch.Tensor") -> "torch.Tensor":
        """Return ids as ``decoder_net`` takes them."""
        return ids

    # --- the operator ---------------------------------------------------------------------------

    def bind(self, fields: Mapping[str, FieldSpec]) -> None:
        """Take the number of views, and the sides, from the images of the job."""
        shape = fields["image"].shape if "image" in fields else ()
        if len(shape) == 4 and isinstance(shape[0], int):
            self._views = shape[0]
        if len(shape) >= 3 and isinstance(shape[-3], int) and isinstance(shape[-2], int):
            self._sides = (shape[-3], shape[-2])

    @property
    def given_sides(self) -> tuple[int, int] | None:
        """Height and width of the images that the job gives, when known."""
        return self._sides

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """``image``, or what ``input_field`` says."""
        spec = self.input_spec
        return {self.input_field: replace(spec, shape=(*self._view_shape, *spec.shape))}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """``tokens``."""
        layout = self.layout
        most = max(layout.codebook_sizes)
        shape = (*self._view_shape, *layout.shape)
        return {"tokens": FieldSpec(smallest_uint(most), shape, vocab_size=most)}

    @property
    def runs_channels_last(self) -> bool:
        """Whether the encoder's layout is channels last.

        Not on a CPU: torch's group norm of that layout subtracts large squares there, and loses up
        to four digits where a group's mean is far from zero.
        """
        return self.channels_last and self._device.startswith("cuda")

    @property
    def resources(self) -> Resources:
        """One core, and one GPU on ``cuda``."""
        return Resources(cpus=1.0, gpus=1.0 if self.config.device == "cuda" else 0.0)

    @property
    def device(self) -> str:
        """The configured device."""
        return self.config.device

    @cached_property
    def arch(self) -> ArchT:
        """The model's sizes, read when first asked for.

        Raises:
            SetupError: the checkpoint's configuration is missing or of another model.
        """
        weights = self._weights
        if isinstance(weights, RandomWeights):
            return self.published_arch(weights.size)
        if self.model is not None:
            return self.published_arch(self.model)
        return self.arch_of_config(self._checkpoint.config(), f"{self.config.name}: {weights}")

    @cached_property
    def model(self) -> str | None:
        """The published model whose sizes the weights have; None where their config.json says.

        For families whose checkpoints have no configuration: the job's ``model``, or the only one
        that is published under the hub id.

        Raises:
            ContractError: several are published under it, and the job does not say which.
        """
        if "model" not in type(self.config).model_fields:
            return None
        named: str | None = self.config.model  # type: ignore[attr-defined]
        sizes = [each.size for each in self.published if each.weights == self._weights]
        if named is not None or not sizes:
            return named
        if len(sizes) > 1:
            raise ContractError(
                f"{self.config.name}: {len(sizes)} models are published as {self._weights}",
                hint=f"set `model` to one of {', '.join(sizes)}",
            )
        return sizes[0]

    def setup(self, device: str) -> None:
        """Load the encoder; the decoder's weights are not read."""
        import torch

        self._device = device
        self._check_device()
        encoder = self._load(self.encoder_net, self.encoder_ignores)
        if self.config.dtype == "bfloat16":
            self.to_bfloat16(encoder)
        if self.runs_channels_last:
            encoder.to(memory_format=torch.channels_last)
        self._encoder = encoder
        self._forward = torch.compile(encoder, dynamic=False) if self.config.compile else encoder

    def to_bfloat16(self, encoder: Any) -> None:
        """Make bfloat16 what may be: here all but the quantizer."""
        import torch

        encoder.to(torch.bfloat16)
        encoder.quantize.float()

    def __call__(self, batch: Batch) -> Batch:
        """Tokenize a batch; see the class."""
        import torch

        name, images = self.input_field, batch[self.input_field]
        rows = num_rows(images)
        check_column(name, images, self.inputs[name], rows, self.config.name)
        views = [images] if self._views is None else list(images.unbind(1))
        tokens, finite = [], torch.ones(rows, dtype=torch.bool, device=images.device)
        for view, pixels in enumerate(views):
            latents = self.latents_of(self.prepare(pixels), batch, view)
            tokens.append(self.tokens_of(latents, batch, view))
            finite &= torch.isfinite(latents).flatten(1).all(dim=1)
        joined = tokens[0] if self._views is None else torch.stack(tokens, dim=1)
        return self._good(self.columns_of(joined, batch), finite, images)

    def prepare(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """Return what the encoder reads, float32 [B, 3, H, W], of uint8 [B, H, W, 3]."""
        return self.normalization.of(pixels.permute(0, 3, 1, 2).contiguous())

    def unprepare(self, images: "torch.Tensor") -> "torch.Tensor":
        """Return uint8 [B, H, W, 3] of what the decoder gives, float32 [B, 3, H, W]."""
        return self.normalization.bytes_of(images).permute(0, 2, 3, 1)

    def what_is_wrong(self, image: "torch.Tensor") -> str:  # noqa: ARG002 - bytes cannot be wrong
        """Say why an image has latents that are not finite."""
        return "the encoder gave NaN or infinity, expected finite latents"

    def latents_of(self, images: "torch.Tensor", batch: Batch, view: int) -> "torch.Tensor":  # noqa: ARG002 - sampled tokenizers need the keys
        """Return the latents of a batch's images."""
        return self.latents(images)

    def latents(self, images: "torch.Tensor") -> "torch.Tensor":
        """Return float32 latents, as ``quantize`` takes them, of images in the model's range."""
        import torch

        from operators.image_tokenizers.nn.precision import float32_arithmetic

        if self.config.dtype == "bfloat16" and images.is_floating_point():
            images = images.to(torch.bfloat16)
        if self.runs_channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), float32_arithmetic(tf32=self.config.dtype == "bfloat16"):
            found: torch.Tensor = self._forward(images).float()
        return found

    def encode(self, images: "torch.Tensor") -> "torch.Tensor":
        """Return int64 ids [B, T(, S)] of images in the model's range, on the device."""
        return self.tokens_of(self.latents(images), {}, 0)

    def tokens_of(self, latents: "torch.Tensor", batch: Batch, view: int) -> "torch.Tensor":  # noqa: ARG002 - sampled tokenizers need the keys
        """Return int64 ids [B, T(, S)] of latents; in float32."""
        import torch

        from operators.image_tokenizers.nn.precision import float32_arithmetic

        with torch.inference_mode(), float32_arithmetic(tf32=False):
            found: torch.Tensor = self._encoder.quantize.encode(latents)
        return found.reshape(len(found), *self.model_layout.shape)

    @property
    def model_layout(self) -> TokenLayout:
        """How the model itself lays its ids out; ``layout`` may hold fewer positions."""
        return self.layout

    def columns_of(self, tokens: "torch.Tensor", batch: Batch) -> Batch:  # noqa: ARG002
        """Return the outputs, made of the ids of all views."""
        import torch

        return {"tokens": tokens.to(getattr(torch, self.outputs["tokens"].dtype))}

    def decode(self, batch: Batch) -> Batch:
        """Draw images that fit the tokens, in float32; the decoder is loaded on the first call.

        Args:
            batch: ``tokens`` [N, T(, S)], or with views [N, V, T(, S)].

        Returns:
            ``image`` uint8 [N, H, W, 3], or [N, V, H, W, 3].

        Raises:
            ContractError: ids are out of range.
        """
        import torch

        codes = self.codes_of(batch)
        flat = codes if self._views is None else codes.flatten(0, 1)
        images = [self.decode_tokens(rows).cpu() for rows in flat.split(DECODE_ROWS)]
        pixels = self.unprepare(torch.cat(images))
        shape = (*codes.shape[: 1 if self._views is None else 2], *pixels.shape[1:])
        return {self.input_field: pixels.reshape(shape).contiguous().numpy()}

    def codes_of(self, batch: Batch) -> "torch.Tensor":
        """Return the stored codes of a batch as ``decode_tokens`` takes them: checked int64 ids."""
        import torch

        tokens = np.asarray(batch["tokens"])
        self._check_ids(tokens)
        return torch.from_numpy(tokens.astype(np.int64))

    def decode_tokens(self, ids: "torch.Tensor") -> "torch.Tensor":
        """Return images float32 [B, 3, H, W], in the model's range, of integer ids [B, T(, S)]."""
        import torch

        from operators.image_tokenizers.nn.precision import float32_arithmetic

        with torch.inference_mode(), float32_arithmetic(tf32=False):
            found: torch.Tensor = self.decoder(self.decoder_ids(ids.to(self._device, torch.int64)))
        return found

    @property
    def decoder(self) -> Any:
        """The decoder, loaded when first asked for."""
        if self._decoder is None:
            self._check_device()
            self._decoder = self._load(self.decoder_net, self.decoder_ignores)
        return self._decoder

    def identity(self) -> Mapping[str, object]:
        """Digests of the weights, or that they are random."""
        name = self.config.name
        if not self._is_trained:
            return {
                "random_weights": True,
                "warning": f"{name} has random weights: its tokens mean nothing, "
                "use them for smoke and speed runs only",
            }
        found = self._checkpoint.identity()
        if self._checkpoint.is_pinned:
            return found
        return {
            **found,
            "warning": f"{name}: {self._weights} is not pinned and may change between "
            f"runs; add `revision: {found['revision']}`",
        }

    def metadata(self) -> Mapping[str, object]:
        """What a reader of the tokens must know."""
        layout = self.layout
        return {
            "layout": {**layout.as_json(), **({"views": self._views} if self._views else {})},
            "image_sides": list(self.image_sides),
            "normalization": {
                "mean": list(self.normalization.mean),
                "std": list(self.normalization.std),
            },
            "preprocessing": [dict(step) for step in self.preprocessing],
            "checkpoint": str(self._weights) if self._is_trained else None,
            "weights_license": self.weights_license if self._is_trained else None,
            "paper": self.paper,
        }

    # --- shared parts ---------------------------------------------------------------------------

    @property
    def _weights(self) -> "str | RandomWeights[str]":
        found: str | RandomWeights[str] = self.config.weights  # type: ignore[attr-defined]
        return found

    @property
    def _is_trained(self) -> bool:
        return isinstance(self._weights, str)

    @property
    def _view_shape(self) -> tuple[int, ...]:
        return () if self._views is None else (self._views,)

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        weights = self._weights
        assert isinstance(weights, str)
        return Checkpoint(
            weights,
            revision=self.config.revision,
            files=self.model_files,
            where=self.config.name,
            extra=self.extra,
            weight_file=self.weight_file,
            config_file=self.config_file if self.model is None else None,
            under=self.tensors_under,
        )

    def _load(self, build: Any, ignores: Sequence[str]) -> Any:
        import torch

        from operators.image_tokenizers.nn.random_weights import fill_random

        self.check_extras()
        with torch.device("meta"):
            module = build()
        weights = self._weights
        if isinstance(weights, str):
            unused = self._checkpoint.load_into(
                module,
                other_parts=ignores,
                training_only=self.training_only,
                stored_name=self.stored_name,
                ema_prefix=self.ema_prefix,
            )
            if unused:
                _LOG.info(
                    "%s: %d training-only tensors: %s",
                    *(self.config.name, len(unused), ", ".join(unused)),
                )
        else:
            fill_random(module, weights.random_seed)
        return module.to(self._device).eval().requires_grad_(False)

    def _check_device(self) -> None:
        import torch

        if str(self._device).startswith("cuda") and not torch.cuda.is_available():
            raise SetupError(
                f"{self.config.name}: device is cuda, but torch finds no GPU",
                hint="run where there is one, or set `device: cpu` (slow, but it works)",
            )

    def _check_ids(self, tokens: np.ndarray) -> None:
        sizes = self.layout.codebook_sizes
        most = (
            tokens.max(initial=0)
            if len(sizes) == 1
            else tokens.max(axis=tuple(range(tokens.ndim - 1)), initial=0)
        )
        least = tokens.min(initial=0)
        if np.any(most > np.array([size - 1 for size in sizes], np.uint64)) or least < 0:
            found = least if least < 0 else int(np.max(most))
            raise ContractError(
                f"{self.config.name}: id {found} is out of range, expected 0 to "
                f"{' or '.join(f'{size - 1:,}' for size in sorted(set(sizes)))}",
                hint="these tokens were not made by this model",
            )

    def _good(self, columns: Batch, finite: "torch.Tensor", images: "torch.Tensor") -> Batch:
        """Return the columns, unless rows have latents that are not finite."""
        if bool(finite.all()):
            return columns
        bad = np.flatnonzero(~finite.cpu().numpy())
        rows = np.flatnonzero(finite.cpu().numpy())
        good = {
            name: take(column, rows)
            if isinstance(column, Ragged)
            else column[finite.to(column.device)]
            for name, column in columns.items()
        }
        reasons = {int(row): self.what_is_wrong(images[row]) for row in bad}
        where = self.config.name
        raise RowErrors({row: SampleError(f"{where}: {why}") for row, why in reasons.items()}, good)
