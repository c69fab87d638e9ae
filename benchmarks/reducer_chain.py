"""Every registered reducer with options for a budget, bound to what an encoder would give it.

Reducers are found by the registry, and how many layers and crops they need by their cases among the
tests; so whatever is added is measured too. A method that can at most halve the tokens in one go is
put into a row with itself until few enough are left.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from operators import registry
from operators.base import FieldSpec, Ragged
from operators.columns import take, to_torch
from operators.errors import ContractError
from operators.reducers.base import SIGNALS, Reducer
from tests.reducer_cases import CASES, batch_for

VIEWS = 5
"""Crops of an image, where a method needs several and would take any number."""


@dataclass(frozen=True)
class Encoder:
    """What reducers are given.

    Attributes:
        tokens: N, a square.
        channels: C.
        heads: H.
        head_dim: D.
        layers: L of attention; None is as many as the method's case has.
        dtype: Of features, keys and values.
        device: ``cpu`` or ``cuda``.
    """

    tokens: int = 576
    channels: int = 1024
    heads: int = 16
    head_dim: int = 64
    layers: int | None = None
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Chain:
    """A method that leaves about as many tokens as were asked for.

    Attributes:
        steps: One reducer, or several of the same name in a row.
        views: Crops of an image; 1 is a plain image.
        kept: Tokens that are left of each crop; None where it depends on the image.
    """

    steps: Sequence[Reducer[Any]]
    views: int
    kept: int | None

    @property
    def signals(self) -> tuple[str, ...]:
        """What it asks of the encoder beside features."""
        return tuple(sorted({name for step in self.steps for name in step.signals}))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Run all steps and return all fields."""
        found = dict(batch)
        for step in self.steps:
            found |= step({name: found[name] for name in step.inputs})
            for name, column in found.items():
                if isinstance(column, torch.Tensor):
                    found[name] = column.to(step.config.device)
        return found

    def batch(self, rows: int) -> dict[str, Any]:
        """Return random inputs of two images, repeated: data are no part of what is measured."""
        two = batch_for(self.steps[0], 2)
        device = self.steps[0].config.device
        which = np.arange(rows) % 2
        return {
            name: column[torch.from_numpy(which)].to(device)
            if isinstance(column, torch.Tensor)
            else take(column, which)
            for name, column in two.items()
        }


def reducer_names() -> list[str]:
    """Return the names of all reducers, sorted."""
    found = registry.all_classes().items()
    return sorted(name for name, cls in found if issubclass(cls, Reducer))


def views_of(name: str) -> int:
    """Return how many crops the method's case has."""
    crops = next(case.crops for case in CASES if case.name == name)
    return int(crops[0] or VIEWS) if crops else 1


def build_chain(name: str, keep: int, encoder: Encoder, **options: Any) -> Chain | None:
    """Return a method with options whose result is nearest to a budget.

    Args:
        name: Of the reducer.
        keep: Tokens that are to be left of each crop.
        encoder: What it is given.
        options: Further ones; where the method does not have them, there is no such chain.

    Returns:
        None where no options fit these tokens.
    """
    found = []
    for budget in _budgets(name, keep, encoder):
        try:
            found.append(_chain(name, {**budget, **options}, encoder))
        except (ContractError, ValidationError):
            try:
                found.append(_halving(name, keep, encoder, options))
            except (ContractError, ValidationError):
                continue
    return min(found, key=lambda chain: abs((chain.kept or keep) - keep), default=None)


def _budgets(name: str, keep: int, encoder: Encoder) -> Iterator[Mapping[str, Any]]:
    """Yield options that may mean this budget; some will not fit."""
    fields = registry.get(name).Config.model_fields
    share = keep / encoder.tokens
    side = math.isqrt(encoder.tokens)
    sides = min(
        ((rows, keep // rows) for rows in range(1, keep + 1) if keep % rows == 0),
        key=lambda pair: abs(pair[0] - pair[1]),
    )
    if "keep" in fields:
        yield from ({"keep": keep}, {"keep": keep * views_of(name)}, {"keep": share})
        return
    if {"frames", "tokens"} <= set(fields):
        yield {"frames": 0.5, "tokens": 0.5}
    yield {}
    others: dict[str, Sequence[Any]] = {
        "clusters": [sides],
        "grid": [sides],
        "window": [2, 3, 4],
        "largest": [8, 4, 2],
        "cell": [(1, 2), (1, 3), (2, 2), (2, 3), (3, 3), (4, 4)],
        "scales": [(each**2,) for each in range(1, side) if side % each == 0],
    }
    for field, values in others.items():
        if field in fields:
            yield from ({field: value} for value in values)
            return


def _halving(name: str, keep: int, encoder: Encoder, options: Mapping[str, Any]) -> Chain:
    """Return as many reducers in a row as it takes when each halves."""
    tokens, keeps = encoder.tokens, []
    while tokens > keep:
        tokens = max(keep, tokens - tokens // 2)
        keeps.append({"keep": tokens, **options})
    return _chain(name, keeps, encoder)


def _chain(
    name: str, options: Mapping[str, Any] | Sequence[Mapping[str, Any]], encoder: Encoder
) -> Chain:
    cls: Any = registry.get(name)
    views = views_of(name)
    all_options = [options] if isinstance(options, Mapping) else options
    steps: list[Reducer[Any]] = [
        cls(cls.Config(name=name, device=encoder.device, **each)) for each in all_options
    ]
    fields = _fields(name, steps[0], views, encoder)
    for i, step in enumerate(steps):
        later = {signal for after in steps[i + 1 :] for signal in after.signals}
        step.provide(frozenset(later))
        step.bind(fields)
        step.setup(encoder.device)
        fields = {**fields, **step.outputs}
    left = steps[-1].outputs["features"].shape[:-1]
    kept = None if None in left else math.prod(n or 0 for n in left) // views
    return Chain(steps, views, kept)


def _fields(name: str, step: Reducer[Any], views: int, encoder: Encoder) -> dict[str, FieldSpec]:
    """Return what an encoder gives a reducer, as specs."""
    layers = max(case.num_layers for case in CASES if case.name == name)
    sizes = {
        "L": encoder.layers or layers,
        "H": encoder.heads,
        "N": encoder.tokens,
        "D": encoder.head_dim,
    }
    crops = (views,) if views > 1 else ()
    shape = (*crops, encoder.tokens, encoder.channels)
    found = {"features": FieldSpec(encoder.dtype, shape)}
    for signal in step.signals:
        spec, about = SIGNALS[signal]
        letters = about.split("]", maxsplit=1)[0].strip("[").split(", ")  # [L, H, N]: ...
        dtype = "float32" if "|" not in spec.dtype else encoder.dtype
        found[signal] = FieldSpec(dtype, (*crops, *(sizes[letter] for letter in letters)))
    return {**found, **step.further_inputs}


def dense(found: Mapping[str, Any], name: str) -> Sequence[torch.Tensor]:
    """Return the rows of a field as tensors on the CPU."""
    column = found[name]
    if isinstance(column, Ragged):
        return [to_torch(np.ascontiguousarray(column[row])) for row in range(len(column))]
    return list(column.cpu())
