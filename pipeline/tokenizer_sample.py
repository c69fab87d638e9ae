"""Measure text tokenizers on a sample of a job's texts, or of the shards of a finished run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from operators import registry
from operators.base import Batch, Column, HasPieces, Invertible, Operator, OperatorConfig, Ragged
from operators.columns import concat, take_batch
from pipeline.errors import IntegrityError, SpecError
from pipeline.manifest import DataSet, open_data_set
from pipeline.model_cache import JobModelFiles
from pipeline.plan import BoundStep, Chain, build_chain, list_partitions
from pipeline.report.tokenizer_report import TokenizerFigures, TokenizerMeter
from pipeline.sources import build_source
from pipeline.spec import JobSpec, job_from_recipe
from pipeline.stages import run_steps
from pipeline.stages.call import call_on_rows
from pipeline.storage import Storage

NUM_PARTS = 32
"""The sample is spread over so many partitions or shards, if there are as many."""

DAMAGED_BYTES = 1 << 18
"""Text that is damaged to see what its tokens become."""

ENCODED_ROWS = 1024

Progress = Callable[[int, int], None]
"""Told the bytes of text that were read so far, and how many there will be at most."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What to read, and how to look at it.

    Attributes:
        num_bytes: Text to read, about.
        group_field: Field of languages or domains.
        reference: Group that premiums refer to.
        progress: Told how far the sample has been read.
    """

    num_bytes: int
    group_field: str | None = None
    reference: str | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A tokenizer to measure.

    Attributes:
        label: Its name in the report.
        step: The operator.
        reads: The operator's name of its text, and the job's.
        writes: The operator's name of its ids, and the job's.
    """

    label: str
    step: Operator[Any]
    reads: tuple[str, str]
    writes: tuple[str, str]

    def meter(self, source: str, *, text_is_decoded: bool) -> TokenizerMeter:
        """Return what adds up its figures."""
        spec = self.step.outputs[self.writes[0]]
        assert spec.vocab_size is not None
        special = self.step.metadata().get("special_ids") or {}
        return TokenizerMeter(
            self.label,
            source,
            spec.vocab_size,
            np.dtype(spec.dtype).itemsize,
            sorted(special.values()) if isinstance(special, Mapping) else (),
            self.step.pieces() if isinstance(self.step, HasPieces) else None,
            text_is_decoded=text_is_decoded,
        )

    def encode(self, texts: pa.Array) -> Ragged | None:
        """Return the ids of texts; None when some are refused. ``setup`` was called before."""
        ids, refused = self.encode_some(texts)
        return None if len(refused) else ids

    def encode_some(self, texts: pa.Array) -> tuple[Ragged | None, np.ndarray]:
        """Return the ids of texts, and int64 [K], the rows that are refused and have none."""
        found: list[Ragged] = []
        refused: list[int] = []
        for start in range(0, len(texts), ENCODED_ROWS):
            part = texts.slice(start, ENCODED_ROWS)
            result, errors = call_on_rows(self.step, {self.reads[0]: part}, len(part))
            refused += [start + row for row in errors]
            if result is not None:
                found.append(result[self.writes[0]])
        return (concat(found) if found else None), np.array(refused, np.int64)


