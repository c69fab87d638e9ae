"""Planning: check the chain of operators, cut the input into partitions, fingerprint the recipe.

Pure and cheap: nothing here decodes, loads a model or writes. What is decided once is written down
as ``_plan.jsonl``, so that a resume never plans again.
"""

import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from braceexpand import braceexpand
from pydantic import TypeAdapter

from operators import registry
from operators.base import FieldSpec, Operator, OperatorConfig, Resources, Step
from operators.model_files import ModelFiles
from pipeline.errors import ContractError, IntegrityError, SpecError
from pipeline.manifest import FORMAT_VERSION
from pipeline.protocols import Partition, Source
from pipeline.spec import JobSpec, TrainSpec
from pipeline.storage import Storage, join, shown

PLAN = "_plan.jsonl"
_PARTITION = TypeAdapter(Partition)


@dataclass(frozen=True, slots=True)
class BoundStep:
    """An operator or filter with its place in the chain.

    Attributes:
        step: The operator.
        label: Its name, with ``#2`` and so on from the second of that name.
        reads: Operator's field name -> job's field name.
        writes: The same for what it adds; empty for a filter.
        fields: All fields after it, with ``key``.
        keep: Those of them that something later reads, or that are written.
    """

    step: Step
    label: str
    reads: Mapping[str, str]
    writes: Mapping[str, str]
    fields: Mapping[str, FieldSpec]
    keep: frozenset[str]


@dataclass(frozen=True, slots=True)
class Chain:
    """The checked chain of a job.

    Attributes:
        source_fields: What the source gives, with ``key``.
        steps: The operators in order.
        output: Field -> spec of what is written, in file order, without ``key``.
    """

    source_fields: Mapping[str, FieldSpec]
    steps: tuple[BoundStep, ...]
    output: Mapping[str, FieldSpec]

    @property
    def resources(self) -> Resources:
        """What one worker needs for all steps, which take turns on its cores and its GPU."""
        parts = [bound.step.resources for bound in self.steps]
        return Resources(
            cpus=max(part.cpus for part in parts),
            gpus=max(part.gpus for part in parts),
            gpu_memory_bytes=sum(part.gpu_memory_bytes for part in parts),
        )

    @property
    def warnings(self) -> list[str]:
        """Which operators are given images that were prepared otherwise than their authors do.

        An operator may have an attribute ``preprocessing``: names and options of the operators
        that prepare its field ``image``, in order, where the last ``size`` stands for the side of
        its images, and others are in proportion; and ``other_preprocessing``, further such lists
        that its authors use. Nothing is said of views, which are cut otherwise on purpose, nor of
        images that come ready from the source or from the operator that decodes them.
        """
        found = []
        for i, bound in enumerate(self.steps):
            authors: Sequence[Mapping[str, Any]] = getattr(bound.step, "preprocessing", ())
            image = bound.step.inputs.get("image")
            if not authors or image is None or len(image.shape) != 3 or image.shape[0] is None:
                continue
            configs = _preparation(self.steps[:i], bound.reads["image"])
            lists = (authors, *getattr(bound.step, "other_preprocessing", ()))
            wanted = [_shown(_configs(each, image.shape[0])) for each in lists]
            if configs and _shown(configs) not in wanted:
                found.append(
                    f"{bound.label}: images come from {_shown(configs)}; its authors prepare "
                    f"them by {wanted[0]}"
                )
        return found

    def identities(self) -> list[dict[str, Any]]:
        """Return what identifies every operator: name, version, and what its ``identity`` says.

        Reads weight files to hash them.
        """
        found = []
        for bound in self.steps:
            step = bound.step
            item = {"label": bound.label, "version": step.version, **step.identity()}
            if isinstance(step, Operator):
                item["metadata"] = dict(step.metadata())
                item["outputs"] = {bound.writes[name]: str(s) for name, s in step.outputs.items()}
            found.append(item)
        plain: list[dict[str, Any]] = json.loads(json.dumps(found))
        return plain


