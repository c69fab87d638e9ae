"""Packages that only some operators need."""

import importlib
from typing import Any

from operators.errors import SetupError


def import_extra(module: str, *, extra: str, where: str | None = None) -> Any:
    """Import a module that an extra of this project installs.

    Args:
        module: Its name.
        extra: The extra that installs it.
        where: Who asks, for the error.

    Raises:
        SetupError: it is not installed; says which extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SetupError(
            f"{f'{where}: ' if where else ''}{module} cannot be imported ({error})",
            hint=f"pip install 'tokenmill[{extra}]'",
        ) from None
