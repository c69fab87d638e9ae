"""What all token reducers share: signals, batches of crops, the map back, checks.

A reducer adds a config and ``reduce``. See ``topk.py`` for one that selects and ``tome.py`` for one
that merges.

Shapes: B rows (an image, or one crop of it), N tokens, K tokens that are left, C channels, L
layers, H heads, D channels a head.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from pydantic import Field

from operators.base import (
    Batch,
    Column,
    Drawing,
    FieldSpec,
    Operator,
    OperatorConfig,
    Ragged,
    Resources,
)
from operators.columns import num_rows, take_batch, to_numpy, to_torch
from operators.errors import ContractError, RowErrors, SampleError
from operators.reducers.picture import draw_map

if TYPE_CHECKING:
    import torch

FLOATS = "float32|float16|bfloat16"

SIGNALS: Mapping[str, tuple[FieldSpec, str]] = {
    "cls_attention": (
        FieldSpec("float32", (None, None, None)),
        "[L, H, N]: what the class token attends to, of the layers `attention_layers`",
    ),
    "attention": (
        FieldSpec("float32", (None, None, None, None)),
        "[L, H, N, N]: attention among tokens (row: from, column: to), of the same layers",
    ),
    "keys": (FieldSpec(FLOATS, (None, None, None)), "[N, H, D]: keys of the layer `key_layer`"),
    "values": (FieldSpec(FLOATS, (None, None, None)), "[N, H, D]: values of the same layer"),
    "cls_logits": (
        FieldSpec("float32", (None, None, None)),
        "[L, H, N]: scores of the class token before the softmax, of the same layers",
    ),
}
"""What an encoder tells of its tokens beside their features: spec of a row, and what it is."""

LOWEST = -1e30
"""Below every score that a method gives."""

TINY = 1e-30
"""Instead of zero where something is divided by a sum of weights."""

_TOKEN_AXES: Mapping[str, tuple[int, ...]] = {
    "cls_attention": (3,),
    "attention": (3, 4),
    "keys": (1,),
    "values": (1,),
    "cls_logits": (3,),
}
"""Axes of a batch of signals that count tokens."""

Keep = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)],
    Field(union_mode="left_to_right"),
]
"""A number of tokens, or a share of them."""


class ReducerConfig(OperatorConfig):
    """What a job may say about any reducer."""

    device: Annotated[
        Literal["cuda", "cpu"],
        Field(description="Part of the recipe: near ties may fall otherwise by rounding."),
    ] = "cuda"


@dataclass(frozen=True, slots=True)
class Tokens:
    """What ``reduce`` is given.

    Attributes:
        features: [B, N, C], as stored: float32, float16 or bfloat16.
        sizes: float32 [B, N], how many of the encoder's tokens each stands for.
        valid: bool [B, N], False for padding; None where there is none. Padding must have no
            influence on other tokens; ``select`` and ``merge`` drop it themselves.
        cls_attention: float32 [B, L, H, N]; this and all below only where ``signals`` asks.
        attention: float32 [B, L, H, N, N].
        keys: [B, N, H, D].
        values: [B, N, H, D].
        cls_logits: float32 [B, L, H, N].
        crops: int64 [I + 1]: image i has rows ``crops[i]`` to ``crops[i + 1]``; None where each
            row is an image.
        more: The fields of ``further_inputs``, a row for each image.
    """

    features: "torch.Tensor"
    sizes: "torch.Tensor"
    valid: "torch.Tensor | None" = None
    cls_attention: "torch.Tensor | None" = None
    attention: "torch.Tensor | None" = None
    keys: "torch.Tensor | None" = None
    values: "torch.Tensor | None" = None
    cls_logits: "torch.Tensor | None" = None
    crops: np.ndarray | None = None
    more: Mapping[str, Column] = field(default_factory=dict)

    def without_padding(self, scores: "torch.Tensor") -> "torch.Tensor":
        """Return scores [B, N] so low for padding that it comes last; finite, unlike -inf."""
        return scores if self.valid is None else scores.masked_fill(~self.valid, LOWEST)

    def signal(self, name: str) -> "torch.Tensor":
        """Return a signal that the reducer's ``signals`` asks for."""
        found: torch.Tensor | None = getattr(self, name)
        assert found is not None, f"{name} is not among the reducer's signals"
        return found