def build_chain(
    job: JobSpec | TrainSpec, source_fields: Mapping[str, FieldSpec], model_files: ModelFiles
) -> Chain:
    """Build the operators and check every field along the chain.

    Raises:
        SpecError: an operator reads a field that is not there or has another spec, or a field
            that cannot be stored is to be written; says where.
    """
    asked: dict[int, frozenset[str]] = {}
    while isinstance(steps := _bind(job, source_fields, model_files, asked), _Offer):
        asked[steps.step] = asked.get(steps.step, frozenset()) | {steps.name}
    for i, bound in enumerate(steps):
        for name, spec in bound.step.inputs.items():
            _check_input(_where(job, i), bound.reads[name], spec, steps[:i], source_fields)
    source: dict[str, FieldSpec] = {**source_fields, "key": FieldSpec("string")}
    fields = steps[-1].fields if steps else source
    output = {
        name: _output_field(name, fields, place) for name, place in job.written_fields().items()
    }
    needed = set(output) | {"key"}
    if job.keeps_bad_bytes:
        needed |= set(source)  # a late failure must still find the sample's original bytes
    for i in reversed(range(len(steps))):
        steps[i] = replace(steps[i], keep=frozenset(needed & set(steps[i].fields)))
        needed = (needed - set(steps[i].writes.values())) | set(steps[i].reads.values())
    return Chain(source, tuple(steps), output)


def _bind(
    job: JobSpec | TrainSpec,
    source_fields: Mapping[str, FieldSpec],
    model_files: ModelFiles,
    asked: Mapping[int, frozenset[str]],
) -> "list[BoundStep] | _Offer":
    """Build the operators, each told of the fields before it; what it reads may be missing.

    Returns:
        The steps; or the first field that is read and that was not ``asked`` for.
    """
    fields: dict[str, FieldSpec] = {**source_fields, "key": FieldSpec("string")}
    seen: dict[str, int] = {}
    steps: list[BoundStep] = []
    for i, config in enumerate(job.operators):
        where = _where(job, i)
        try:
            step = registry.build(config, model_files)
            if i in asked and isinstance(step, Operator):
                step.provide(asked[i])
            given = {name: config.inputs.get(name, name) for name in step.inputs}
            offer = _offered(steps, given.values())
            if offer is not None:
                return offer
            step.bind({name: fields[field] for name, field in given.items() if field in fields})
            inputs = step.inputs
            outputs = step.outputs if isinstance(step, Operator) else {}
        except ContractError as error:
            raise SpecError(f"{where}: {error.message}", hint=error.hint) from None
        offers = step.offers if isinstance(step, Operator) else {}
        reads = _rename(inputs, config.inputs, job.place("operators", i, "inputs"))
        writes = _rename(outputs, config.outputs, job.place("operators", i, "outputs"), offers)
        fields = {**fields, **{writes[name]: spec for name, spec in outputs.items()}}
        if "key" in writes.values():
            raise SpecError(f"{where}: writes `key`, which is reserved", hint="rename the output")
        seen[config.name] = seen.get(config.name, 0) + 1
        label = config.name if seen[config.name] == 1 else f"{config.name}#{seen[config.name]}"
        steps.append(BoundStep(step, label, reads, writes, fields, frozenset()))
    return _offered(steps, job.written_fields()) or steps


class _Offer(NamedTuple):
    """A field that an operator adds when it is asked for: the operator's place, its own name."""

    step: int
    name: str


def _offered(steps: Sequence[BoundStep], fields: Iterable[str]) -> _Offer | None:
    """Find the first field that an operator offers and does not add yet.

    Whoever can give it last gives it: what an earlier one gave may no longer fit.
    """
    for field in fields:
        for i in reversed(range(len(steps))):
            step = steps[i].step
            if field in steps[i].writes.values():
                break
            renamed = step.config.outputs
            for name in step.offers if isinstance(step, Operator) else ():
                if renamed.get(name, name) == field:
                    return _Offer(i, name)
    return None


def _where(job: JobSpec | TrainSpec, i: int) -> str:
    return f"{job.place('operators', i)} ({job.operators[i].name})"


