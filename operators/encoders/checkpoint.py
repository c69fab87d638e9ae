"""Find and read the files of a vision encoder, alone or as a part of a larger model."""

import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from operators.errors import SetupError
from operators.extras import import_extra
from operators.model_files import ModelFile, ModelFiles
from operators.tensor_files import SUFFIXES, open_tensors
from operators.weights import CONFIG_FILE, WEIGHT_FILE, Checkpoint

EXTRA = "vision"

_PICKLE = "pytorch_model.bin"
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")

_TOWER = re.compile(r"^(?:model\.)?(?:vision_tower|vision_model|image_encoder)\.")
"""In front of the names of a vision tower in a model that has other parts too."""

_INTERN_NAMES = (
    (r"^embeddings\.class_embedding$", "embeddings.cls_token"),
    (r"^embeddings\.position_embedding$", "embeddings.position_embeddings"),
    (r"^embeddings\.patch_embedding\.", "embeddings.patch_embeddings.projection."),
    (r"^encoder\.layers\.", "encoder.layer."),
    (r"\.ls(\d)$", r".lambda_\1"),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)
"""Names of InternViT's authors -> those of transformers."""

_INTERN_CONFIG = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm"}
_INTERN_KEPT = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("image_size", "patch_size", "hidden_act", "norm_type", "layer_norm_eps", "num_channels"),
)

_REMOTE = (
    "its code is part of the repository, and code from a repository is never run. Give weights in "
    "the format of transformers: OpenGVLab/InternViT-* and InternVL*, and nvidia/C-RADIOv4-* "
    "(model_type radio), can be read"
)

_TIMM = "timm:"
"""In front of the names of published models of timm."""


