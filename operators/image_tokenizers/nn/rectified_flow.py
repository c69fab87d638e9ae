"""Integrate a rectified flow from noise to data, plainly or with guidance."""

from collections.abc import Callable
from typing import Literal

import torch

GuidanceMode = Literal["none", "cfg", "apg"]
Velocity = Callable[[torch.Tensor, torch.Tensor, bool], torch.Tensor]
"""(state [B, ...], time float32 [B], conditional) -> velocity [B, ...], noise minus data."""

_APG_MOMENTUM = -0.5
_APG_MAX_NORM = 2.5


def integrate(
    velocity: Velocity,
    noise: torch.Tensor,
    *,
    steps: int,
    guidance: float,
    mode: GuidanceMode,
) -> torch.Tensor:
    """Return the data [B, ...] that Euler steps of equal length reach from the noise.

    Args:
        velocity: The flow's field.
        noise: Standard normal [B, ...], the state at time 1.
        steps: Euler steps down to time 0.
        guidance: Strength; 1 is the conditional field in every mode.
        mode: ``none`` follows the conditional field; ``cfg`` is classifier-free guidance
            (Ho and Salimans, 2022, arXiv:2207.12598); ``apg`` is its normalized projected form
            (Sadat et al., 2024, arXiv:2410.02416) without the part parallel to the field.
    """
    state, average = noise, torch.zeros_like(noise)
    for step in range(steps, 0, -1):
        time = torch.full((len(state),), step / steps, device=state.device)
        field = velocity(state, time, True)
        if mode != "none":
            difference = field - velocity(state, time, False)
            if mode == "cfg":
                field = field + (guidance - 1) * difference
            else:
                average = difference + _APG_MOMENTUM * average
                field = field + (guidance - 1) * _normalized_projected(average, field)
        state = state - field / steps
    return state


def _normalized_projected(difference: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Return the difference, of limited norm, less its part along the field; per row."""
    axes = tuple(range(1, field.ndim))
    norm = torch.linalg.vector_norm(difference, dim=axes, keepdim=True)
    limited = difference * (_APG_MAX_NORM / norm).clamp(max=1)
    # In float64: the part removed is most of the difference.
    direction = torch.nn.functional.normalize(field.double().flatten(1), dim=1).view_as(field)
    along = (limited.double() * direction).sum(dim=axes, keepdim=True) * direction
    return (limited.double() - along).to(field.dtype)