def fingerprint(job: JobSpec, identities: Sequence[Mapping[str, Any]]) -> str:
    """Return the SHA-256 over everything that changes bytes: recipe, operators, format."""
    content = {"format": FORMAT_VERSION, "recipe": job.recipe(), "operators": list(identities)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def list_partitions(job: JobSpec | TrainSpec, source: Source) -> list[Partition]:
    """Cut the input into partitions, up to the job's ``limit`` of samples."""
    partitions = []
    left = job.limit
    for partition in source.list_partitions():
        if left is None:
            partitions.append(partition)
            continue
        count = source.count_samples(partition, left)
        partitions.append(replace(partition, max_samples=count))
        left -= count
        if left <= 0:
            break
    return partitions


def write_plan(storage: Storage, output: str, partitions: Sequence[Partition]) -> str:
    """Write the plan down and return its digest. Passwords and signatures of URLs are left out."""
    with storage.open_write(join(output, PLAN)) as file:
        head = {"version": FORMAT_VERSION, "partitions": len(partitions)}
        file.write(json.dumps(head).encode() + b"\n")
        for partition in partitions:
            public = without_secrets(partition)
            file.write(_PARTITION.dump_json(public, exclude_defaults=True) + b"\n")
    return plan_digest(partitions)


def read_plan(storage: Storage, output: str, urls: Sequence[str] = ()) -> list[Partition]:
    """Return the partitions that ``write_plan`` wrote; partition i is at place i.

    Args:
        storage: How to reach it.
        output: The output folder's URI.
        urls: The source's URLs, which have what was left out of them; without them the plan can
            be looked at, and followed when nothing was left out.

    Raises:
        IntegrityError: the file is not whole, or of another version.
    """
    uri = join(output, PLAN)
    partitions: list[Partition] = []
    with storage.open_read(uri) as file:
        lines = io.BufferedReader(cast(io.RawIOBase, file), 8 << 20)
        try:
            about = json.loads(next(lines, b""))
            version, count = about["version"], about["partitions"]
            if version != FORMAT_VERSION:
                raise IntegrityError(
                    f"{uri}: version {version}, this program reads {FORMAT_VERSION}",
                    hint="run the program version that wrote it",
                )
            for line in lines:
                partition = _PARTITION.validate_json(line, strict=True, extra="forbid")
                if partition.index != len(partitions):
                    raise ValueError(f"partition {partition.index} at place {len(partitions)}")
                partitions.append(partition)
            if count != len(partitions):
                raise ValueError(f"{len(partitions):,} partitions, its first line says {count}")
        except (ValueError, KeyError, TypeError) as error:
            text = " ".join(str(error).split())
            raise IntegrityError(
                f"{uri}: not a whole plan; after {len(partitions):,} partitions: {text}",
                hint="the file was cut or edited; start again with --fresh",
            ) from None
    return with_secrets(partitions, urls)


def without_secrets(partition: Partition) -> Partition:
    """Return a partition as it may be written down: URLs without passwords and signatures."""
    return _with_uris(partition, _public)


def with_secrets(partitions: list[Partition], urls: Sequence[str]) -> list[Partition]:
    """Undo ``without_secrets`` by the source's own URLs."""
    private = _Private(urls)
    return [_with_uris(partition, private) for partition in partitions] if private else partitions


def plan_digest(partitions: Sequence[Partition]) -> str:
    """Return the SHA-256 of the partitions, leaving out where the files lie."""
    digest = hashlib.sha256()
    for part in partitions:
        ranges = [
            [r.file.name, r.file.num_bytes, r.first, r.stop, r.first_row] for r in part.ranges
        ]
        digest.update(json.dumps([part.index, ranges, part.max_samples]).encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will give, from the size of the input and a count of its first partition.

    Attributes:
        samples: Input samples, estimated.
        input_bytes: Exact.
        tokens: Token field -> ids, for fields of fixed length; None where it depends on the text.
        output_bytes: Bytes of the fixed-length fields.
    """

    samples: int
    input_bytes: int
    tokens: Mapping[str, int | None]
    output_bytes: int


def estimate(chain: Chain, source: Source, partitions: Sequence[Partition]) -> Estimate:
    """Estimate samples, tokens and bytes without reading more than one partition's headers."""
    first = next((p for p in partitions if p.num_bytes), None)
    total = sum(partition.num_bytes for partition in partitions)
    samples = 0
    if first is not None:
        if all(p.max_samples is not None for p in partitions):
            samples = sum(p.max_samples or 0 for p in partitions)
        else:
            samples = round(source.count_samples(first, 1 << 62) * total / first.num_bytes)
    tokens: dict[str, int | None] = {}
    output_bytes = 0
    for name, spec in chain.output.items():
        values = 1
        for length in spec.shape:
            values *= length or 0
        fixed = spec.is_numeric and not spec.is_ragged
        if spec.vocab_size is not None:
            tokens[name] = samples * values if fixed else None
        if fixed:
            output_bytes += samples * values * _itemsize(spec)
    return Estimate(samples, total, tokens, output_bytes)


def _itemsize(spec: FieldSpec) -> int:
    import numpy as np

    return np.dtype(spec.dtype).itemsize


def _with_uris(partition: Partition, change: Callable[[str], str]) -> Partition:
    uris = [change(item.file.uri) for item in partition.ranges]
    if uris == [item.file.uri for item in partition.ranges]:
        return partition
    ranges = tuple(
        replace(item, file=replace(item.file, uri=uri))
        for item, uri in zip(partition.ranges, uris, strict=True)
    )
    return replace(partition, ranges=ranges)


def _public(uri: str) -> str:
    return shown(uri) if uri.startswith(_HTTP) else uri


class _Private:
    """Gives a URL back the user, password and query that ``_public`` took from it."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._whole: dict[str, str] = {}
        self._hosts: dict[str, str] = {}
        for url in urls:
            if _public(url) == url:
                continue
            urls_of_it = braceexpand(url) if "{" in url else [url]
            self._whole |= {_public(each): each for each in urls_of_it}
            host = "/".join(url.split("/", 3)[:3])
            self._hosts[shown(host)] = host

    def __bool__(self) -> bool:
        return bool(self._whole)

    def __call__(self, uri: str) -> str:
        host = "/".join(uri.split("/", 3)[:3])
        return self._whole.get(uri) or self._hosts.get(host, host) + uri[len(host) :]


_HTTP = ("http://", "https://")


def _configs(steps: Sequence[Mapping[str, Any]], side: int) -> list[OperatorConfig]:
    """Return the configs of image operators, for images of the given side.

    The last ``size`` stands for it, and earlier ones are in proportion.
    """
    sizes = [options["size"] for options in steps if "size" in options]
    return [
        registry.get(options["name"]).Config.model_validate(
            {**options, "size": round(options["size"] * side / sizes[-1])}
            if "size" in options
            else options
        )
        for options in steps
    ]


def _preparation(steps: Sequence[BoundStep], field: str) -> list[OperatorConfig]:
    """Return the configs of the operators that changed a field since it was decoded.

    That is where it was made of other fields; the list is empty when the source gives it.
    """
    configs: list[OperatorConfig] = []
    for bound in reversed(steps):
        made = next((name for name, written in bound.writes.items() if written == field), None)
        if made is None:
            continue
        if made not in bound.reads:
            return configs[::-1]
        configs.append(bound.step.config)
        field = bound.reads[made]
    return []


def _shown(configs: Sequence[OperatorConfig]) -> str:
    hidden = {"name", "inputs", "outputs", "max_pixels"}
    options = [config.model_dump(exclude=hidden).values() for config in configs]
    return " > ".join(
        f"{config.name}({', '.join(map(str, values))})"
        for config, values in zip(configs, options, strict=True)
    )


def _rename(
    specs: Mapping[str, FieldSpec],
    names: Mapping[str, str],
    where: str,
    offers: Collection[str] = (),
) -> Mapping[str, str]:
    unknown = sorted(set(names) - set(specs) - set(offers))
    if unknown:
        raise SpecError(
            f"{where}: the operator has no field {unknown[0]!r}",
            hint=f"it has {', '.join(sorted({*specs, *offers})) or 'none'}",
        )
    return {name: names.get(name, name) for name in specs}


def _check_input(
    where: str,
    name: str,
    spec: FieldSpec,
    before: Sequence[BoundStep],
    source_fields: Mapping[str, FieldSpec],
) -> None:
    key = {"key": FieldSpec("string")}
    fields = before[-1].fields if before else {**source_fields, **key}
    if name not in fields:
        there = ", ".join(f"{field}: {found}" for field, found in _fitting(spec, fields))
        hint = f"add it, or rename with `inputs`; fields that would fit: {there or 'none'}"
        for bound in before:
            if isinstance(bound.step, Operator) and name in bound.step.lacks:
                hint = f"{bound.label} does not give it: {bound.step.lacks[name]}"
        raise SpecError(
            f"{where}: reads {name!r} ({spec}), which no source field or earlier operator gives",
            hint=hint,
        )
    if not spec.accepts(fields[name]):
        raise SpecError(f"{where}: reads {name!r} as {spec}, but it is {fields[name]}")


def _fitting(spec: FieldSpec, fields: Mapping[str, FieldSpec]) -> Iterator[tuple[str, FieldSpec]]:
    return ((name, found) for name, found in fields.items() if spec.accepts(found))


def _output_field(name: str, fields: Mapping[str, FieldSpec], where: str) -> FieldSpec:
    if name == "key":
        raise SpecError(f"{where}: `key` is always written", hint="leave it out")
    if name not in fields:
        raise SpecError(
            f"{where}: there is no field {name!r}",
            hint=f"there are {', '.join(sorted(set(fields) - {'key'}))}",
        )
    if fields[name].dtype == "pillow":
        raise SpecError(
            f"{where}: {name!r} holds decoded images of any size, which are not stored",
            hint="write the operator's output, or the image bytes",
        )
    return fields[name]
