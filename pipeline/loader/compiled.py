"""Functions of numbers and arrays, compiled to machine code on their first call.

Only functions import this module and those that build on it: without numba the import is a
``SetupError`` that says what to install.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from operators.extras import import_extra

_WHERE = "packed sequences and boundaries"

numba = import_extra("numba", extra="packing", where=_WHERE)
extending = import_extra("numba.extending", extra="packing", where=_WHERE)

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def compiled(function: FunctionT) -> FunctionT:
    """Return the same function, compiled on its first call; it lets other threads run.

    The machine code is kept on disk, where numba finds a folder that can be written: beside the
    source or in the user's cache. Else every process compiles for itself, which takes seconds.
    """
    try:
        return cast(FunctionT, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # there is no such folder
        return cast(FunctionT, numba.njit(nogil=True)(function))
