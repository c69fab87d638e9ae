"""Functions of numbers and arrays, compiled to machine code on their first call.

Only functions import this module and those that build on it: without numba the import is a
``SetupError`` that says what to install.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from operators.compiled import compiled_by
from operators.extras import import_extra

_WHERE = "packed sequences and boundaries"

numba = import_extra("numba", extra="packing", where=_WHERE)
extending = import_extra("numba.extending", extra="packing", where=_WHERE)

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def compiled(function: FunctionT) -> FunctionT:
    """Return the same function, compiled on its first call; see ``compiled_by``."""
    return compiled_by(numba, function)
