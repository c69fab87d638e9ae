"""Job files: YAML to a validated ``JobSpec``, with the line and field of every mistake.

A job has two halves. The recipe (source, operators, batch size, shards) changes bytes; the rest
(output, storage, run) does not. ``${NAME}`` and ``${NAME:-default}`` are replaced in URLs and
storage options only, so that nothing in the environment can change bytes.
"""

import difflib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from fsspec.core import split_protocol
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from operators import registry
from operators.base import OperatorConfig
from pipeline.errors import ContractError, SpecError
from pipeline.sources import SourceConfig

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=0)]
Location = tuple[str | int, ...]
"""Names and list positions from the top of a job to one of its values."""


@dataclass(frozen=True, slots=True)
class JobText:
    """Where a job was read: turns the location of a mistake into something to click on.

    Attributes:
        name: The file, or what else the job came from.
        lines: Location -> line, from 1; empty when there is no text to look at.
    """

    name: str = ""
    lines: Mapping[Location, int] = field(default_factory=dict)

    def line(self, location: Location) -> int:
        """Return the line of the deepest part of a location that is in the text, or 0."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 0)

    def place(self, location: Location) -> str:
        """Return ``file:line: field`` (without what is not known)."""
        where = f"{self.name}:{self.line(location)}" if self.lines else self.name
        return ": ".join(part for part in (where, _dotted(location)) if part)


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


class WorkerRange(_Model):
    """A number of workers that follows the cluster, for one that grows on demand."""

    min: Annotated[
        int, Field(ge=1, description="The run stops when fewer are ready after 15 minutes.")
    ] = 1
    max: Annotated[
        int, Field(ge=1, description="Ask the cluster for this many; those that fit nowhere wait.")
    ]

    @model_validator(mode="after")
    def _is_a_range(self) -> "WorkerRange":
        if self.min > self.max:
            raise ValueError(f"expected min <= max, found {self.min} > {self.max}")
        return self


class RunSpec(_Model):
    """How the job is run. Changes no byte of the output."""

    workers: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1)] | WorkerRange,
        Field(
            description="Worker processes; auto is as many as fit: one per GPU (or the share of "
            "one that it needs), or one per core. It follows nodes that join and leave."
        ),
    ] = "auto"
    num_gpus: Annotated[
        float | None,
        Field(gt=0, description="GPUs per worker; a fraction puts several on one. By default one."),
    ] = None
    accelerator_type: Annotated[
        str | None, Field(description="Only nodes with this kind, as Ray calls it, e.g. H100.")
    ] = None
    resources: Annotated[
        dict[str, Annotated[float, Field(gt=0)]],
        Field(description="Custom resources of the cluster that a worker takes: name -> amount."),
    ] = {}
    worker_memory_bytes: Annotated[
        int | None,
        Field(
            ge=1 << 28,
            description="Most memory a worker may hold. One that holds more is ended, and the "
            "sample that does it is looked for.",
        ),
    ] = None
    deadline_s: Annotated[
        Literal["auto"] | Annotated[float, Field(gt=0)],
        Field(
            description="A worker without progress for so long hangs and is replaced; auto is "
            "five times what a partition takes, two minutes at least."
        ),
    ] = "auto"
    cpu_threads: Annotated[
        int, Field(ge=1, description="Threads per CPU stage of a worker (image decoding).")
    ] = 1
    chunk_size: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1)],
        Field(description="Samples a CPU task takes at a time; auto is 32 files or 1,024 texts."),
    ] = "auto"
    max_attempts: Annotated[
        int, Field(ge=1, description="Attempts at a partition whose worker or storage fails.")
    ] = 5
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


class BaseJob(_Model):
    """What jobs of every kind share."""

    name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the data set.")
    ]
    source: Annotated[SourceConfig, Field(description="Where samples come from.")]
    output: Annotated[
        str,
        Field(description="Output folder: a URL, or a path from the current directory."),
    ]
    storage: Annotated[
        dict[str, dict[str, Any]],
        Field(description="Protocol (s3, hf, https) -> options of its fsspec file system."),
    ] = {}
    limit: Annotated[int | None, Field(ge=1, description="Stop after this many input samples.")] = (
        None
    )
    _text: JobText = PrivateAttr(default_factory=JobText)

    def place(self, *location: str | int) -> str:
        """Return ``file:line: field`` of a part of the job, for an error about it."""
        return self._text.place(location)

    def source_urls(self) -> list[str]:
        """Return the source URLs: environment variables replaced, local paths made absolute."""
        urls = [self.source.urls] if isinstance(self.source.urls, str) else self.source.urls
        return [_absolute(expand_env(url, self.place("source", "urls"))) for url in urls]

    def storage_options(self) -> dict[str, dict[str, Any]]:
        """Return the storage options with environment variables replaced."""

        def expand(value: Any, *location: str) -> Any:
            if isinstance(value, Mapping):
                return {k: expand(v, *location, k) for k, v in value.items()}
            return expand_env(value, self.place(*location)) if isinstance(value, str) else value

        expanded: dict[str, dict[str, Any]] = expand(self.storage, "storage")
        return expanded

    def variables(self) -> set[str]:
        """Return the environment variables that URLs and storage options name."""

        def texts(value: Any) -> Iterator[str]:
            if isinstance(value, Mapping):
                for inner in value.values():
                    yield from texts(inner)
            elif isinstance(value, str):
                yield value
            elif isinstance(value, list):
                for inner in value:
                    yield from texts(inner)

        places = [self.source.urls, self.output, self.storage]
        return {match[1] for text in texts(places) for match in _ENV.finditer(text)}

    def output_uri(self) -> str:
        """Return the output folder with environment variables replaced."""
        return expand_env(self.output, self.place("output")).rstrip("/")


class JobSpec(BaseJob):
    """A whole job, validated. ``load_job`` makes one from a file."""

    operators: Annotated[
        list[OperatorConfig],
        Field(min_length=1, description="What is done with every sample, in order."),
    ]
    batch_size: Annotated[
        int, Field(ge=1, description="Samples per call of a device operator.")
    ] = 64
    shards: Annotated[ShardsSpec, Field(description="What is written.")]
    run: Annotated[RunSpec, Field(description="How the job is run.")] = RunSpec()

    def written_fields(self) -> Mapping[str, str]:
        """Return the fields that the operators are to give, and where the job says so."""
        return {
            name: self.place("shards", "fields", i) for i, name in enumerate(self.shards.fields)
        }

    @property
    def keeps_bad_bytes(self) -> bool:
        """True when the original fields of unusable samples are kept."""
        return self.run.keep_bad_bytes

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


class SampleSpec(_Model):
    """Which documents a tokenizer is trained on: those whose keys hash lowest, so no order counts.

    At most one of the three sizes; without any, all documents.
    """

    fraction: Annotated[
        float | None, Field(gt=0.0, le=1.0, description="Share of the documents.")
    ] = None
    max_bytes: Annotated[
        int | None, Field(ge=1, description="Most bytes of text (UTF-8) in the sample.")
    ] = None
    max_documents: Annotated[
        int | None, Field(ge=1, description="Most documents in the sample.")
    ] = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63, description="Another seed, another sample.")] = 0

    @model_validator(mode="after")
    def _is_one_size(self) -> "SampleSpec":
        sizes = ("fraction", "max_bytes", "max_documents")
        given = [name for name in sizes if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"expected one size of the sample, found {' and '.join(given)}")
        return self


class TrainSpec(BaseJob):
    """A job that trains a tokenizer. ``load_train_job`` makes one from a file."""

    operators: Annotated[
        list[OperatorConfig],
        Field(description="What is done with every sample before, in order; on the CPU."),
    ] = []
    text: Annotated[str, Field(description="The field whose text the trainer is given.")] = "text"
    sample: Annotated[SampleSpec, Field(description="Which documents it is trained on.")] = (
        SampleSpec()
    )
    trainer: Annotated[SerializeAsAny[BaseModel], Field(description="What learns the tokenizer.")]
    max_bad_samples: Annotated[
        Fraction | Count,
        Field(
            description="Samples that may be unreadable: a count, or a share below 1 of the input."
        ),
    ] = 0.01

    def written_fields(self) -> Mapping[str, str]:
        """Return the field that the operators are to give, and where the job says so."""
        return {self.text: self.place("text")}

    @property
    def keeps_bad_bytes(self) -> bool:
        """False: there is no quarantine."""
        return False

    def recipe(self) -> dict[str, Any]:
        """Return the half that changes bytes, as JSON values; URLs as written in the job."""
        return {
            "name": self.name,
            "source": self.source.model_dump(mode="json"),
            "operators": [config.model_dump(mode="json") for config in self.operators],
            "text": self.text,
            "sample": self.sample.model_dump(mode="json"),
            "trainer": self.trainer.model_dump(mode="json"),
            "limit": self.limit,
        }


AnyJob = TypeVar("AnyJob", bound=BaseJob)


def load_job(path: Path, overrides: Mapping[str, Any] | None = None) -> JobSpec:
    """Read and validate a job file.

    Args:
        path: The YAML file.
        overrides: Field at the top of a job -> value, from the command line (``limit``).

    Raises:
        SpecError: each mistake as ``file:line: field: reason``, with the nearest allowed name.
    """
    return parse_job(_read(path), str(path), overrides)


def parse_job(text: str, name: str, overrides: Mapping[str, Any] | None = None) -> JobSpec:
    """Validate the text of a job file; ``name`` stands in the messages. See ``load_job``."""
    raw, lines = _parse_yaml(text, name, JobSpec)
    return _validate({**raw, **(overrides or {})}, JobText(name, lines), JobSpec)


def load_train_job(path: Path, overrides: Mapping[str, Any] | None = None) -> TrainSpec:
    """Read and validate the file of a job that trains a tokenizer. See ``load_job``."""
    return parse_train_job(_read(path), str(path), overrides)


def parse_train_job(text: str, name: str, overrides: Mapping[str, Any] | None = None) -> TrainSpec:
    """Validate the text of a training job; ``name`` stands in the messages. See ``load_job``."""
    raw, lines = _parse_yaml(text, name, TrainSpec)
    return _validate({**raw, **(overrides or {})}, JobText(name, lines), TrainSpec)


def job_from_recipe(recipe: Mapping[str, Any]) -> JobSpec:
    """Return a job that makes the same bytes as the one a recipe was taken from.

    Output, storage and run settings are not part of a recipe; they are the defaults.

    Raises:
        SpecError: it names an operator or setting that is not known here, or is an import's.
    """
    if "import" in recipe:
        raise SpecError(
            f"{recipe['name']}: was imported from {recipe['import']['from']}, no job made it",
            hint="what needs its job, such as a preview or a retry, cannot be done with it",
        )
    return _validate({**recipe, "output": "."}, JobText("recipe"), JobSpec)


def job_schema() -> dict[str, Any]:
    """Return the JSON schema of job files, with every operator that is installed."""
    return _schema(JobSpec, "Tokenmill job")


def train_schema() -> dict[str, Any]:
    """Return the JSON schema of training jobs, with every operator and trainer."""
    schema = _schema(TrainSpec, "Tokenmill training job")
    trainers = [trainer.Config for trainer in registry.trainers().values()]
    schema["properties"]["trainer"] = {
        "description": schema["properties"]["trainer"]["description"],
        "oneOf": _choices(trainers, schema["$defs"]),
    }
    schema["$defs"].pop("BaseModel", None)
    return schema


def schema_json(schema: Mapping[str, Any] | None = None) -> str:
    """Return the text of ``jobs/job.schema.json``, or of another schema."""
    return json.dumps(job_schema() if schema is None else schema, indent=2, sort_keys=True) + "\n"


def _schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    schema = model.model_json_schema()
    definitions = schema["$defs"]
    definitions.pop("OperatorConfig", None)
    for source in _SOURCES.values():
        part = definitions[source.__name__]
        part["required"] = sorted({"type", *part["required"]})
    steps = [registry.get(name).Config for name in registry.names()]
    schema["properties"]["operators"]["items"] = {"oneOf": _choices(steps, definitions)}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = title
    schema["required"] = _required(model)
    return schema


def _required(model: type[BaseModel]) -> list[str]:
    """Return what a job must have, in the order in which one is written."""
    order = ("name", "source", "operators", "trainer", "shards", "output")
    fields = model.model_fields
    return [name for name in order if name in fields and fields[name].is_required()]


def _choices(
    configs: Sequence[type[BaseModel]], definitions: dict[str, Any]
) -> list[dict[str, str]]:
    """Add configs, each chosen by its ``name``, to the definitions; return references."""
    for config in configs:
        part = config.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(part.pop("$defs", {}))
        part["required"] = sorted({"name", *part.get("required", [])})
        definitions[config.__name__] = part
    return [{"$ref": f"#/$defs/{config.__name__}"} for config in configs]


_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def expand_env(text: str, where: str) -> str:
    """Replace ``${NAME}`` and ``${NAME:-default}``; an empty variable counts as not set.

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


