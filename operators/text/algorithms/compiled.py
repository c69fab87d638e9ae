"""Compile a function of numbers and arrays to machine code."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from operators.extras import import_extra

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def compiled(function: FunctionT) -> FunctionT:
    """Return the same function, compiled on its first call; it lets other threads run.

    Nothing is kept on disk: the folder of an installed package may not be writable.
    """
    numba = import_extra("numba", extra="text")
    return cast(FunctionT, numba.njit(nogil=True)(function))
