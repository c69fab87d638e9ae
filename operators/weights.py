"""Find checkpoints (a local folder or a hub id) and load them, refusing whatever does not fit."""

import ast
import hashlib
import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from operators.errors import SetupError

CONFIG_FILE = "config.json"
WEIGHT_FILE = "model.safetensors"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHECKPOINT_WRAPPER = "_checkpoint_wrapped_module."


class Checkpoint:
    """A model's ``config.json`` and ``model.safetensors``, in a folder or on the hub.

    Nothing is read or fetched before it is asked for; files of the hub are kept in the hub's own
    cache, which is used alone when there is no network.

    Args:
        weights: A folder, or ``owner/name`` on the hub. A folder of that name wins.
        revision: Commit, tag or branch on the hub; None is its default branch.
        where: Who asks, for error messages.
        extra: The extra of this project that installs what is needed.

    Raises:
        SetupError: ``weights`` is neither, or a revision was given with a folder.
    """

    def __init__(
        self, weights: str, *, revision: str | None = None, where: str, extra: str
    ) -> None:
        self.weights = weights
        self.revision = revision
        self._where, self._extra = where, extra
        self._folder = Path(weights) if Path(weights).is_dir() else None
        if self._folder is None and not _HUB_ID.fullmatch(weights):
            raise SetupError(
                f"{where}: weights={weights!r} is neither a folder nor a hub id",
                hint=f"give owner/name, or a folder with {CONFIG_FILE} and {WEIGHT_FILE}",
            )
        if self._folder is not None and revision is not None:
            raise SetupError(
                f"{where}: weights={weights!r} is a folder, but revision={revision!r} is given",
                hint="remove the revision: a folder is identified by the digests of its files",
            )

    @property
    def is_local(self) -> bool:
        """True for a folder, False for the hub."""
        return self._folder is not None

    @property
    def is_pinned(self) -> bool:
        """True when the same bytes are meant everywhere and always: a folder, or a full commit."""
        return self.is_local or bool(self.revision and _COMMIT.fullmatch(self.revision))

    def config(self) -> dict[str, Any]:
        """Return the model's configuration.

        It is ``config.json``, or, where there is none, the metadata of the weight file, whose
        values are Python literals (how the hub's model mixin keeps constructor arguments).

        Raises:
            SetupError: neither is there, or the hub does not answer.
        """
        path = self._find(CONFIG_FILE)
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
            SetupError: there is none, or the hub does not answer.
        """
        path = self._find(WEIGHT_FILE)
        if path is None:
            raise SetupError(
                f"{self._where}: {self.weights} has no {WEIGHT_FILE}",
                hint=f"give a folder or a hub id that holds {WEIGHT_FILE}",
            )
        return path

    def identity(self) -> dict[str, object]:
        """Return what pins the weights: file digests, and the commit for the hub.

        With a network the hub says both and nothing is fetched; without one the cached file is
        hashed.

        Raises:
            SetupError: a file is missing, or the hub does not answer and nothing is cached.
        """
        if self._folder is not None:
            digests = {WEIGHT_FILE: sha256_of(self.weight_path())}
            if (self._folder / CONFIG_FILE).is_file():
                digests[CONFIG_FILE] = sha256_of(self._folder / CONFIG_FILE)
            return {"sha256": digests}
        commit, digest = self._ask_hub()
        if not (commit and digest):
            path = self.weight_path()
            # <cache>/snapshots/<commit>/model.safetensors
            commit, digest = path.parent.name, sha256_of(path)
        return {"checkpoint": self.weights, "revision": commit, "sha256": {WEIGHT_FILE: digest}}

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

    def _find(self, name: str) -> Path | None:
        if self._folder is not None:
            path = self._folder / name
            return path if path.is_file() else None
        hub = import_extra("huggingface_hub", extra=self._extra, where=self._where)
        try:
            return Path(hub.hf_hub_download(self.weights, name, revision=self.revision))
        except hub.errors.RemoteEntryNotFoundError:
            return None
        except Exception as error:  # the hub's client raises errors of several libraries
            at = f" at revision {self.revision}" if self.revision else ""
            reason = str(error).strip().splitlines()[:1]
            raise SetupError(
                f"{self._where}: {name} of {self.weights}{at} cannot be fetched "
                f"({type(error).__name__}: {''.join(reason)})",
                hint="check the id, the revision and the network, log in with `hf auth login` for "
                "a gated model, or download the folder elsewhere and give its path as `weights`",
            ) from error

    def _ask_hub(self) -> tuple[str | None, str | None]:
        hub = import_extra("huggingface_hub", extra=self._extra, where=self._where)
        url = hub.hf_hub_url(self.weights, WEIGHT_FILE, revision=self.revision)
        try:
            found = hub.get_hf_file_metadata(url)
        except Exception:  # of several libraries; the cached file answers instead, or says why not
            return None, None
        etag = found.etag or ""  # for large files the hub's etag is the SHA-256
        return found.commit_hash, etag if _SHA256.fullmatch(etag) else None


def import_extra(module: str, *, extra: str, where: str) -> Any:
    """Import a module that an extra of this project installs.

    Raises:
        SetupError: it is not installed; says which extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SetupError(
            f"{where}: {module} cannot be imported ({error})",
            hint=f"pip install 'tokenmill[{extra}]'",
        ) from None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first(names: Sequence[str], limit: int = 4) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