def _absolute(url: str) -> str:
    protocol, _ = split_protocol(url)
    return os.path.abspath(url) if protocol is None else url


_SOURCES: Mapping[str, type[BaseModel]] = {
    model.model_fields["type"].default: model for model in get_args(get_args(SourceConfig)[0])
}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = str(error.strerror).lower() if isinstance(error, OSError) else "not UTF-8 text"
        raise SpecError(f"{path}: {reason}", hint="give the path of a job file") from None


def _parse_yaml(
    text: str, name: str, model: type[BaseModel]
) -> tuple[dict[str, Any], dict[Location, int]]:
    """Return the values of a YAML mapping and the line of every one of them."""
    yaml = YAML(typ="safe", pure=True)
    lines: dict[Location, int] = {(): 1}
    mistakes = _Mistakes(JobText(name, lines))
    try:
        root = yaml.compose(text)
        _add_lines(root, (), lines, mistakes)
        mistakes.raise_if_any()
        values = yaml.load(text)
    except YAMLError as error:
        mark = isinstance(error, MarkedYAMLError) and (error.problem_mark or error.context_mark)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError(f"{name}:{mark.line + 1 if mark else 1}: not YAML: {reason}") from None
    except RecursionError:
        raise SpecError(f"{name}:1: not a job: nested without end") from None
    if not isinstance(values, dict):
        *first, last = _required(model)
        raise SpecError(
            f"{name}:1: expected a mapping with {', '.join(first)} and {last}, "
            f"found {'an empty file' if values is None else _found(values)}"
        )
    return values, lines