@dataclass(frozen=True, slots=True)
class Reduction:
    """What ``reduce`` gives.

    Attributes:
        features: [B, K, C] of the dtype of the features that were given.
        token_map: int64 [B, N]: the output row that token n went into, -1 where it was dropped.
        lengths: int64 [B], rows that count, where some images keep fewer; None is all K.
        index: int64 [B, K]: the token that each output row is a copy of, for methods that select;
            None for those that merge.
        sizes: float32 [B, K], where rows also hold tokens that the map sends elsewhere; None is
            what the map says.
        more: [B, K] for each of ``further_outputs``.
        extra: [B, ...] for each of ``extras``.
    """

    features: "torch.Tensor"
    token_map: "torch.Tensor"
    lengths: "torch.Tensor | None" = None
    index: "torch.Tensor | None" = None
    sizes: "torch.Tensor | None" = None
    more: Mapping[str, "torch.Tensor"] = field(default_factory=dict)
    extra: Mapping[str, "torch.Tensor"] = field(default_factory=dict)


ConfigT = TypeVar("ConfigT", bound=ReducerConfig)


class Reducer(Operator[ConfigT], Generic[ConfigT]):
    """Reads ``features`` [N, C] of one image and writes fewer in their place.

    Adds ``token_map`` int16 [N] (int32 from 32,768 tokens): for each of the *encoder's* tokens, in
    raster order, the row of ``features`` that stands for it now, -1 where it was dropped; and
    ``sizes``, of the same dtype, [K]: how many of the encoder's tokens each row stands for. After
    an earlier reducer the map is carried on, so it always leads back to the encoder. ``unreduce``
    (``unreduce.py``) puts features back by it.

    Crops. ``features`` [V, N, C] (V crops of every image) or ragged [*, N, C] (as many as each
    image has) are reduced crop by crop, and all that is added has the crops in front as well.

    A method that ``is_joint`` takes all crops (frames, views) of an image as one row of V * N
    tokens instead, and writes [K, C], to whose rows the map [V, N] leads; V must be fixed.

    Images that keep different numbers: where ``is_adaptive``, after such a reducer, and where the
    encoder gives ``token_mask`` bool [N] (False for padding, which is dropped). ``features`` and
    ``sizes`` are ragged then, and hold the crops of an image one after another.

    A later reducer may ask for signals that this one was given: they are cut to the tokens that are
    left, and averaged by size where tokens merge.

    Distances are float32 whatever the features are. Ties go to the lowest index.
    """

    stage = "device"

    paper: ClassVar[str]
    """Where the method is from: arXiv:..."""
    is_adaptive: ClassVar[bool] = False
    """How many tokens are left depends on the image."""
    needs_grid: bool = False
    """Tokens must stand in the encoder's raster order: no reducer may come before."""
    needs_crops: ClassVar[bool] = False
    """Several crops of each image must be given."""
    is_joint: ClassVar[bool] = False
    """Tokens of all crops of an image stand in one row of the batch."""

    def __init__(self, config: ConfigT) -> None:
        super().__init__(config)
        self._given: Mapping[str, FieldSpec] = {}
        self._asked: frozenset[str] = frozenset()

    # --- what a method says ---------------------------------------------------------------------

    @property
    def signals(self) -> tuple[str, ...]:
        """Which of ``SIGNALS`` it reads."""
        return ()

    @property
    def needs_whole(self) -> bool:
        """Whether no padding may be there: no ``token_mask``."""
        return False

    @property
    def further_inputs(self) -> Mapping[str, FieldSpec]:
        """Fields of an image, beside features and signals, that it reads."""
        return {}

    @property
    def further_outputs(self) -> Mapping[str, str]:
        """Fields that it adds beside ``sizes``, one value a row of the result -> their dtype."""
        return {}

    @property
    def extras(self) -> Mapping[str, tuple[FieldSpec, str]]:
        """What it adds when it is asked for: spec of an image (or crop) once bound, what it is."""
        return {}

    @abstractmethod
    def num_kept(self, num_tokens: int) -> int:
        """Return K for N tokens; where ``is_adaptive``, the most that can be left.

        Raises:
            ContractError: the budget does not fit N.
        """

    @abstractmethod
    def reduce(self, tokens: Tokens) -> Reduction:
        """Reduce a batch; rows do not depend on each other."""

    def faults(self, tokens: Tokens) -> Mapping[int, str]:  # noqa: ARG002 - nothing may be wrong
        """Return what is wrong with the ``further_inputs`` of some images: image -> what.

        ``reduce`` is given these too, and must get over them; its results are thrown away.
        """
        return {}

    def check_signal(self, name: str, spec: FieldSpec) -> None:
        """Check that a signal is what the method needs, for example of how many layers.

        Raises:
            ContractError: it is not; the hint says which option of the encoder helps.
        """

    # --- the operator ---------------------------------------------------------------------------

    def provide(self, names: frozenset[str]) -> None:
        """Cut these signals as well: a later operator asks for them."""
        self._asked = names

    @property
    def offers(self) -> Mapping[str, str]:
        """Every signal, when an earlier operator gives it, and ``extras``."""
        names = ("keys", "values") if self.is_joint else SIGNALS
        extras = {name: about for name, (_, about) in self.extras.items()}
        left = ", cut to the tokens that are left"
        return {name: SIGNALS[name][1] + left for name in names} | extras

    def bind(self, fields: Mapping[str, FieldSpec]) -> None:
        """Take the number of tokens, crops and channels from the job, and check the signals."""
        self._given = fields
        name = self.config.name
        features = fields.get("features")
        if features is None or len(features.shape) not in (2, 3):
            return  # the plan says what is missing or wrong
        if features.shape[-2] is None and not self._num_tokens:
            raise ContractError(
                f"{name}: features {features} are of no known most length",
                hint="tokens of different number come from another reducer of images whose number "
                "of crops is fixed, with its token_map",
            )
        if self.needs_crops and len(features.shape) == 2:
            raise ContractError(
                f"{name}: features {features} are of one crop, expected several of each image",
                hint="let the encoder read crops, frames or views: [V, N, C]",
            )
        if self.is_joint and None in features.shape:
            raise ContractError(
                f"{name}: features {features}, but crops, frames and tokens must be equally many "
                "for all",
                hint="give a fixed number of each",
            )
        if self.needs_whole and "token_mask" in fields:
            raise ContractError(
                f"{name}: token_mask says that some tokens are padding, which has no place here",
                hint="let the encoder read images without padding",
            )
        if self.needs_grid and "token_map" in fields:
            raise ContractError(
                f"{name}: reads tokens in raster order, but an earlier reducer changed it",
                hint=f"put {name} first",
            )
        self.num_kept(self._num_tokens)
        for signal in self.signals:
            if signal not in fields:
                continue
            shape = fields[signal].shape[len(features.shape) - 2 :]
            found = {shape[axis - 1] for axis in _TOKEN_AXES[signal] if axis <= len(shape)}
            tokens = self._num_tokens // (self.joint_crops or 1)
            if found != {tokens}:
                raise ContractError(
                    f"{name}: {signal} {fields[signal]} is not of the {tokens} tokens of "
                    f"features {features}",
                    hint="both come from one encoder, and reducers between pass signals on",
                )
            self.check_signal(signal, fields[signal])

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """``features`` and the signals; ``token_map`` and ``sizes`` after another reducer."""
        features = self._given.get("features")
        shape = (None, None) if features is None else features.shape
        found = {"features": FieldSpec(FLOATS, shape), **self.further_inputs}
        crops = shape[:-2]
        for signal in sorted({*self.signals, *(self._asked & set(SIGNALS))}):
            spec = SIGNALS[signal][0]
            any_such = replace(spec, shape=(*crops, *spec.shape))
            given = self._given.get(signal)
            is_one = given is not None and any_such.accepts(given)
            found[signal] = given if given is not None and is_one else any_such
        if not self._given:  # what it takes when it is there
            return {**found, **_OPTIONAL}
        return {**found, **{name: self._given[name] for name in _OPTIONAL if name in self._given}}

    @property
    def optional_inputs(self) -> frozenset[str]:
        """What an earlier reducer or the encoder may give beside the features."""
        return frozenset(_OPTIONAL)

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """``features``, ``token_map``, ``sizes``, and the signals that were asked for."""
        features = self._given.get("features")
        if features is None:  # a description of what there will be
            found = {"features": FieldSpec(FLOATS, (None, None))}
            found |= {name: _OPTIONAL[name] for name in ("token_map", "sizes")}
            more = self.further_outputs.items()
            return {**found, **{name: FieldSpec(dtype, (None,)) for name, dtype in more}}
        *crops, _, channels = features.shape
        before = self._given.get("token_map")
        encoded = (*crops, features.shape[-2] or self._num_tokens)
        if before is not None:
            encoded = before.shape
        if self.is_joint:
            crops = []
        count = "int16" if math.prod(n or 1 for n in encoded) < 1 << 15 else "int32"
        left: tuple[int | None, ...] = (*crops, self.num_kept(self._num_tokens))
        if self._is_ragged:
            left = (None,)
        found = {
            "features": FieldSpec(features.dtype, (*left, channels)),
            "token_map": FieldSpec(count, encoded),
            "sizes": FieldSpec(count, left),
            **{name: FieldSpec(dtype, left) for name, dtype in self.further_outputs.items()},
        }
        for name in sorted(self._asked & set(self.extras)):
            extra = self.extras[name][0]
            found[name] = replace(extra, shape=(*crops, *extra.shape))
        for signal in sorted(self._asked):
            spec = self._given.get(signal)
            if spec is not None and not (crops and self._is_ragged):
                shape = list(spec.shape)
                for axis in _TOKEN_AXES[signal]:
                    shape[len(crops) + axis - 1] = self.num_kept(self._num_tokens)
                found[signal] = replace(spec, shape=tuple(shape))
        return found

    @property
    def resources(self) -> Resources:
        """One core, and one GPU on ``cuda``."""
        return Resources(cpus=1.0, gpus=1.0 if self.config.device == "cuda" else 0.0)

    @property
    def device(self) -> str:
        """The configured device."""
        return self.config.device

    def metadata(self) -> Mapping[str, object]:
        """What the map is, and from where."""
        return {"reducer": self.config.name, "paper": self.paper, "tokens": self._num_tokens}

    drawn_from = ("token_map",)

    def draw(self, batch: Batch, pictures: Sequence[np.ndarray]) -> Sequence[Drawing]:
        """Show kept and merged tokens over the pictures, and darken dropped ones."""
        by_crop = len(self.outputs["features"].shape) == 3  # each crop's rows count from 0
        return [
            _drawing(picture, np.asarray(batch["token_map"][row]), by_crop=by_crop)
            for row, picture in enumerate(pictures)
        ]

    def __call__(self, batch: Batch) -> Batch:
        """Reduce a batch; see the class."""
        import torch

        features = batch["features"]
        rows = num_rows(features)
        crops = self._crops(features)
        tokens = self.tokens(batch)
        bad = self._not_finite(tokens)
        reduction = self.reduce(_without(tokens, bad))
        columns = self._columns(tokens, reduction, batch, crops)
        found = {name: _as_rows(column, crops, rows) for name, column in columns.items()}
        name = self.config.name
        errors = {row: SampleError(f"{name}: {what}") for row, what in self.faults(tokens).items()}
        if bool(bad.any()):
            not_finite = _images(crops, rows)[torch.nonzero(bad).flatten().cpu().numpy()]
            what = "features or signals hold NaN or infinity, expected finite"
            errors |= {int(row): SampleError(f"{name}: {what}") for row in np.unique(not_finite)}
        if not errors:
            return found
        raise RowErrors(errors, take_batch(found, np.setdiff1d(np.arange(rows), list(errors))))

    @property
    def _is_ragged(self) -> bool:
        """Whether images keep different numbers of tokens."""
        features = self._given.get("features")
        is_short = features is not None and features.shape[-2] is None
        return self.is_adaptive or is_short or "token_mask" in self._given

    @property
    def _num_tokens(self) -> int:
        """N: of a ragged input the most there can be."""
        features = self._given.get("features", FieldSpec("float32", (1, 1)))
        if features.shape[-2] is not None:
            return features.shape[-2] * (self.joint_crops or 1)
        for name, axes in _TOKEN_AXES.items():  # as wide as the reducer before left them
            if name in self._given:
                return int(self._given[name].shape[axes[0] - 1] or 1)
        before = self._given.get("token_map", FieldSpec("int16", (None,))).shape
        return math.prod(n or 0 for n in before)

    def tokens(self, batch: Batch) -> Tokens:
        """Return a batch as ``reduce`` takes it: crops are rows, and short rows are padded."""
        import torch

        features = self._flat(batch["features"])
        valid = None
        if isinstance(batch["features"], Ragged) and features.dim() == 3 and self._crop_axes == 0:
            lengths = torch.from_numpy(batch["features"].lengths)
            valid = torch.arange(self._num_tokens) < lengths[:, None]
            valid = valid.to(features.device)
        if "token_mask" in self._given:
            valid = self._flat(batch["token_mask"])
        sizes = torch.ones(features.shape[:2], device=features.device)
        if "sizes" in self._given:
            sizes = self._flat(batch["sizes"]).float()
        signals = {name: self._flat(batch[name]) for name in self.signals}
        crops = self._crops(batch["features"])
        if isinstance(crops, int):
            crops = np.arange(num_rows(batch["features"]) + 1) * crops
        more = {name: batch[name] for name in self.further_inputs}
        return Tokens(features, sizes, valid, crops=crops, more=more, **signals)

    @property
    def _crop_axes(self) -> int:
        """1 where an image has crops that are rows of their own, else 0."""
        return 0 if self.is_joint else len(self.inputs["features"].shape) - 2

    def _crops(self, features: Column) -> "int | np.ndarray | None":
        """Return how many crops each image has, or where each image's begin; None without any."""
        if not self._crop_axes:
            return None
        return features.offsets if isinstance(features, Ragged) else int(features.shape[1])

    @property
    def joint_crops(self) -> int | None:
        """V of a method that takes them as one row; None where there are none to join."""
        features = self._given.get("features")
        is_joined = self.is_joint and features is not None and len(features.shape) == 3
        return features.shape[0] if is_joined and features is not None else None

    def _flat(self, column: Column) -> "torch.Tensor":
        """Return a column with crops as rows, and rows of different length padded with zeros."""
        import torch

        if not isinstance(column, Ragged):
            tensor: torch.Tensor = column
            if self.joint_crops:
                return tensor.flatten(1, 2)
            return tensor.flatten(0, 1) if self._crop_axes else tensor
        values = to_torch(column.values).to(self.config.device)
        if self._crop_axes:
            return values
        padded = values.new_zeros((len(column), self._num_tokens, *values.shape[1:]))
        is_there = torch.arange(self._num_tokens) < torch.from_numpy(column.lengths)[:, None]
        padded[is_there.to(values.device)] = values
        return padded

    def _not_finite(self, tokens: Tokens) -> "torch.Tensor":
        """Return bool [B]: rows with NaN or infinity in what is read of them."""
        import torch

        bad = ~torch.isfinite(tokens.features).flatten(1).all(dim=1)
        for name in self.signals:
            bad |= ~torch.isfinite(tokens.signal(name)).flatten(1).all(dim=1)
        return bad

    def _columns(
        self,
        tokens: Tokens,
        reduction: Reduction,
        batch: Batch,
        crops: "int | np.ndarray | None",
    ) -> dict[str, Any]:
        """Return field -> tensor [B, ...], or (values, lengths) of rows of different length."""
        import torch

        dtype = getattr(torch, self.outputs["token_map"].dtype)
        token_map, kept = reduction.token_map, reduction.features.shape[1]
        sizes = reduction.sizes
        if sizes is None:
            sizes = sum_by_map(tokens.sizes[..., None], token_map, kept)[..., 0]
        found: dict[str, Any] = {
            "features": reduction.features,
            "sizes": sizes.round().to(dtype),
            **reduction.more,
        }
        lengths = reduction.lengths
        if self._is_ragged:
            if lengths is None:
                lengths = torch.full((len(token_map),), kept, device=token_map.device)
            found = {name: (column, lengths) for name, column in found.items()}
            if crops is not None:  # the crops of an image follow one another
                token_map = torch.where(
                    token_map < 0, -1, token_map + _starts(lengths, crops)[:, None]
                )
        if "token_map" in self._given:
            before = self._flat(batch["token_map"]).long()
            shape = before.shape
            if self.joint_crops:  # an earlier map counts the rows of one crop
                first = torch.arange(self.joint_crops, device=before.device)
                first = first * (self._num_tokens // self.joint_crops)
                first = first.repeat_interleave(shape[1] // self.joint_crops)
                before = torch.where(before < 0, -1, before + first)
            carried = token_map.gather(1, before.clamp(min=0).flatten(1))
            token_map = torch.where(before < 0, -1, carried.reshape(shape))
        if self.joint_crops:
            token_map = token_map.unflatten(1, (self.joint_crops, -1))
        found["token_map"] = token_map.to(dtype)
        found |= {name: reduction.extra[name] for name in self._asked & set(self.extras)}
        for name in self._asked & set(self.outputs) & set(SIGNALS):
            signal = self._flat(batch[name])
            for axis in _TOKEN_AXES[name]:
                signal = _cut(signal, axis, tokens, reduction)
            found[name] = signal
        return found


_OPTIONAL: Mapping[str, FieldSpec] = {
    "token_map": FieldSpec("int16|int32", (None,)),
    "sizes": FieldSpec("int16|int32", (None,)),
    "token_mask": FieldSpec("bool", (None,)),
}


def select(tokens: Tokens, index: "torch.Tensor") -> Reduction:
    """Keep some tokens as they are.

    Args:
        tokens: What is given.
        index: int64 [B, K], different tokens of each row, in the order that they are to have.
    """
    import torch

    lengths = None
    rows = torch.arange(index.shape[1], device=index.device).expand_as(index)
    if tokens.valid is not None:
        is_real = tokens.valid.gather(1, index)
        index = index.gather(1, (~is_real).to(torch.int8).sort(dim=1, stable=True).indices)
        lengths = is_real.sum(dim=1)
        rows = torch.where(rows < lengths[:, None], rows, -1)
    token_map = torch.full(tokens.features.shape[:2], -1, device=index.device)
    token_map.scatter_(1, index, rows)
    features = tokens.features.gather(1, index[..., None].expand(-1, -1, tokens.features.shape[2]))
    return Reduction(features, token_map, lengths, index, tokens.sizes.gather(1, index))


def merge(
    tokens: Tokens, token_map: "torch.Tensor", kept: int, weights: "torch.Tensor | None" = None
) -> Reduction:
    """Average tokens, weighted by size, in float32.

    Args:
        tokens: What is given.
        token_map: int64 [B, N]: the output row of each token, -1 drops it.
        kept: K; a row that no token goes into is zero.
        weights: [B, N], positive, to weigh by instead.
    """
    import torch

    sizes, lengths = tokens.sizes[..., None], None
    if tokens.valid is not None:
        token_map = token_map.masked_fill(~tokens.valid, -1)
        is_empty = sum_by_map(sizes, token_map, kept)[..., 0] == 0
        order = is_empty.to(torch.int8).sort(dim=1, stable=True).indices
        place = order.argsort(dim=1)  # where each row goes, empty ones last
        token_map = torch.where(token_map < 0, -1, place.gather(1, token_map.clamp(min=0)))
        lengths = (~is_empty).sum(dim=1)
    weigh = sizes if weights is None else weights[..., None]
    total = sum_by_map(weigh, token_map, kept).clamp(min=TINY)
    part = weigh / total.gather(1, token_map.clamp(min=0)[..., None])  # 1 for a token by itself
    part = part.masked_fill(token_map[..., None] < 0, 0)
    features = sum_by_map(tokens.features.float() * part, token_map, kept)
    return Reduction(features.to(tokens.features.dtype), token_map, lengths)


def select_some(tokens: Tokens, index: "torch.Tensor", lengths: "torch.Tensor") -> Reduction:
    """Keep some tokens as they are, a different number of each row.

    Args:
        tokens: What is given.
        index: int64 [B, K], different tokens of each row, no padding among those that count.
        lengths: int64 [B]: how many of a row's, from the first, are kept.
    """
    import torch

    places = torch.arange(index.shape[1], device=index.device).expand_as(index)
    token_map = torch.full(tokens.features.shape[:2], -1, device=index.device)
    token_map.scatter_(1, index, torch.where(places < lengths[:, None], places, -1))
    features = tokens.features.gather(1, index[..., None].expand(-1, -1, tokens.features.shape[2]))
    return Reduction(features, token_map, lengths, index, tokens.sizes.gather(1, index))


def in_raster_order(is_kept: "torch.Tensor") -> "torch.Tensor":
    """Return int64 [B, N]: the tokens of bool [B, N] that are kept, as read, then the others."""
    import torch

    return (~is_kept).to(torch.int8).sort(dim=1, stable=True).indices


def sum_by_map(values: "torch.Tensor", token_map: "torch.Tensor", kept: int) -> "torch.Tensor":
    """Add up float values [B, N, C] that go into the same row: [B, K, C].

    A matrix product, because adding by index has no fixed order on a GPU.
    """
    import torch

    rows = torch.arange(kept, device=token_map.device)
    goes = (token_map[:, None, :] == rows[:, None]).to(values.dtype)
    return times_vector(goes, values[..., 0])[..., None] if values.shape[2] == 1 else goes @ values


def times_vector(matrix: "torch.Tensor", vector: "torch.Tensor") -> "torch.Tensor":
    """Multiply matrices [..., N, M] with a vector [..., M] each: [..., N].

    As two columns: for a single one, a batch of one takes another routine, which rounds otherwise.
    """
    import torch

    return (matrix @ torch.stack([vector, vector], dim=-1))[..., 0]


def top_k(scores: "torch.Tensor", k: int) -> "torch.Tensor":
    """Return int64 [B, k]: the highest of [B, N], from high to low, ties by lowest index."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


def share(
    keep: int | float,
    num_tokens: int,
    name: str,
    rounding: Callable[[float], int] = round,
    option: str = "keep",
) -> int:
    """Return K of a budget.

    Args:
        keep: Tokens, or their share.
        num_tokens: N.
        name: Of the reducer, for the message.
        rounding: How its authors make a whole number of a share; ``round`` is half to even.
        option: Of the budget, for the message.

    Raises:
        ContractError: more than there are, or none.
    """
    kept = keep if isinstance(keep, int) else rounding(keep * num_tokens)
    if not 1 <= kept <= num_tokens:
        raise ContractError(
            f"{name}: {option}={keep} is {kept} of {num_tokens}"
            + (" tokens" if option == "keep" else ""),
            hint=f"keep between 1 and {num_tokens}",
        )
    return kept


def cosine(a: "torch.Tensor", b: "torch.Tensor") -> "torch.Tensor":
    """Return float32 [B, N, M]: cosines between rows of [B, N, C] and [B, M, C]; 0 for zeros."""
    import torch

    def unit(x: "torch.Tensor") -> "torch.Tensor":
        return torch.nn.functional.normalize(x.float(), dim=-1, eps=1e-12)

    return unit(a) @ unit(b).transpose(1, 2)


def _without(tokens: Tokens, bad: "torch.Tensor") -> Tokens:
    """Return tokens with zeros in rows that are rejected, so that they disturb no method."""
    if not bool(bad.any()):
        return tokens
    names = ("features", *SIGNALS)
    found = {name: getattr(tokens, name) for name in names}
    return replace(
        tokens,
        **{
            name: signal.masked_fill(bad.reshape(-1, *[1] * (signal.dim() - 1)), 0)
            for name, signal in found.items()
            if signal is not None
        },
    )


def _cut(signal: "torch.Tensor", axis: int, tokens: Tokens, reduction: Reduction) -> "torch.Tensor":
    """Return a signal with one axis cut to the tokens that are left: copied, or averaged."""
    moved = signal.movedim(axis, 1)
    flat = moved.flatten(2).float()
    index = reduction.index
    if index is not None:
        left = flat.gather(1, index[..., None].expand(-1, -1, flat.shape[2]))
    else:
        kept = reduction.features.shape[1]
        total = sum_by_map(tokens.sizes[..., None], reduction.token_map, kept)
        left = sum_by_map(flat * tokens.sizes[..., None], reduction.token_map, kept)
        left = left / total.clamp(min=1)
    shaped = left.reshape(left.shape[0], left.shape[1], *moved.shape[2:])
    return shaped.movedim(1, axis).to(signal.dtype)


def _drawing(picture: np.ndarray, token_map: np.ndarray, *, by_crop: bool) -> Drawing:
    """Return the drawing of an image [H, W, 3] with a map [N], or of V crops with [V, N]."""
    crops = picture.reshape(-1, *picture.shape[-3:])
    maps = token_map.reshape(len(crops), -1).astype(np.int64)
    if by_crop:  # count them through, as if all crops had one list of rows
        firsts = np.cumsum(maps.max(axis=1, initial=-1) + 1)
        maps = np.where(maps < 0, -1, maps + np.concatenate(([0], firsts[:-1]))[:, None])
    sizes = np.bincount(maps[maps >= 0])
    drawn = [draw_map(crop, each, sizes) for crop, each in zip(crops, maps, strict=True)]
    note = f"{np.count_nonzero(sizes):,} of {maps.size:,} tokens"
    return Drawing(np.stack(drawn).reshape(picture.shape), note)


def _images(crops: "int | np.ndarray | None", rows: int) -> np.ndarray:
    """Return int64 [B]: the image that each crop is of."""
    per_image = np.diff(crops) if isinstance(crops, np.ndarray) else crops or 1
    return np.repeat(np.arange(rows), per_image)


def _starts(lengths: "torch.Tensor", crops: "int | np.ndarray") -> "torch.Tensor":
    """Return int64 [B]: how many rows an image's earlier crops have left."""
    import torch

    before = lengths.cumsum(0) - lengths
    num = len(lengths) // crops if isinstance(crops, int) else len(crops) - 1
    image = torch.from_numpy(_images(crops, num)).to(lengths.device)
    firsts = np.arange(num) * crops if isinstance(crops, int) else crops[:-1]
    padded = torch.cat([before, before.new_zeros(1)])  # images without crops at the end
    return before - padded[torch.from_numpy(firsts).to(lengths.device)][image]


def _as_rows(column: Any, crops: "int | np.ndarray | None", rows: int) -> Column:
    """Undo ``_flat``: give the crops of an image back to its row."""
    if isinstance(column, tuple):
        import torch

        padded, lengths = column
        is_there = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        per_image = np.zeros(rows, np.int64)
        np.add.at(per_image, _images(crops, rows), lengths.cpu().numpy())
        offsets = np.concatenate(([0], np.cumsum(per_image)))
        return Ragged(to_numpy(padded[is_there]), offsets)
    if isinstance(crops, np.ndarray):
        return Ragged(to_numpy(column), crops)
    return column if crops is None else column.reshape(rows, crops, *column.shape[1:])
