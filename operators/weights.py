"""Load checkpoints (of a folder, a URL or the hub), refusing whatever does not fit."""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from operators.errors import SetupError
from operators.extras import import_extra
from operators.model_files import FileIdentity, ModelFile, ModelFiles

CONFIG_FILE = "config.json"
WEIGHT_FILE = "model.safetensors"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHECKPOINT_WRAPPER = "_checkpoint_wrapped_module."


class Checkpoint:
    """A model's ``config.json`` and ``model.safetensors``.

    Nothing is read or fetched before it is asked for.

    Args:
        weights: A folder, the URL of one, or ``owner/name`` on the hub. A folder of that name wins.
        revision: Commit, tag or branch on the hub; None is its default branch.
        files: How files are found: the operator's ``model_files``.
        where: Who asks, for error messages.
        extra: The extra of this project that installs what is needed.

    Raises:
        SetupError: ``weights`` is none of these, or a revision was given with a folder or URL.
    """

    def __init__(
        self, weights: str, *, revision: str | None, files: ModelFiles, where: str, extra: str
    ) -> None:
        self.weights = weights
        self.revision = revision
        self._files = files
        self._where, self._extra = where, extra
        self._kind = files.kind_of(weights)
        if self._kind == "hub" and not _HUB_ID.fullmatch(weights):
            raise SetupError(
                f"{where}: weights={weights!r} is neither a folder nor a hub id",
                hint=f"give owner/name, or a folder (or its URL) with {CONFIG_FILE} and "
                f"{WEIGHT_FILE}",
            )
        if self._kind != "hub" and revision is not None:
            what = "a folder" if self._kind == "disk" else "a URL"
            raise SetupError(
                f"{where}: weights={weights!r} is {what}, but revision={revision!r} is given",
                hint=f"remove the revision: {what} is identified by the digests of its files",
            )

    @property
    def is_pinned(self) -> bool:
        """True when other bytes are refused: a folder, a URL, or a full commit on the hub."""
        return self._kind != "hub" or bool(self.revision and _COMMIT.fullmatch(self.revision))

    def config(self) -> dict[str, Any]:
        """Return the model's configuration.

        It is ``config.json``, or, where there is none, the metadata of the weight file, whose
        values are Python literals (how the hub's model mixin keeps constructor arguments).

        Raises:
            SetupError: neither is there, or its place cannot be reached.
        """
        path = self._fetch(CONFIG_FILE)
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
        path = self._fetch(WEIGHT_FILE)
        if path is None:
            raise self._missing()
        return path

    def identity(self) -> dict[str, object]:
        """Return what pins the weights: file digests, and the commit for the hub.

        With a network the hub says both and nothing is fetched.

        Raises:
            SetupError: a file is missing, or its place cannot be reached.
        """
        weights = self._identify(WEIGHT_FILE)
        if weights is None:
            raise self._missing()
        digests = {WEIGHT_FILE: weights.sha256}
        if self._kind == "hub":
            return {"checkpoint": self.weights, "revision": weights.commit, "sha256": digests}
        config = self._identify(CONFIG_FILE)
        return {"sha256": digests if config is None else {**digests, CONFIG_FILE: config.sha256}}

    def load_into(
        self, module: Any, *, other_parts: Sequence[str] = (), training_only: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Fill every parameter of ``module`` with the stored tensor of the same name.

        Tensors are converted to the parameter's dtype. The name component that torch's activation
        checkpointing adds is ignored. ``module`` may have been built on the meta device.

        Args:
            module: A ``torch.nn.Module``.
            other_parts: Name prefixes of parts that are not loaded.
            training_only: Name prefixes of parts that play no role after training.

        Returns:
            Names of the ``training_only`` tensors that are there, sorted.

        Raises:
            SetupError: tensors are missing, left over, or of another shape; or the file is not a
                whole safetensors file.
        """
        safetensors = import_extra("safetensors", extra=self._extra, where=self._where)
        path = self.weight_path()
        wanted = module.state_dict()
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                stored = {name.replace(_CHECKPOINT_WRAPPER, ""): name for name in file.keys()}  # noqa: SIM118 - not a mapping
                extra = sorted(set(stored) - set(wanted))
                unknown = [name for name in extra if not name.startswith(tuple(other_parts))]
                unused = [name for name in unknown if name.startswith(tuple(training_only))]
                shapes = {
                    name: (tuple(file.get_slice(stored[name]).get_shape()), tuple(value.shape))
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
                    name: file.get_tensor(stored[name]).to(value.dtype)
                    for name, value in wanted.items()
                }
        except safetensors.SafetensorError as error:
            raise self._broken(path, error) from None
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
                hint=f"{CONFIG_FILE} and {WEIGHT_FILE} must be of one model of this family",
            )

    def _config_of_metadata(self) -> dict[str, Any]:
        safetensors = import_extra("safetensors", extra=self._extra, where=self._where)
        path = self.weight_path()
        try:
            with safetensors.safe_open(path, framework="np") as file:
                metadata: dict[str, str] = file.metadata() or {}
        except safetensors.SafetensorError as error:
            raise self._broken(path, error) from None
        found = {}
        for name, text in metadata.items():
            try:
                found[name] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                continue  # plain text, such as {"format": "pt"}
        if not found:
            raise SetupError(
                f"{self._where}: {self.weights} has no {CONFIG_FILE}, and {WEIGHT_FILE} has no "
                "configuration in its metadata",
                hint=f"put the model's {CONFIG_FILE} beside {WEIGHT_FILE}",
            )
        return found

    def _broken(self, path: Path, error: Exception) -> SetupError:
        return SetupError(
            f"{self._where}: {path}: not a whole safetensors file ({error})",
            hint="fetch the file again",
        )

    def _missing(self) -> SetupError:
        return SetupError(
            f"{self._where}: {self.weights} has no {WEIGHT_FILE}",
            hint=f"give a folder, URL or hub id that holds {WEIGHT_FILE}",
        )

    def _fetch(self, name: str) -> Path | None:
        with self._named(name):
            found = self._files.fetch(self._file(name))
        return None if found is None else found.path

    def _identify(self, name: str) -> FileIdentity | None:
        with self._named(name):
            return self._files.identify(self._file(name))

    def _file(self, name: str) -> ModelFile:
        return ModelFile(self._kind, self.weights, name, self.revision)

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Say in errors who asks, and for what."""
        try:
            yield
        except SetupError as error:
            at = f" at revision {self.revision}" if self.revision else ""
            what = "" if self._kind == "url" else f"{name} of {self.weights}{at}: "
            raise SetupError(f"{self._where}: {what}{error.message}", hint=error.hint) from error


def _first(names: Sequence[str], limit: int = 4) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
