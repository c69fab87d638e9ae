"""How much of a sample's ids is read: prefixes of nested fields, streams, scales."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

import numpy as np

from operators.base import FieldSpec
from pipeline.errors import ContractError
from pipeline.loader.order import random_bits
from pipeline.manifest import Manifest


@dataclass(frozen=True, slots=True)
class SampledPrefix:
    """A length for each sample, drawn anew in every epoch.

    The length is a pure function of the field's name, ``seed``, the epoch and the sample: neither
    ranks, workers, batches nor the order of the epoch have a part in it. Exact integer arithmetic.

    Attributes:
        lengths: What may be drawn, in positions, each from 1.
        weights: How often each is drawn, in proportion; None is equally often.
        seed: Any integer; taken modulo 2**64.

    Example:
        >>> SampledPrefix((1, 4, 16)).draw("image", epoch=0, items=np.arange(8)).tolist()
        [16, 1, 16, 1, 4, 1, 4, 1]
    """

    lengths: Sequence[int]
    weights: Sequence[float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ContractError(
                f"SampledPrefix: lengths={self.lengths!r}, expected one or more, each from 1"
            )
        weights = self.weights
        if weights is None:
            return
        is_bad = any(not math.isfinite(w) or w < 0 for w in weights) or not any(weights)
        if is_bad or len(weights) != len(self.lengths):
            raise ContractError(
                f"SampledPrefix: weights={weights!r}, expected one for each of "
                f"{len(self.lengths)} lengths, none below 0 and not all 0"
            )

    def draw(self, name: str, epoch: int, items: np.ndarray) -> np.ndarray:
        """Return int64 [B]: the length of each of int64 [B] items of the field of this name."""
        weights = [1] * len(self.lengths) if self.weights is None else self.weights
        drawn = [(n, Fraction(w)) for n, w in zip(self.lengths, weights, strict=True) if w > 0]
        sums = list(accumulate(weight for _, weight in drawn))
        bounds = [int(part / sums[-1] * 2**64) for part in sums[:-1]]
        bits = random_bits(self.seed + zlib.crc32(name.encode()), epoch, items)
        places = np.searchsorted(np.array(bounds, np.uint64), bits, side="right")
        return np.array([length for length, _ in drawn], np.int64)[places]


Prefix = int | SampledPrefix


@dataclass(frozen=True, slots=True)
class FieldLayout:
    """What a reader must know of a field's token layout; FORMAT.md, "Token layout".

    Attributes:
        positions: T.
        streams: Names of what a position holds.
        nested: Whether any prefix of the positions describes the same image.
        scales: Sides of square grids one after another, coarsest first; or none.
        axis: Of a sample, along which positions stand: 1 behind views, else 0.
    """

    positions: int
    streams: Sequence[str]
    nested: bool
    scales: Sequence[int]
    axis: int


def layout_of(manifest: Manifest, name: str) -> FieldLayout | None:
    """Return the token layout of a field; None when no operator describes it."""
    makers = [item for item in manifest.operators if name in item.get("outputs", ())]
    raw = makers[-1].get("metadata", {}).get("layout") if makers else None
    if not raw or not _has_shape(raw, manifest.fields[name]):
        return None
    return FieldLayout(
        positions=raw["positions"],
        streams=raw["streams"],
        nested=raw["nested"],
        scales=raw.get("scales", ()),
        axis=int("views" in raw),
    )


def _has_shape(raw: Mapping[str, object], spec: FieldSpec) -> bool:
    streams = raw["streams"]
    assert isinstance(streams, Sequence)
    before = (raw["views"],) if "views" in raw else ()
    after = (len(streams),) if len(streams) > 1 else ()
    is_features = not raw["codebook_sizes"]
    shape = spec.shape[:-1] if is_features else spec.shape
    is_right_kind = spec.is_numeric and (spec.vocab_size is None) == is_features
    return is_right_kind and shape in [(*before, n, *after) for n in (raw["positions"], None)]


def check_prefix(name: str, prefix: Prefix, layout: FieldLayout | None) -> None:
    """Refuse a prefix that the field does not have.

    Raises:
        ContractError: the field is not nested, has fewer positions, or has views and the length
            differs from sample to sample.
    """
    if layout is None or not layout.nested:
        found = "no token layout" if layout is None else "a token layout that is not nested"
        raise ContractError(
            f"prefix: field {name!r} has {found}, so a prefix of it means nothing",
            hint="read it whole; FlexTok and One-D-Piece, for example, make nested ids",
        )
    lengths = list(prefix.lengths) if isinstance(prefix, SampledPrefix) else [prefix]
    if not 1 <= min(lengths) <= max(lengths) <= layout.positions:
        raise ContractError(
            f"prefix: {lengths} positions of field {name!r}, expected 1 to {layout.positions}"
        )
    if layout.axis and isinstance(prefix, SampledPrefix):
        raise ContractError(
            f"prefix: field {name!r} has several views, whose lengths cannot be sampled",
            hint="give one length for all samples, or sample one batch by batch and cut it there",
        )


def positions_of_scales(name: str, num_scales: int, layout: FieldLayout | None) -> int:
    """Return the positions of the first scales of a field.

    Raises:
        ContractError: it does not have that many, or none at all.
    """
    sides = [] if layout is None else list(layout.scales)
    if not 1 <= num_scales <= len(sides):
        raise ContractError(
            f"scales: {num_scales} of field {name!r}, which has {len(sides)}",
            hint="scales are there when the tokenizer's layout has them, coarsest first",
        )
    return sum(side**2 for side in sides[:num_scales])


def stream_numbers(name: str, streams: Sequence[str], layout: FieldLayout | None) -> list[int]:
    """Return the places of some streams of a field.

    Raises:
        ContractError: the field has no such stream, or one stream only.
    """
    there = ["id"] if layout is None else list(layout.streams)
    unknown = [stream for stream in streams if stream not in there]
    if unknown or not streams or len(there) == 1:
        raise ContractError(
            f"streams: {list(streams)} of field {name!r}, which has {', '.join(there)}",
            hint="name some of several streams, in the order in which they are wanted",
        )
    return [there.index(stream) for stream in streams]