def _add_lines(
    node: Any, location: Location, lines: dict[Location, int], mistakes: "_Mistakes"
) -> None:
    """Note the line of everything below a YAML node; a key that stands twice is a mistake."""
    if node is None or isinstance(node.value, str):
        return
    for i, item in enumerate(node.value):
        is_pair = isinstance(item, tuple)
        key, child = item if is_pair else (item, item)
        if is_pair and not isinstance(key.value, str):
            mistakes.add(location, "expected text as a key, found a list or mapping")
            continue
        here = (*location, key.value if is_pair else i)
        is_twice = here in lines
        lines[here] = key.start_mark.line + 1
        if is_twice:
            mistakes.add(here, "the key stands twice; keep one")
        _add_lines(child, here, lines, mistakes)


def _validate(raw: Mapping[str, Any], text: JobText, model: type[AnyJob]) -> AnyJob:
    mistakes = _Mistakes(text)
    _forbid_env(raw, (), mistakes)
    _forbid_secrets(raw, mistakes)
    # Which model an operator or a source has follows from its name: they are validated here, so
    # that a mistake in one is told in its own terms, and the job takes the finished parts.
    parts: dict[str, Any] = {}
    if isinstance(raw.get("operators"), list) and raw["operators"]:
        parts["operators"] = [
            _named(item, ("operators", i), "OPERATOR", registry.get, mistakes)
            for i, item in enumerate(raw["operators"])
        ]
    if isinstance(raw.get("source"), dict):
        parts["source"] = _source(raw["source"], mistakes)
    if "trainer" in raw and "trainer" in model.model_fields:
        parts["trainer"] = _named(
            raw["trainer"], ("trainer",), "TRAINER", registry.trainer, mistakes
        )
    try:
        job = model.model_validate({**raw, **parts})
    except ValidationError as error:
        mistakes.add_all(error, (), raw, model, known=set(parts))
    mistakes.raise_if_any()
    job._text = text
    return job