class EncoderCheckpoint:
    """A vision encoder on disk, at a URL or on the hub. Nothing is read before it is asked for.

    Args:
        weights: A folder, its URL, ``owner/name`` on the hub, or ``timm:name`` of a published
            model of timm, which is ``timm/name`` there.
        revision: Commit, tag or branch on the hub.
        files: How files are found.
        where: Who asks.

    Raises:
        SetupError: ``weights`` is none of these, or timm is named and is not installed.
    """

    def __init__(
        self, weights: str, *, revision: str | None, files: ModelFiles, where: str
    ) -> None:
        if weights.startswith(_TIMM):
            self._timm_library(where)
            weights = f"timm/{weights.removeprefix(_TIMM)}"
        if weights.endswith(SUFFIXES):
            raise SetupError(
                f"{where}: weights={weights!r} is a file",
                hint=f"give the folder, its URL or the hub id that holds {CONFIG_FILE} too",
            )
        self._weights, self._revision = weights, revision
        self._files, self._where = files, where
        self._whole = self._file(WEIGHT_FILE)

    def _file(self, name: str) -> Checkpoint:
        return Checkpoint(
            self._weights,
            revision=self._revision,
            files=self._files,
            where=self._where,
            extra=EXTRA,
            weight_file=name,
        )

    @property
    def is_pinned(self) -> bool:
        """True when other bytes are refused."""
        return self._whole.is_pinned

    @cached_property
    def _json(self) -> dict[str, Any]:
        found = self._read(CONFIG_FILE)
        if found is None:
            raise SetupError(
                f"{self._where}: {self._weights} has no {CONFIG_FILE}",
                hint="give a folder, URL or hub id in the format of transformers; names of timm "
                "end in what they were trained on: timm:vit_base_patch16_224.augreg_in21k",
            )
        return found

    @cached_property
    def config(self) -> Any:
        """The configuration of the vision part, as transformers' own class, or of timm.

        Raises:
            SetupError: there is none, or it is of a model that transformers does not have.
        """
        transformers = import_extra("transformers", extra=EXTRA, where=self._where)
        where, config = f"{self._where}: {self._weights}", self._json
        if self._is_intern:
            return _intern_config(config.get("vision_config", config), where)
        model_type = config.get("model_type")
        if self.is_timm:
            from operators.encoders.nn.timm_tower import TimmConfig

            return TimmConfig(config, where)
        if model_type not in transformers.CONFIG_MAPPING:
            if "auto_map" in config:
                raise SetupError(f"{where}: {_kind(config)}: {_REMOTE}")
            raise SetupError(
                f"{where}: {CONFIG_FILE} has model_type {model_type!r}, which transformers "
                f"{transformers.__version__} does not have",
                hint="give weights in the format of transformers, or update it",
            )
        try:
            found = transformers.CONFIG_MAPPING[model_type].from_dict(config)
        except Exception as error:  # validation raises errors of several libraries
            reason = " ".join(str(error).split())
            raise SetupError(
                f"{where}: {CONFIG_FILE} is not of a {model_type} ({reason})"
            ) from None
        return getattr(found, "vision_config", found)

    @property
    def is_timm(self) -> bool:
        """Whether it is a model as timm publishes it."""
        return "architecture" in self._json and self._json.get("model_type") is None

    @property
    def library(self) -> dict[str, str]:
        """Name and version of the library that has the model.

        Raises:
            SetupError: it is not installed.
        """
        if self.is_timm:
            return {"timm": self._timm_library(self._where).__version__}
        transformers = import_extra("transformers", extra=EXTRA, where=self._where)
        return {"transformers": transformers.__version__}

    @staticmethod
    def _timm_library(where: str) -> Any:
        import_extra("transformers", extra=EXTRA, where=where)
        from operators.encoders.nn.timm_tower import import_timm

        return import_timm(where)

    @property
    def processor(self) -> Mapping[str, Any] | None:
        """What prepares images: ``preprocessor_config.json``; None where there is none."""
        for name in _PROCESSORS:
            found = self._read(name)
            if found is not None:
                inner: Mapping[str, Any] = found.get("image_processor", found)
                return inner
        return None

    @cached_property
    def weight_files(self) -> tuple[str, ...]:
        """Names of the weight files: one, or the shards that hold the vision part.

        Raises:
            SetupError: there is none.
        """
        for name in (WEIGHT_FILE, _PICKLE):
            if self._identified(name):
                return (name,)
            index = self._read(f"{name}.index.json")
            if index is not None:
                places = index["weight_map"].items()
                of_tower = {file for stored, file in places if _TOWER.match(stored)}
                every = {file for _, file in places}
                return tuple(sorted(of_tower if self._is_part and of_tower else every))
        raise SetupError(
            f"{self._where}: {self._weights} has neither {WEIGHT_FILE} nor {_PICKLE}, nor shards",
            hint="give a folder, URL or hub id in the format of transformers",
        )

    def tensors(self) -> dict[str, Any]:
        """Read the vision part, by names that transformers knows.

        Raises:
            SetupError: a file is missing or not whole.
        """
        found: dict[str, Any] = {}
        is_part = self._is_part
        for name in self.weight_files:
            path = self._file(name).weight_path()
            with open_tensors(path, where=self._where, extra=EXTRA) as file:
                for stored in file.names():
                    inner = _TOWER.sub("", stored)
                    if not is_part or inner != stored:
                        found[inner if is_part else stored] = file.tensor(stored)
        return _intern_tensors(found) if self._is_intern else found

    def identity(self) -> dict[str, object]:
        """Return what pins the weights: file digests, and the commit for the hub.

        Raises:
            SetupError: a file is missing, or its place cannot be reached.
        """
        digests: dict[str, object] = {}
        found: dict[str, object] = {}
        for name in self.weight_files:
            found = dict(self._file(name).identity())
            of_file = found["sha256"]
            assert isinstance(of_file, dict)
            digests |= of_file
        return {**found, "sha256": digests}

    @property
    def _is_part(self) -> bool:
        """Whether the model has other parts than the vision tower."""
        return "vision_config" in self._json

    @property
    def _is_intern(self) -> bool:
        """Whether it is InternViT as its authors publish it."""
        vision = self._json.get("vision_config", self._json)
        return isinstance(vision, dict) and vision.get("model_type") == "intern_vit_6b"

    def _identified(self, name: str) -> bool:
        return self._files.identify(self._model_file(name)) is not None

    def _model_file(self, name: str) -> ModelFile:
        return ModelFile(self._files.kind_of(self._weights), self._weights, name, self._revision)

    def _read(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file, or None where there is none.

        Raises:
            SetupError: its place cannot be reached, or it holds something else.
        """
        try:
            file = self._files.fetch(self._model_file(name))
        except SetupError as error:
            message = f"{self._where}: {name} of {self._weights}: {error.message}"
            raise SetupError(message, hint=error.hint) from None
        if file is None:
            return None
        try:
            found = json.loads(file.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SetupError(f"{self._where}: {file.path}: not JSON: {error}") from None
        if not isinstance(found, dict):
            raise SetupError(
                f"{self._where}: {file.path}: {type(found).__name__}, expected an object"
            )
        return found


def _kind(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or [config.get("model_type")]
    return f"a {names[0]}"


def _intern_config(config: Mapping[str, Any], where: str) -> Any:
    transformers = import_extra("transformers", extra=EXTRA, where=where)
    options = {name: config[name] for name in _INTERN_KEPT if name in config}
    options |= {new: config[old] for old, new in _INTERN_CONFIG.items() if old in config}
    return transformers.CONFIG_MAPPING["internvl_vision"](**options)


def _intern_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return InternViT's tensors by transformers' names, queries, keys and values apart."""
    found = {}
    for stored, tensor in tensors.items():
        name = stored
        for pattern, new in _INTERN_NAMES:
            name = re.sub(pattern, new, name)
        if ".qkv." not in name:
            found[name] = tensor
            continue
        for part, values in zip("qkv", tensor.chunk(3), strict=True):
            found[name.replace(".qkv.", f".{part}_proj.")] = values
    return found
