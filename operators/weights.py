"""Load checkpoints (of a folder, a URL or the hub), refusing whatever does not fit."""

import ast
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from operators.errors import SetupError
from operators.model_files import FileIdentity, ModelFile, ModelFiles, file_at
from operators.tensor_files import SUFFIXES, TensorFile, open_tensors

CONFIG_FILE = "config.json"
WEIGHT_FILE = "model.safetensors"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHECKPOINT_WRAPPER = "_checkpoint_wrapped_module."


class Checkpoint:
    """A model's weights and, for most, its ``config.json``.

    Nothing is read or fetched before it is asked for.

    Args:
        weights: A folder, the URL of one, or ``owner/name`` on the hub. A folder of that name wins.
            Or the path or URL of the weight file itself, by its suffix (``SUFFIXES``).
        revision: Commit, tag or branch on the hub; None is its default branch.
        files: How files are found: the operator's ``model_files``.
        where: Who asks, for error messages.
        extra: The extra of this project that installs what is needed.
        weight_file: Path of the weights in the folder or repository.
        config_file: The configuration beside the weights; None when the model has none.
        under: Where a pickle may hold the tensors, see ``open_tensors``.

    Raises:
        SetupError: ``weights`` is none of these, or a revision was given without a hub id.
    """

    def __init__(
        self,
        weights: str,
        *,
        revision: str | None,
        files: ModelFiles,
        where: str,
        extra: str,
        weight_file: str = WEIGHT_FILE,
        config_file: str | None = CONFIG_FILE,
        under: Sequence[str] = (),
    ) -> None:
        self.weights = weights
        self.revision = revision
        self._files = files
        self._where, self._extra = where, extra
        self._config_file, self._under = config_file, under
        self._weight_file = weight_file
        self._file = ModelFile(files.kind_of(weights), weights, weight_file, revision)
        self._is_file = self._file.kind != "disk" and weights.endswith(SUFFIXES)
        if self._is_file:
            self._file = replace(file_at(weights, files), revision=revision)
        elif self._file.kind == "hub" and not _HUB_ID.fullmatch(weights):
            raise SetupError(
                f"{where}: weights={weights!r} is neither a folder nor a hub id",
                hint=f"give owner/name, or a folder (or its URL) with {self._all_files}",
            )
        if self._file.kind != "hub" and revision is not None:
            on_disk = "a file" if self._is_file else "a folder"
            what = "a URL" if self._file.kind == "url" else on_disk
            raise SetupError(
                f"{where}: weights={weights!r} is {what}, but revision={revision!r} is given",
                hint=f"remove the revision: {what} is identified by the digests of its files",
            )

    @property
    def is_pinned(self) -> bool:
        """True when other bytes are refused: a folder, a URL, or a full commit on the hub."""
        return self._file.kind != "hub" or bool(self.revision and _COMMIT.fullmatch(self.revision))

    def config(self) -> dict[str, Any]:
        """Return the model's configuration.

        It is ``config.json``, or, where there is none, the metadata of the weight file, whose
        values are Python literals (how the hub's model mixin keeps constructor arguments).

        Raises:
            SetupError: neither is there, or its place cannot be reached.
        """
        path = self._fetch(self._beside(self._config_file)) if self._config_file else None
        if path is None:
            return self._config_of_metadata()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SetupError(f"{self._where}: {path}: not JSON: {error}") from None
        if not isinstance(found, dict):
            raise SetupError(f"{self._where}: {path}: {type(found).__name__}, expected an object")
        return found

    def weight_path(self) -> Path:
        """Return the weight file on this machine's disk, fetching it first if need be.

        Raises:
            SetupError: there is none, or its place cannot be reached.
        """
        path = self._fetch(self._file)
        if path is None:
            raise self._missing()
        return path

    def names(self) -> tuple[str, ...]:
        """Return the names of the stored tensors, sorted.

        Raises:
            SetupError: there is no weight file, or it is not whole.
        """
        with self._open(self.weight_path()) as file:
            return tuple(sorted(file.names()))

    def identity(self) -> dict[str, object]:
        """Return what pins the weights: file digests, and the commit for the hub.

        With a network the hub says both and nothing is fetched. A file has one name here, whatever
        it is called where it lies.

        Raises:
            SetupError: a file is missing, or its place cannot be reached.
        """
        weights = self._identify(self._file)
        if weights is None:
            raise self._missing()
        digests = {self._weight_file: weights.sha256}
        if self._file.kind == "hub":
            return {"checkpoint": self.weights, "revision": weights.commit, "sha256": digests}
        config = self._identify(self._beside(self._config_file)) if self._config_file else None
        if self._config_file and config is not None:
            digests[self._config_file] = config.sha256
        return {"sha256": digests}

    def load_into(
        self,
        module: Any,
        *,
        other_parts: Sequence[str] = (),
        training_only: Sequence[str] = (),
        stored_name: Callable[[str], str] = str,
        ema_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Fill every parameter of ``module`` with the stored tensor of the same name.

        Tensors are converted to the parameter's dtype. The name component that torch's activation
        checkpointing adds is ignored. ``module`` may have been built on the meta device.

        Args:
            module: A ``torch.nn.Module``.
            other_parts: Name prefixes of parts that are not loaded.
            training_only: Name prefixes of parts that play no role after training.
            stored_name: What the file calls a parameter of ``module``; the other two arguments,
                and errors, say names as the file does.
            ema_prefix: Where the file has tensors of this prefix, they are a moving average of the
                others, called the same but without dots, and are taken in their place.

        Returns:
            Names of the ``training_only`` tensors that are there, sorted.

        Raises:
            SetupError: tensors are missing, left over, or of another shape; or the file is not
                whole, or a pickle that holds more than data.
        """
        path = self.weight_path()
        wanted = {stored_name(name): value for name, value in module.state_dict().items()}
        own = {stored_name(name): name for name in module.state_dict()}
        with self._open(path) as file:
            stored = {name.replace(_CHECKPOINT_WRAPPER, ""): name for name in file.names()}
            averages = [name for name in stored if ema_prefix and name.startswith(ema_prefix)]
            for name in set(wanted) & set(stored) if averages else ():
                average = f"{ema_prefix}{name.replace('.', '')}"
                stored[name] = stored.get(average, stored[name])  # buffers have none
            extra = sorted(set(stored) - set(wanted) - set(averages))
            unknown = [name for name in extra if not name.startswith(tuple(other_parts))]
            unused = [name for name in unknown if name.startswith(tuple(training_only))]
            shapes = {
                name: (file.shape(stored[name]), tuple(value.shape))
                for name, value in wanted.items()
                if name in stored
            }
            self._check(
                path,
                missing=sorted(set(wanted) - set(stored)),
                unexpected=[name for name in unknown if name not in set(unused)],
                misshapen=[
                    f"{name} {list(found)} (expected {list(expected)})"
                    for name, (found, expected) in sorted(shapes.items())
                    if found != expected
                ],
            )
            tensors = {
                own[name]: file.tensor(stored[name]).to(value.dtype)
                for name, value in wanted.items()
            }
        module.load_state_dict(tensors, assign=True)
        return tuple(unused)

    def _check(
        self, path: Path, *, missing: list[str], unexpected: list[str], misshapen: list[str]
    ) -> None:
        found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
        parts = [f"{len(names)} {what}: {_first(names)}" for what, names in found.items() if names]
        if parts:
            raise SetupError(
                f"{self._where}: {path}: tensors {'; '.join(parts)}",
                hint=f"{self._all_files} must be of one model of this family",
            )

    def _config_of_metadata(self) -> dict[str, Any]:
        with self._open(self.weight_path()) as file:
            metadata = file.metadata()
        found = {}
        for name, text in metadata.items():
            try:
                found[name] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                continue  # plain text, such as {"format": "pt"}
        if not found:
            name = self._config_file or CONFIG_FILE
            raise SetupError(
                f"{self._where}: {self.weights} has no {name}, and {self._file.name} has no "
                "configuration in its metadata",
                hint=f"put the model's {name} beside {self._file.name}",
            )
        return found

    @property
    def _all_files(self) -> str:
        return " and ".join(filter(None, (self._config_file, self._weight_file)))

    def _open(self, path: Path) -> AbstractContextManager[TensorFile]:
        return open_tensors(path, under=self._under, where=self._where, extra=self._extra)

    def _missing(self) -> SetupError:
        if self._is_file:
            return SetupError(
                f"{self._where}: weights={self.weights!r}: no such file",
                hint="give the path or URL of the weight file, or a hub id",
            )
        return SetupError(
            f"{self._where}: {self.weights} has no {self._weight_file}",
            hint=f"give a folder, URL or hub id that holds {self._weight_file}",
        )

    def _beside(self, name: str) -> ModelFile:
        return replace(self._file, name=name)

    def _fetch(self, file: ModelFile) -> Path | None:
        with self._named(file):
            found = self._files.fetch(file)
        return None if found is None else found.path

    def _identify(self, file: ModelFile) -> FileIdentity | None:
        with self._named(file):
            return self._files.identify(file)

    @contextmanager
    def _named(self, file: ModelFile) -> Iterator[None]:
        """Say in errors who asks, and for what."""
        try:
            yield
        except SetupError as error:
            at = f" at revision {self.revision}" if self.revision else ""
            what = "" if file.kind == "url" else f"{file.name} of {self.weights}{at}: "
            raise SetupError(f"{self._where}: {what}{error.message}", hint=error.hint) from error


def _first(names: Sequence[str], limit: int = 4) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