def _named(
    raw: Any,
    location: Location,
    what: str,
    find: Callable[[str], type[Any]],
    mistakes: "_Mistakes",
) -> BaseModel | None:
    """Validate a mapping whose model follows from its ``name``."""
    if not isinstance(raw, dict) or "name" not in raw:
        mistakes.add(location, f"expected a mapping with `name: {what}`")
        return None
    try:
        model = find(str(raw["name"])).Config
    except ContractError as error:
        mistakes.add((*location, "name"), f"{error.message}; {error.hint}")
        return None
    return _part(model, raw, location, mistakes)


def _source(raw: Mapping[str, Any], mistakes: "_Mistakes") -> BaseModel | None:
    if "type" not in raw:
        mistakes.add(("source",), f"missing `type`; one of {', '.join(_SOURCES)}")
        return None
    model = _SOURCES.get(str(raw["type"]))
    if model is None:
        nearest = _nearest(str(raw["type"]), list(_SOURCES))
        mistakes.add(("source", "type"), f"unknown type {raw['type']!r}; {nearest}")
        return None
    return _part(model, raw, ("source",), mistakes)


def _part(
    model: type[BaseModel], raw: Mapping[str, Any], location: Location, mistakes: "_Mistakes"
) -> BaseModel | None:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        mistakes.add_all(error, location, raw, model)
        return None


