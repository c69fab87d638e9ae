"""Compile the hot loops of text algorithms with numba."""

from collections.abc import Callable
from typing import TypeVar, cast

from operators.extras import import_extra

_numba = import_extra("numba", extra="text")
FunctionT = TypeVar("FunctionT", bound=Callable[..., object])


def compiled(function: FunctionT) -> FunctionT:
    """Compile a function when it is first called, and keep the result on disk.

    It releases the interpreter's lock, since operators are called from several threads.
    """
    return cast(FunctionT, _numba.njit(nogil=True, cache=True)(function))
