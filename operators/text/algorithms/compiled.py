"""Compile a function of numbers and arrays to machine code."""

from collections.abc import Callable
from typing import Any, TypeVar

from operators.compiled import compiled_by
from operators.extras import import_extra

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def compiled(function: FunctionT) -> FunctionT:
    """Return the same function, compiled on its first call; see ``compiled_by``."""
    return compiled_by(import_extra("numba", extra="text"), function)