def _forbid_env(raw: Any, location: Location, mistakes: "_Mistakes") -> None:
    """Refuse ``${NAME}`` wherever it could change bytes."""
    if location in (("output",), ("source", "urls"), ("storage",)):
        return
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            _forbid_env(value, (*location, key), mistakes)
    elif isinstance(raw, list):
        for i, value in enumerate(raw):
            _forbid_env(value, (*location, i), mistakes)
    elif isinstance(raw, str) and _ENV.search(raw):
        mistakes.add(
            location,
            f"{raw!r} takes a value from the environment, which is allowed only in source.urls, "
            "output and storage: elsewhere it could change the bytes that are written",
        )


def _forbid_secrets(raw: Mapping[str, Any], mistakes: "_Mistakes") -> None:
    """Refuse a password that is written into a URL: the recipe becomes part of the data set."""
    source = raw.get("source")
    urls = source.get("urls") if isinstance(source, Mapping) else None
    for i, url in enumerate(urls if isinstance(urls, list) else [urls]):
        if isinstance(url, str) and _SECRET_IN_URL.search(url):
            mistakes.add(
                ("source", "urls", *([i] if isinstance(urls, list) else [])),
                "a password or signature in a URL would be written into the data set; set an "
                "environment variable to it and write ${NAME} in its place",
            )


_SECRET_IN_URL = re.compile(
    r"://[^/@\s:]*:(?!\$\{)[^/@\s]+@"
    r"|[?&](?:[^=&\s]*[-_])?"
    r"(?:signature|sig|token|secret|password|apikey|awsaccesskeyid|key|credential)"
    r"=(?!\$\{)[^&\s]",
    re.IGNORECASE,
)


