"""Find operators by name.

An operator named ``flextok`` lives in a module named ``flextok`` anywhere below ``operators``:
adding the file is all there is to registering it. Packages outside the project announce theirs
as entry points of the group ``tokenmill.operators`` (name -> class).
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import operators
from operators.base import Filter, Operator, OperatorConfig, Step
from operators.errors import ContractError
from operators.model_files import ModelFiles

_NOT_OPERATORS = {
    *("base", "columns", "errors", "extras", "model_files", "registry", "tensor_files", "testing")
}


def names() -> list[str]:
    """Return the names of all operators and filters, sorted."""
    return sorted(all_classes())


def get(name: str) -> type[Step]:
    """Return the class of an operator or filter.

    Raises:
        ContractError: there is none of that name; names the nearest one.
    """
    for module_name in _modules().get(name, ()):
        found = _classes_in(module_name).get(name)
        if found is not None:
            return found
    found = all_classes().get(name)
    if found is None:
        near = difflib.get_close_matches(name, names(), n=1)
        nearest = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names())}"
        raise ContractError(f"no operator is named {name!r}", hint=nearest)
    return found


def build(config: OperatorConfig, model_files: ModelFiles | None = None) -> Step:
    """Build the operator that a config describes.

    Args:
        config: The config.
        model_files: Where it asks for model files; None leaves it to itself.
    """
    cls: Any = get(config.name)
    step: Step = cls(config)
    if model_files is not None:
        step.model_files = model_files
    return step


@cache
def all_classes() -> Mapping[str, type[Step]]:
    """Import every operator module and return name -> class."""
    found: dict[str, type[Step]] = {}
    for module_names in _modules().values():
        for module_name in module_names:
            found.update(_classes_in(module_name))
    for entry in entry_points(group="tokenmill.operators"):
        found[entry.name] = entry.load()
    return found


@cache
def _modules() -> Mapping[str, tuple[str, ...]]:
    by_stem: dict[str, tuple[str, ...]] = {}
    for info in pkgutil.walk_packages(operators.__path__, "operators."):
        stem = info.name.rsplit(".", 1)[1]
        # Packages of these names hold nets: they import torch, which a listing must not cost.
        if info.ispkg or stem in _NOT_OPERATORS or {"nn", "quantize"} & set(info.name.split(".")):
            continue
        by_stem[stem] = (*by_stem.get(stem, ()), info.name)
    return by_stem


@cache
def _classes_in(module_name: str) -> Mapping[str, type[Step]]:
    module = importlib.import_module(module_name)
    found: dict[str, type[Step]] = {}
    members: list[tuple[str, Any]] = inspect.getmembers(module, inspect.isclass)
    for _, cls in members:
        is_step = issubclass(cls, Operator | Filter) and cls.__module__ == module_name
        if is_step and not inspect.isabstract(cls) and hasattr(cls, "Config"):
            found[cls.Config.model_fields["name"].default] = cls
    return found
