"""Find operators and trainers of tokenizers by name.

An operator or a trainer named ``flextok`` lives in a module named ``flextok`` anywhere below
``operators``: adding the file is all there is to registering it. Packages outside the project
announce theirs as entry points of the groups ``tokenmill.operators`` and ``tokenmill.trainers``
(name -> class).
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
from operators.text.training import TokenizerTrainer

_NOT_OPERATORS = {
    *("base", "columns", "errors", "extras", "model_files", "registry", "tensor_files", "testing"),
    "training",
}
_LIBRARIES = {"algorithms", "backends", "nn", "quantize"}
"""Packages that hold no operators. Nets import torch, which a listing must not cost."""


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


def trainer(name: str) -> type[TokenizerTrainer[Any]]:
    """Return the class of a trainer.

    Raises:
        ContractError: there is none of that name; names the nearest one.
    """
    found = trainers().get(name)
    if found is None:
        near = difflib.get_close_matches(name, trainers(), n=1)
        nearest = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(trainers())}"
        raise ContractError(f"no trainer is named {name!r}", hint=nearest)
    return found


@cache
def trainers() -> Mapping[str, type[TokenizerTrainer[Any]]]:
    """Import every module that may hold one, and return name -> class, sorted by name."""
    found: dict[str, type[TokenizerTrainer[Any]]] = {}
    for module_names in _modules().values():
        for module_name in module_names:
            for cls in _own_classes(module_name):
                if issubclass(cls, TokenizerTrainer):
                    found[cls.Config.model_fields["name"].default] = cls
    for entry in entry_points(group="tokenmill.trainers"):
        found[entry.name] = entry.load()
    return dict(sorted(found.items()))


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
        if info.ispkg or stem in _NOT_OPERATORS or _LIBRARIES & set(info.name.split(".")):
            continue
        by_stem[stem] = (*by_stem.get(stem, ()), info.name)
    return by_stem


@cache
def _classes_in(module_name: str) -> Mapping[str, type[Step]]:
    return {
        cls.Config.model_fields["name"].default: cls
        for cls in _own_classes(module_name)
        if issubclass(cls, Operator | Filter)
    }


def _own_classes(module_name: str) -> list[Any]:
    """Return the classes that a module defines and that have a ``Config``."""
    members = inspect.getmembers(importlib.import_module(module_name), inspect.isclass)
    return [
        cls
        for _, cls in members
        if cls.__module__ == module_name and not inspect.isabstract(cls) and hasattr(cls, "Config")
    ]