class _Mistakes:
    """Collects what is wrong with a job, each with its line."""

    def __init__(self, text: JobText) -> None:
        self._text = text
        self._found: dict[Location, str] = {}

    def add(self, location: Location, reason: str) -> None:
        """Add a mistake; of several at one place the first is kept."""
        self._found.setdefault(location, f"{self._text.place(location)}: {reason}")

    def add_all(
        self,
        error: ValidationError,
        prefix: Location,
        raw: Any,
        model: type[BaseModel],
        known: "set[str] | frozenset[str]" = frozenset(),
    ) -> None:
        """Add what pydantic found, but for fields in ``known``, whose mistakes are added already.

        A value that fits no member of a union is one mistake: what the members expect is joined.
        Where some members want a mapping and it is one, only what is wrong inside is told.
        """
        places: dict[Location, list[Any]] = {}
        for item in error.errors(include_url=False):
            if not item["loc"] or item["loc"][0] not in known:
                places.setdefault(_in_text(item, raw), []).append(item)
        for place, items in places.items():
            if not any(len(other) > len(place) == _shared(other, place) for other in places):
                is_secret = (*prefix, *place)[:1] == ("storage",)
                self.add((*prefix, *place), _reason(items, model, is_secret=is_secret))

    def raise_if_any(self) -> None:
        lines = [self._found[place] for place in sorted(self._found, key=self._text.line)]
        if len(lines) == 1:
            raise SpecError(lines[0])
        if lines:
            head = f"{self._text.name}: {len(lines)} mistakes"
            raise SpecError("\n  ".join([head, *lines]))


def _in_text(item: Any, raw: Any) -> Location:
    """Return where in the text a mistake is, without the tags that pydantic adds for unions."""
    location: list[str | int] = []
    for part in item["loc"]:
        is_list = isinstance(raw, list) and isinstance(part, int) and part < len(raw)
        if is_list or (isinstance(raw, Mapping) and part in raw):
            raw = raw[part]
            location.append(part)
    if item["type"] == "missing":
        location.append(item["loc"][-1])
    return tuple(location)


def _shared(a: Location, b: Location) -> int:
    """Return how many parts two locations have in common, from the first."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))


_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "a mapping",
    "model_type": "a mapping",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_type": "text",
    "too_long": "at most {max_length} of them",
    "too_short": "at least {min_length} of them",
}
"""Kind of a pydantic error -> what was expected instead."""


def _reason(items: Sequence[Any], model: type[BaseModel], *, is_secret: bool = False) -> str:
    """Say in one line what is wrong at one place of a job; a secret's value is not shown."""
    first = items[0]
    if first["type"] == "extra_forbidden":
        return f"unknown field; {_nearest(str(first['loc'][-1]), _names(model, first['loc']))}"
    if first["type"] == "missing":
        return "missing; it is required"
    known = [item for item in items if item["type"] in _EXPECTED]
    if not known:
        message = str(first["msg"]).removeprefix("Value error, ")
        return f"{message[:1].lower()}{message[1:]}"
    wanted = [_EXPECTED[item["type"]].format(**item.get("ctx", {})) for item in known]
    hidden = is_secret and not isinstance(first["input"], dict | list)
    found = "another value" if hidden else _found(first["input"])
    return f"expected {' or '.join(dict.fromkeys(wanted))}, found {found}"


def _found(value: Any) -> str:
    """Show a value as the job's author knows it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    text = repr(value) if isinstance(value, str | int | float) else str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _nearest(name: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"allowed: {', '.join(sorted(allowed))}"


def _names(model: type[BaseModel], location: Location) -> list[str]:
    """Return the fields that are allowed beside the one at a location."""
    models = [model]
    for part in location[:-1]:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        models = [m for found in fields for m in _models_in(found.annotation)] or models
    return list(dict.fromkeys(name for m in models for name in m.model_fields))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _dotted(location: Location) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
