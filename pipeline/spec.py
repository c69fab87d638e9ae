"""Job files: YAML to a validated ``JobSpec``, with the line and field of every mistake.

A job has two halves. The recipe (source, operators, batch size, shards) changes bytes; the rest
(output, storage, run) does not. ``${NAME}`` and ``${NAME:-default}`` are replaced in URLs and
storage options only, so that nothing in the environment can change bytes.
"""

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedBase
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError

from operators import registry
from operators.base import OperatorConfig
from pipeline.errors import ContractError, SpecError
from pipeline.sources import SourceConfig

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardsSpec(_Model):
    """How token shards are written. Part of the recipe."""

    fields: Annotated[list[str], Field(min_length=1, description="Fields to write, in this order.")]
    format: Annotated[Literal["arrow"], Field(description="File format.")] = "arrow"
    compression: Annotated[
        Literal["none", "zstd"],
        Field(description="none can be memory-mapped and is fastest to read."),
    ] = "none"
    shard_bytes: Annotated[
        int, Field(ge=1 << 20, description="A partition's rows go to a new shard at this size.")
    ] = 1 << 30


class RunSpec(_Model):
    """How the job is run. Changes no byte of the output."""

    workers: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1)],
        Field(description="Worker processes; auto is one per core, or one per GPU."),
    ] = "auto"
    cpu_threads: Annotated[
        int, Field(ge=1, description="Threads per CPU stage of a worker (image decoding).")
    ] = 1
    chunk_size: Annotated[
        int, Field(ge=1, description="Samples that one CPU task takes at a time.")
    ] = 32
    max_attempts: Annotated[
        int, Field(ge=1, description="Attempts at a partition whose worker or storage fails.")
    ] = 3
    max_bad_samples: Annotated[
        Fraction | Count,
        Field(
            description="Quarantined samples allowed: a count, or a share below 1 of the input "
            "(judged from 1,000 samples on, and at the end)."
        ),
    ] = 0.01
    keep_bad_bytes: Annotated[
        bool, Field(description="Keep the original fields of quarantined samples.")
    ] = False


class JobSpec(_Model):
    """A whole job, validated. ``load_job`` makes one from a file."""

    name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the data set.")
    ]
    source: Annotated[SourceConfig, Field(description="Where samples come from.")]
    operators: Annotated[
        list[OperatorConfig],
        Field(min_length=1, description="What is done with every sample, in order."),
    ]
    batch_size: Annotated[
        int, Field(ge=1, description="Samples per call of a device operator.")
    ] = 64
    shards: Annotated[ShardsSpec, Field(description="What is written.")]
    output: Annotated[str, Field(description="Output folder: a path or URL.")]
    storage: Annotated[
        dict[str, dict[str, Any]],
        Field(description="Protocol (s3, hf, https) -> options of its fsspec file system."),
    ] = {}
    run: Annotated[RunSpec, Field(description="How the job is run.")] = RunSpec()
    limit: Annotated[int | None, Field(ge=1, description="Stop after this many input samples.")] = (
        None
    )

    def recipe(self) -> dict[str, Any]:
        """Return the half that changes bytes, as JSON values; URLs as written in the job."""
        return {
            "name": self.name,
            "source": self.source.model_dump(mode="json"),
            "operators": [config.model_dump(mode="json") for config in self.operators],
            "batch_size": self.batch_size,
            "shards": self.shards.model_dump(mode="json"),
            "limit": self.limit,
        }

    def source_urls(self) -> list[str]:
        """Return the source URLs with environment variables replaced."""
        urls = [self.source.urls] if isinstance(self.source.urls, str) else self.source.urls
        return [expand_env(url, "source.urls") for url in urls]

    def storage_options(self) -> dict[str, dict[str, Any]]:
        """Return the storage options with environment variables replaced."""

        def expand(value: Any, where: str) -> Any:
            if isinstance(value, Mapping):
                return {k: expand(v, f"{where}.{k}") for k, v in value.items()}
            return expand_env(value, where) if isinstance(value, str) else value

        expanded: dict[str, dict[str, Any]] = expand(self.storage, "storage")
        return expanded

    def output_uri(self) -> str:
        """Return the output folder with environment variables replaced."""
        return expand_env(self.output, "output").rstrip("/")


