"""What benchmarks need to run the libraries that they compare with."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def stand_in_torchvision() -> None:
    """Let packages import torchvision, of which text needs nothing, where it is not installed."""
    try:
        import torchvision  # noqa: F401
    except ImportError:

        class StandIn(ModuleType):
            __path__ = []  # noqa: RUF012 - a package has one

            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return type(name, (), {})

        parts = ("", ".io", ".datasets", ".transforms", ".transforms.functional")
        for name in [f"torchvision{part}" for part in parts]:
            sys.modules[name] = StandIn(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
