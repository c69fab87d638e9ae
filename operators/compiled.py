"""Compile functions of numbers and arrays to machine code, once a machine.

``algorithms/compiled.py`` of the text operators and ``compiled.py`` of the loader say which extra
brings numba.
"""

import hashlib
import inspect
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

ROOM_BYTES = 4 << 20
"""The machine code of a few dozen functions."""


def compiled_by(numba: Any, function: FunctionT) -> FunctionT:
    """Return the same function, compiled on its first call; it lets other threads run.

    The machine code is kept on disk, where numba finds a folder that can be written: beside the
    source, or in the user's cache. Else every process compiles for itself, which takes seconds.

    Args:
        numba: The library.
        function: Of a module whose folder holds all that its compiled functions use.
    """
    # Numba asks whether a function's own file has changed, not those of the functions that it
    # calls. It names its files by this name.
    digest = _digest_of_folder(Path(inspect.getfile(function)).parent)
    function.__qualname__ += f"_{digest}"
    try:
        kept = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # there is no such folder
        return cast(FunctionT, numba.njit(nogil=True)(function))
    if not _has_room(kept.stats.cache_path):
        return cast(FunctionT, numba.njit(nogil=True)(function))
    return cast(FunctionT, kept)


@cache
def _digest_of_folder(folder: Path) -> str:
    """Return a short digest of the source files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


@cache
def _has_room(folder: str) -> bool:
    """Say whether files can be written there: a full disk would fail the call that compiles."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM_BYTES))
    except OSError:
        return False
    return True