def load_job(path: Path, overrides: Mapping[str, Any] | None = None) -> JobSpec:
    """Read and validate a job file.

    Args:
        path: The YAML file.
        overrides: Dotted field -> value, from the command line (``run.workers``).

    Raises:
        SpecError: each mistake as ``file:line: field: reason``, with the nearest allowed name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SpecError(f"{path}: {reason}", hint="give the path of a job file") from None
    return parse_job(text, str(path), overrides)


def parse_job(text: str, name: str, overrides: Mapping[str, Any] | None = None) -> JobSpec:
    """Validate the text of a job file; ``name`` stands in the messages. See ``load_job``."""
    tree = _parse_yaml(text, name)
    raw = _plain(tree)
    for field, value in (overrides or {}).items():
        *parents, last = field.split(".")
        target = raw
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    mistakes = _Mistakes(name, tree)
    mistakes.forbid_env(raw)
    operators = _parse_operators(raw.get("operators"), mistakes)
    try:
        # The operators are validated one by one above; a stand-in keeps the rest checkable.
        base = _JOB.validate_python({**raw, "operators": [_STAND_IN]} if operators else raw)
    except ValidationError as error:
        mistakes.add_all(error, (), JobSpec)
    mistakes.raise_if_any()
    job: JobSpec = base.model_copy(update={"operators": operators})
    return job


def job_from_recipe(recipe: Mapping[str, Any]) -> JobSpec:
    """Return a job that makes the same bytes as the one a recipe was taken from.

    Output, storage and run settings are not part of a recipe; they are the defaults.

    Raises:
        SpecError: the recipe names an operator or setting that is not known here.
    """
    return parse_job(json.dumps({**recipe, "output": "."}), "recipe")


def job_schema() -> dict[str, Any]:
    """Return the JSON schema of job files, with every operator that is installed."""
    schema = JobSpec.model_json_schema()
    definitions = schema["$defs"]
    definitions.pop("OperatorConfig", None)
    choices = []
    for operator_name in registry.names():
        config = registry.get(operator_name).Config
        part = config.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(part.pop("$defs", {}))
        part["required"] = sorted({"name", *part.get("required", [])})
        definitions[config.__name__] = part
        choices.append({"$ref": f"#/$defs/{config.__name__}"})
    schema["properties"]["operators"]["items"] = {"oneOf": choices}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Tokenmill job"
    return schema


def schema_json() -> str:
    """Return the text of ``jobs/job.schema.json``."""
    return json.dumps(job_schema(), indent=2, sort_keys=True) + "\n"


_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def expand_env(text: str, where: str) -> str:
    """Replace ``${NAME}`` and ``${NAME:-default}``.

    Raises:
        SpecError: a variable is not set and has no default.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if found is None:
            raise SpecError(
                f"{where}: environment variable {match[1]} is not set",
                hint=f"set it, or write ${{{match[1]}:-default}}",
            )
        return found

    return _ENV.sub(value, text)


_JOB: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)
_STAND_IN = OperatorConfig(name="stand_in")


def _parse_yaml(text: str, name: str) -> Any:
    yaml = YAML(typ="rt", pure=True)
    try:
        tree = yaml.load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        key = re.search(r'duplicate key "([^"]*)"', str(error.problem))
        field = key[1] if key else "?"
        raise SpecError(f"{name}:{line}: {field}: the key stands twice", hint="keep one") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SpecError(f"{name}:{line}: not YAML: {error.problem}") from None
    if not isinstance(tree, dict):
        raise SpecError(
            f"{name}:1: expected a mapping with name, source, operators, shards, output"
        )
    return tree


