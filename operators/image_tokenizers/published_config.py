"""Read sizes from the configurations that models are published with."""

from collections.abc import Mapping, Sequence
from typing import Any

from operators.errors import SetupError

_MISSING = object()


class ConfigSection:
    """Part of a configuration; every mistake names the entry.

    Args:
        values: Its entries.
        where: Operator and checkpoint, for errors.
        path: Where it stands in the configuration, "" for the top.
    """

    def __init__(self, values: Mapping[str, Any], where: str, path: str) -> None:
        self._values, self._where, self._path = values, where, path

    def get(self, name: str, default: Any = _MISSING) -> Any:
        """Return an entry.

        Raises:
            SetupError: it is not there, and there is no default.
        """
        found = self._values.get(name)  # absent and null are the same in these files
        if found is not None:
            return found
        if default is _MISSING:
            raise SetupError(
                f"{self._where}: the configuration has no {self._path}{name}",
                hint="the checkpoint must be a model of this family",
            )
        return default

    def integer(self, name: str, default: Any = _MISSING) -> int:
        """Return an integer entry."""
        found = self.get(name, default)
        if isinstance(found, bool) or not isinstance(found, int):
            raise self._wrong(name, found, "an integer")
        return found

    def integers(self, name: str, default: Any = _MISSING) -> tuple[int, ...]:
        """Return a list of integers."""
        found = self.get(name, default)
        if not isinstance(found, Sequence) or not all(type(item) is int for item in found):
            raise self._wrong(name, found, "a list of integers")
        return tuple(found)

    def expect(self, name: str, *known: Any) -> Any:
        """Return an entry that has to be one of the given values; an absent one is the first."""
        found = self.get(name, known[0])
        if found not in known:
            raise self._wrong(name, found, " or ".join(repr(value) for value in known))
        return found

    def section(self, name: str, default: Any = _MISSING) -> "ConfigSection":
        """Return a part of it."""
        found = self.get(name, default)
        if not isinstance(found, Mapping):
            raise self._wrong(name, found, "an object")
        return ConfigSection(found, self._where, f"{self._path}{name}.")

    def _wrong(self, name: str, found: Any, expected: str) -> SetupError:
        return SetupError(f"{self._where}: {self._path}{name} is {found!r}, supported: {expected}")


def read_config(
    config: Mapping[str, Any], where: str, section: str = "", default: Any = _MISSING
) -> ConfigSection:
    """Return a configuration, or the section of it with the given name."""
    top = ConfigSection(config, where, "")
    return top.section(section, default) if section else top