def measure_job(
    job: JobSpec,
    more: Sequence[Mapping[str, Any]],
    sampling: Sampling,
    first: TokenizerFigures | None = None,
) -> list[TokenizerFigures]:
    """Run the operators of a job on a sample of its source, and measure its text tokenizers.

    Nothing is written. The sample is the begin of partitions that lie evenly in the source: the
    same source gives the same sample.

    Args:
        job: The job.
        more: Configs of tokenizers that are measured beside those of the job, on the text that
            the first of these reads (or the field ``text``).
        sampling: What to read.
        first: Figures to compare with, where the texts are the same.

    Raises:
        SpecError: there is no text tokenizer, or no such field.
    """
    storage = Storage(job.storage_options())
    source = build_source(job.source, storage, job.source_urls())
    files = JobModelFiles(storage)
    chain = build_chain(job, source.fields, files)
    texts = [subject.reads[1] for subject in _subjects(chain, job.name)]
    if more:
        job = _with_tokenizers(job, more, texts[0] if texts else "text")
        chain = build_chain(job, source.fields, files)
    subjects = _subjects(chain, job.name)
    if not subjects:
        raise SpecError(
            f"{job.name}: no operator makes ids of text",
            hint="name tokenizers to measure with --tokenizer",
        )
    _check_group(job.name, sampling.group_field, chain.steps[-1].fields)
    wanted = {subject.reads[1] for subject in subjects} | _named(sampling.group_field)
    steps = _before_tokenizers(chain, subjects, wanted)
    partitions = list_partitions(job, source)
    for subject in subjects:
        subject.step.setup(subject.step.device)

    def parts() -> Iterator[Iterator[Batch]]:
        for place in _evenly(len(partitions)):
            yield run_steps(steps, source, partitions[place], job.batch_size)

    meters = [subject.meter(job.name, text_is_decoded=False) for subject in subjects]
    text, damaged, num_refused = subjects[0].reads[1], _Damaged(), 0
    for sampled in _sample(parts(), len(partitions), text, sampling):
        batch, ids = sampled, _encoded(subjects, sampled)
        refused = np.unique(np.concatenate([rows for _, rows in ids]))
        if len(refused):  # all are measured on the same texts: those that none refuses
            num_refused += len(refused)
            good = np.setdiff1d(np.arange(len(sampled[text])), refused)
            batch = take_batch(sampled, good)
            ids = _encoded(subjects, batch)
        damaged.add(batch[text])
        for subject, meter, (rows, _) in zip(subjects, meters, ids, strict=True):
            if rows is not None:
                meter.add(batch[subject.reads[1]], rows, _groups(batch, sampling.group_field))
    return _finish(subjects, meters, damaged, sampling, first, num_refused)


def measure_shards(
    uri: str,
    storage: Storage,
    sampling: Sampling,
    first: TokenizerFigures | None = None,
) -> list[TokenizerFigures]:
    """Measure the text tokenizers of a finished data set on a sample of its shards.

    The texts are those in the shards; where these hold none, what the ids decode to.

    Args:
        uri: The data set.
        storage: How to reach it.
        sampling: What to read.
        first: Figures to compare with, where the texts are the same.

    Raises:
        SpecError: no stored field comes from a text tokenizer whose text is there, or can be made.
    """
    data = open_data_set(uri, storage)
    fields = data.manifest.fields
    _check_group(uri, sampling.group_field, fields)
    subjects = _stored_subjects(data)
    if not subjects:
        raise SpecError(
            f"{uri}: none of {sorted(fields)} are ids of a text tokenizer whose text is stored, "
            "or that can decode",
            hint="give the job file instead: it measures on the source's texts",
        )
    figures: list[TokenizerFigures] = []
    for subject in subjects:
        subject.step.setup(subject.step.device)
        is_decoded = fields.get(subject.reads[1]) is None
        meter = subject.meter(data.manifest.name, text_is_decoded=is_decoded)
        names = [subject.writes[1]] + ([] if is_decoded else [subject.reads[1]])
        names += sorted(_named(sampling.group_field))
        text = subject.reads[1]
        damaged = _Damaged()
        parts = _shards(data, names, subject if is_decoded else None)
        for batch in _sample(parts, data.shards.num_rows, text, sampling):
            damaged.add(batch[text])
            meter.add(batch[text], batch[subject.writes[1]], _groups(batch, sampling.group_field))
        first = first or (figures[0] if figures else None)
        figures += _finish([subject], [meter], damaged, sampling, first)
    return figures


