"""Read tensors from the files that models are published in: safetensors, or pickles of torch."""

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from operators.errors import SetupError
from operators.extras import import_extra

SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
"""How the names of such files end. All but the first are pickles."""

_REFUSED = re.compile(r"GLOBAL (\S+)")


class TensorFile(Protocol):
    """The tensors of an open file; one is read when it is asked for."""

    def names(self) -> Sequence[str]:
        """Return the names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, without reading the tensor."""
        ...

    def tensor(self, name: str) -> Any:
        """Return a ``torch.Tensor`` on the CPU."""
        ...

    def metadata(self) -> Mapping[str, str]:
        """Return what else a safetensors file says; nothing for a pickle."""
        ...


@contextmanager
def open_tensors(
    path: Path, *, under: Sequence[str] = (), where: str, extra: str
) -> Iterator[TensorFile]:
    """Open a file of tensors. No code that a pickle names is ever run.

    Args:
        path: The file; its suffix tells the format.
        under: Keys under which a pickle may hold its tensors, the first that is there is taken.
            Without any of them it holds the tensors themselves.
        where: Who asks, for errors.
        extra: The extra of this project that installs safetensors.

    Raises:
        SetupError: the file is not whole, or a pickle that holds more than data.
    """
    if path.suffix != ".safetensors":
        yield _Pickle(_tensors_of(_unpickled(path, where), path, under, where))
        return
    safetensors = import_extra("safetensors", extra=extra, where=where)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield _Safetensors(file)
    except safetensors.SafetensorError as error:
        raise _broken(path, "safetensors", error, where) from None


class _Safetensors:
    def __init__(self, file: Any) -> None:
        self._file = file

    def names(self) -> Sequence[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def tensor(self, name: str) -> Any:
        return self._file.get_tensor(name)

    def metadata(self) -> Mapping[str, str]:
        return self._file.metadata() or {}


class _Pickle:
    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def tensor(self, name: str) -> Any:
        return self._tensors[name]

    def metadata(self) -> Mapping[str, str]:
        return {}


def _unpickled(path: Path, where: str) -> Any:
    import torch

    mapped = zipfile.is_zipfile(path)  # the format before torch 1.6 is read whole
    try:
        # Training scripts save their arguments beside the tensors; a Namespace only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged bytes raise anything
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise _broken(path, "torch", error, where) from None
        raise SetupError(
            f"{where}: {path}: holds {refused[1]}, expected tensors and plain values",
            hint="loading it could run code. If you trust the file, save its tensors alone "
            "(safetensors.torch.save_file, or torch.save) and give that file",
        ) from None


def _tensors_of(content: Any, path: Path, under: Sequence[str], where: str) -> Mapping[str, Any]:
    import torch

    found = content
    if isinstance(content, dict):
        found = next((content[key] for key in under if key in content), content)
    tensors = {}
    if isinstance(found, dict):
        tensors = {n: t for n, t in found.items() if isinstance(t, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else ""
        kind = f"a dict of {keys}" if keys else type(content).__name__
        place = f"tensors under {' or '.join(under)}, or at the top" if under else "tensors"
        raise SetupError(
            f"{where}: {path}: {kind}, expected {place}",
            hint="give the file that the model's authors published",
        )
    return tensors


def _broken(path: Path, what: str, error: Exception, where: str) -> SetupError:
    reason = "".join(str(error).strip().splitlines()[:1]) or type(error).__name__
    return SetupError(
        f"{where}: {path}: not a whole {what} file ({reason})", hint="fetch the file again"
    )