def _plain(node: Any) -> Any:
    """Return ruamel's round-trip nodes as plain values."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _parse_operators(raw: Any, mistakes: "_Mistakes") -> list[OperatorConfig]:
    if not isinstance(raw, list) or not raw:
        return []  # the job model says what is wrong with it
    configs = []
    for i, item in enumerate(raw):
        if not isinstance(item, dict) or "name" not in item:
            mistakes.add(("operators", i), "expected a mapping with `name: OPERATOR`")
            continue
        try:
            model = registry.get(str(item["name"])).Config
        except ContractError as error:
            mistakes.add(("operators", i, "name"), f"{error.message}; {error.hint}")
            continue
        try:
            configs.append(model.model_validate(item))
        except ValidationError as error:
            mistakes.add_all(error, ("operators", i), model)
    return configs


class _Mistakes:
    """Collects what is wrong with a job, each with its line."""

    def __init__(self, name: str, tree: Any) -> None:
        self._name, self._tree = name, tree
        self._found: list[tuple[int, str]] = []

    def add(self, location: Sequence[str | int], reason: str) -> None:
        line = _line_of(self._tree, location)
        self._found.append((line, f"{self._name}:{line}: {_dotted(location)}: {reason}"))

    def add_all(
        self, error: ValidationError, prefix: tuple[str | int, ...], model: type[BaseModel]
    ) -> None:
        for item in error.errors():
            location = (*prefix, *_without_tags(item["loc"]))
            self.add(location, _reason(item, model))

    def forbid_env(self, raw: Any, location: tuple[str | int, ...] = ()) -> None:
        """Refuse ``${NAME}`` wherever it would change bytes."""
        if location in (("output",), ("source", "urls"), ("storage",)):
            return
        if isinstance(raw, dict):
            for key, value in raw.items():
                self.forbid_env(value, (*location, key))
        elif isinstance(raw, list):
            for i, value in enumerate(raw):
                self.forbid_env(value, (*location, i))
        elif isinstance(raw, str) and _ENV.search(raw):
            self.add(
                location,
                f"{raw!r} takes a value from the environment; that is allowed only in "
                "source.urls, output and storage, because elsewhere it would change bytes",
            )

    def raise_if_any(self) -> None:
        if self._found:
            raise SpecError("\n".join(text for _, text in sorted(self._found)))


def _without_tags(location: Sequence[str | int]) -> tuple[str | int, ...]:
    """Drop the tags that pydantic adds for union members: they are not in the file."""
    tags = set(_SOURCE_TAGS)
    return tuple(
        part
        for i, part in enumerate(location)
        if not (
            (i == 1 and location[0] == "source" and part in tags)
            or (isinstance(part, str) and ("[" in part or part in _UNION_TAGS))
        )
    )


_SOURCE_TAGS = ("webdataset", "parquet", "jsonl", "image_folder")
_UNION_TAGS = ("str", "int", "float", "list[str]", "constrained-int", "constrained-float")


def _reason(item: Any, model: type[BaseModel]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    found = "" if isinstance(item.get("input"), dict | list) else f", found {item.get('input')!r}"
    if kind == "extra_forbidden":
        allowed = _allowed_names(model, item["loc"])
        return f"unknown field; {_nearest(str(item['loc'][-1]), allowed)}"
    if kind == "missing":
        return "missing; it is required"
    if kind in ("literal_error", "enum"):
        return f"expected {context['expected']}{found}"
    if kind == "union_tag_invalid":
        return f"unknown type {context['tag']!r}; {_nearest(context['tag'], list(_SOURCE_TAGS))}"
    if kind == "union_tag_not_found":
        return f"missing `type`; one of {', '.join(_SOURCE_TAGS)}"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}{found}"


def _nearest(name: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"allowed: {', '.join(sorted(allowed))}"


def _allowed_names(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the fields of the (nested) model that a mistake's parent is."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    node = schema
    for part in location[:-1]:
        node = _child(node, part, definitions)
    return list(_resolve(node, definitions).get("properties", {}))


def _child(node: Mapping[str, Any], part: str | int, definitions: Mapping[str, Any]) -> Any:
    node = _resolve(node, definitions)
    if "discriminator" in node:
        return {"$ref": node["discriminator"]["mapping"].get(part, "")}
    if isinstance(part, int):
        return node.get("items", {})
    if part in node.get("properties", {}):
        return node["properties"][part]
    for choice in node.get("anyOf", []):
        found = _resolve(choice, definitions)
        if part in (found.get("title"), *found.get("properties", {})):
            return found.get("properties", {}).get(part, found)
    return {}


def _resolve(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in node:
        node = definitions.get(node["$ref"].rsplit("/", 1)[-1], {})
    return node


def _line_of(tree: Any, location: Sequence[str | int]) -> int:
    """Return the line (from 1) of the deepest part of a location that is in the file."""
    line = 1
    for part in location:
        if not isinstance(tree, CommentedBase):
            break
        position: Any = tree.lc
        try:
            found = position.key(part) if isinstance(part, str) else position.item(part)
            child = tree[part]  # type: ignore[index]
        except (KeyError, IndexError, TypeError, AttributeError):
            break
        line, tree = found[0] + 1, child
    return line


def _dotted(location: Sequence[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "job"