class _Damaged:
    """The begin of the sample, to be damaged."""

    def __init__(self) -> None:
        self._parts: list[pa.Array] = []
        self._num_bytes = 0

    def add(self, texts: pa.Array) -> None:
        for text in texts:
            if self._num_bytes >= DAMAGED_BYTES:
                return
            # A long document is cut: this is about tokens, and letters are looked at one by one.
            self._parts.append(text.as_py()[: DAMAGED_BYTES // 4])
            self._num_bytes += len(self._parts[-1].encode())

    @property
    def texts(self) -> pa.Array:
        return pa.array(self._parts, pa.large_string())


def _finish(
    subjects: Sequence[Subject],
    meters: Sequence[TokenizerMeter],
    damaged: _Damaged,
    sampling: Sampling,
    first: TokenizerFigures | None,
    num_refused: int = 0,
) -> list[TokenizerFigures]:
    figures: list[TokenizerFigures] = []
    for subject, meter in zip(subjects, meters, strict=True):
        base = first or (figures[0] if figures else None)
        found = meter.figures(base, sampling.reference, subject.encode, damaged.texts)
        figures.append(replace(found, refused=num_refused))
    return figures


def _subjects(chain: Chain, job_name: str) -> list[Subject]:
    """Return the tokenizers of a chain: CPU operators that read text and add rows of ids."""
    found = []
    for place, bound in enumerate(chain.steps):
        names = _text_and_ids(bound.step)
        if names is None or not isinstance(bound.step, Operator):
            continue
        text, ids = (bound.reads[names[0]], bound.writes[names[1]])
        later = [step for step in chain.steps[place:] if text in step.writes.values()]
        again = [step for step in chain.steps[place + 1 :] if ids in step.writes.values()]
        if later or again:
            field, label = (text, later[0].label) if later else (ids, again[0].label)
            raise SpecError(
                f"{job_name}: {label} replaces the field {field!r} of {bound.label}",
                hint="rename one of them (outputs), so that both are there",
            )
        found.append(
            Subject(
                _label(bound.step.config, bound.label),
                bound.step,
                (names[0], text),
                (names[1], ids),
            )
        )
    return found


def _stored_subjects(data: DataSet) -> list[Subject]:
    job = job_from_recipe(data.manifest.recipe)
    files = JobModelFiles(data.storage)
    found = []
    for config in job.operators:
        step = registry.build(config, files)
        names = _text_and_ids(step)
        if names is None:
            continue
        assert isinstance(step, Operator)
        text, ids = config.inputs.get(names[0], names[0]), config.outputs.get(names[1], names[1])
        spec = data.manifest.fields.get(text)
        is_stored = spec is not None and spec.dtype == "string"
        if ids in data.manifest.fields and (is_stored or isinstance(step, Invertible)):
            found.append(
                Subject(_label(config, config.name), step, (names[0], text), (names[1], ids))
            )
    return found


def _text_and_ids(step: Any) -> tuple[str, str] | None:
    """Return the names of the text that an operator reads and the ids that it adds, or None."""
    if not isinstance(step, Operator) or step.stage != "cpu" or len(step.inputs) != 1:
        return None
    [(text, read)] = step.inputs.items()
    ids = [name for name, spec in step.outputs.items() if spec.vocab_size and spec.is_ragged]
    return (text, ids[0]) if read.dtype == "string" and len(ids) == 1 else None


def _label(config: OperatorConfig, label: str) -> str:
    """Return a name that tells tokenizers of one kind apart."""
    file = getattr(config, "tokenizer", None)
    if not isinstance(file, str):
        return label
    parts = [part for part in file.split("/") if part not in ("tokenizer.json", "")][-2:]
    return f"{config.name}: {'/'.join(parts).removesuffix('.json') or file}"


def _with_tokenizers(job: JobSpec, more: Sequence[Mapping[str, Any]], text: str) -> JobSpec:
    configs: list[OperatorConfig] = []
    for place, raw in enumerate(more):
        cls = registry.get(str(raw.get("name")))
        try:
            config = cls.Config.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "config"
            raise SpecError(f"--tokenizer {raw['name']}: {where}: {first['msg']}") from None
        step = registry.build(config, JobModelFiles(Storage(job.storage_options())))
        names = _text_and_ids(step)
        if names is None or not isinstance(step, Operator):
            raise SpecError(
                f"--tokenizer {config.name}: it does not make ids of text",
                hint="`pipeline operators` lists those that do, of the kind text",
            )
        outputs = {name: f"{name} of tokenizer {place}" for name in step.outputs}
        inputs = {names[0]: text, **config.inputs}
        configs.append(config.model_copy(update={"inputs": inputs, "outputs": outputs}))
    return job.model_copy(update={"operators": [*job.operators, *configs]})


def _before_tokenizers(
    chain: Chain, subjects: Sequence[Subject], wanted: set[str]
) -> list[BoundStep]:
    """Return the steps that need no tokens, keeping what is wanted of their fields."""
    found, made_of_tokens = [], {subject.writes[1] for subject in subjects}
    tokenizers = [id(subject.step) for subject in subjects]
    for bound in chain.steps:
        if id(bound.step) in tokenizers or made_of_tokens & set(bound.reads.values()):
            made_of_tokens |= set(bound.writes.values())
        else:
            found.append(replace(bound, keep=bound.keep | (wanted & set(bound.fields))))
    return found


def _encoded(subjects: Sequence[Subject], batch: Batch) -> list[tuple[Ragged | None, np.ndarray]]:
    return [subject.encode_some(batch[subject.reads[1]]) for subject in subjects]


def _check_group(where: str, field: str | None, fields: Mapping[str, Any]) -> None:
    if field is None:
        return
    spec = fields.get(field)
    if spec is None or spec.shape or spec.dtype in ("binary", "pillow"):
        found = "there is none" if spec is None else f"it is {spec}"
        raise SpecError(
            f"{where}: --group {field}: expected a field of text or numbers, {found}",
            hint=f"the fields are {', '.join(sorted(fields))}",
        )


def _named(field: str | None) -> set[str]:
    return set() if field is None else {field}


def _groups(batch: Batch, field: str | None) -> pa.Array | None:
    if field is None:
        return None
    column = batch[field]
    return column if isinstance(column, pa.Array) else pa.array(column).cast(pa.large_string())


def _evenly(num: int) -> Iterator[int]:
    """Yield all of 0 .. num - 1: first some that lie evenly, then those between them."""
    step = max(num // NUM_PARTS, 1)
    for first in range(step):
        yield from range(first, num, step)


def _sample(
    parts: Iterator[Iterator[Batch]], num_parts: int, text: str, sampling: Sampling
) -> Iterator[Batch]:
    """Yield the first rows of every part, as many as its share of what is left of the sample."""
    left = sampling.num_bytes
    for place, part in enumerate(parts):
        quota = max(left // max(min(num_parts, NUM_PARTS) - place, 1), 1)
        for batch in part:
            lengths = np.cumsum(_num_bytes(batch[text]))
            rows = min(int(np.searchsorted(lengths, quota)) + 1, len(lengths))
            if rows:
                yield take_batch(batch, np.arange(rows))
                quota, left = quota - int(lengths[rows - 1]), left - int(lengths[rows - 1])
            if sampling.progress is not None:
                sampling.progress(sampling.num_bytes - max(left, 0), sampling.num_bytes)
            if quota <= 0:
                break
        if left <= 0:
            return


def _num_bytes(texts: pa.Array) -> np.ndarray:
    import pyarrow.compute as pc

    lengths: np.ndarray = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    return lengths


def _shards(
    data: DataSet, names: Sequence[str], decoder: Subject | None
) -> Iterator[Iterator[Batch]]:
    paths = data.shards["path"]
    for place in _evenly(data.shards.num_rows):
        yield _record_batches(data, paths[place].as_py(), names, decoder)


def _record_batches(
    data: DataSet, path: str, names: Sequence[str], decoder: Subject | None
) -> Iterator[Batch]:
    uri = data.shard_uri(path)
    try:
        with data.storage.open_read(uri) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                found = reader.get_batch(number)
                for start in range(0, found.num_rows, ENCODED_ROWS):
                    rows = found.slice(start, ENCODED_ROWS)
                    batch: dict[str, Column] = {name: _column(rows.column(name)) for name in names}
                    if decoder is not None:
                        ids = {decoder.writes[0]: batch[decoder.writes[1]]}
                        texts = decoder.step.decode(ids)  # type: ignore[attr-defined]
                        batch[decoder.reads[1]] = texts[decoder.reads[0]]
                    yield batch
    except (pa.ArrowException, KeyError) as error:
        raise IntegrityError(
            f"{uri}: not a shard ({error})", hint="`pipeline verify` tells what is damaged"
        ) from None


def _column(array: pa.Array) -> Column:
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        offsets = array.offsets.to_numpy().astype(np.int64)
        values, shape = array.values, [-1]
        while pa.types.is_fixed_size_list(values.type):
            shape.append(values.type.list_size)
            values = values.flatten()
        dense = values.to_numpy().reshape(shape)
        return Ragged(dense[offsets[0] : offsets[-1]], offsets - offsets[0])
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return array.cast(pa.large_string())
    return array.to_numpy()
