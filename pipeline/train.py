"""Train a tokenizer on a sample of a corpus, and say with its files how it came about."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators import registry
from operators.base import Batch
from pipeline.corpus_sample import CorpusSample
from pipeline.errors import (
    AlreadyCommittedError,
    BudgetExceededError,
    FingerprintMismatchError,
    IntegrityError,
    SpecError,
)
from pipeline.model_cache import JobModelFiles
from pipeline.plan import Chain, build_chain, list_partitions, plan_digest
from pipeline.protocols import Partition, Source
from pipeline.runner import SHARE_FROM_SAMPLES, differences, libraries
from pipeline.sources import build_source
from pipeline.spec import TrainSpec
from pipeline.stages import PartitionState, read_through
from pipeline.storage import NotFoundError, Storage, join

PROVENANCE = "provenance.json"
"""Written last: a folder with it holds a whole tokenizer."""

PROVENANCE_VERSION = 1
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PreparedTraining:
    """A training job that is ready to run: everything is checked, nothing is written.

    Attributes:
        job: The job.
        storage: How to reach source and output.
        source: The source.
        output: The output folder's URI.
        chain: The operators before the trainer.
        trainer: What learns.
        partitions: The plan.
        basis: Everything that the tokenizer follows from, as JSON values.
    """

    job: TrainSpec
    storage: Storage
    source: Source
    output: str
    chain: Chain
    trainer: Any
    partitions: Sequence[Partition]
    basis: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the basis."""
        return hashlib.sha256(json.dumps(self.basis, sort_keys=True).encode()).hexdigest()

    @property
    def warnings(self) -> list[str]:
        """What the operators want the user to be told."""
        return [str(item["warning"]) for item in self.basis["operators"] if item.get("warning")]


@dataclass(frozen=True, slots=True)
class Trained:
    """The outcome.

    Attributes:
        output: The folder.
        provenance: The content of its ``provenance.json``.
        is_new: False when an earlier run of the same job had written it.
    """

    output: str
    provenance: Mapping[str, Any]
    is_new: bool


def prepare(job: TrainSpec, output: str | None = None) -> PreparedTraining:
    """Check a training job against its source and operators; writes nothing.

    Raises:
        SpecError: the operators do not fit together, or give no text.
        SetupError: the source cannot be reached.
    """
    storage = Storage(job.storage_options())
    source = build_source(job.source, storage, job.source_urls())
    chain = build_chain(job, source.fields, JobModelFiles(storage))
    for i, bound in enumerate(chain.steps):
        if bound.step.stage != "cpu":
            raise SpecError(
                f"{job.place('operators', i)} ({bound.label}): needs a device; only operators on "
                "the CPU can stand before a trainer"
            )
    spec = chain.output[job.text]
    if spec.dtype != "string":
        raise SpecError(
            f"{job.place('text')}: expected a field of text, but {job.text!r} is {spec}",
            hint=f"there are {', '.join(n for n, s in _fields(chain).items() if s == 'string')}",
        )
    trainer = registry.trainer(job.recipe()["trainer"]["name"])(job.trainer)
    partitions = list_partitions(job, source)
    basis = {
        "version": PROVENANCE_VERSION,
        "recipe": job.recipe(),
        "operators": chain.identities(),
        "trainer": {"version": trainer.version, **trainer.identity()},
        "plan_sha256": plan_digest(partitions),
    }
    uri = (output or job.output_uri()).rstrip("/")
    return PreparedTraining(job, storage, source, uri, chain, trainer, partitions, basis)


def train(prepared: PreparedTraining, progress: Progress, *, fresh: bool = False) -> Trained:
    """Train and write the tokenizer, or return the one that the same job has written before.

    Args:
        prepared: The job.
        progress: Told what is being done, how much of it is done, and how much there is.
        fresh: Replace what an earlier training wrote there, whatever its job was.

    Raises:
        FingerprintMismatchError: the folder holds the result of another training.
        SpecError: it holds files that no training wrote, or the sample is empty.
        BudgetExceededError: too many samples are unusable.
    """
    storage, output = prepared.storage, prepared.output
    before = _read_provenance(storage, output)
    if before is None:
        _check_empty(storage, output)
        storage.check_exclusive(join(output, PROVENANCE))
    elif not fresh:
        _check_same(prepared, before)
        return Trained(output, before, is_new=False)
    with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
        sample = CorpusSample(prepared.job.sample, str(Path(folder) / "sample.arrow"))
        with sample:
            unusable = _fill(sample, prepared, progress)
        _check_filled(sample, prepared.job)
        files = prepared.trainer.train(sample.documents, progress)
    provenance = {
        "fingerprint": prepared.fingerprint,
        **prepared.basis,
        "sources": _sources(prepared.partitions),
        "sample": {
            "documents": sample.num_documents,
            "bytes": sample.num_bytes,
            "documents_seen": sample.num_seen,
            "unusable": unusable,
        },
        "libraries": libraries(),
        "files": {
            name: {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in sorted(files.items())
        },
    }
    if before is not None:
        storage.remove(join(output, PROVENANCE))  # first: what is half removed is no tokenizer
        for name in set(before["files"]) - set(files):
            storage.remove(join(output, name))
    for name, data in files.items():
        storage.write(join(output, name), data)
    text = json.dumps(provenance, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        storage.create_exclusive(join(output, PROVENANCE), text.encode())
    except AlreadyCommittedError:
        raise AlreadyCommittedError(
            f"{join(output, PROVENANCE)}: another training wrote it meanwhile",
            hint="let one finish, then run the command again with --fresh",
        ) from None
    return Trained(output, provenance, is_new=True)


def _fields(chain: Chain) -> dict[str, str]:
    fields = chain.steps[-1].fields if chain.steps else chain.source_fields
    return {name: str(spec) for name, spec in fields.items() if name != "key"}


def _read_provenance(storage: Storage, output: str) -> Mapping[str, Any] | None:
    uri = join(output, PROVENANCE)
    try:
        found = json.loads(storage.read(uri))
        if found["version"] != PROVENANCE_VERSION:
            raise ValueError(f"version {found['version']}")
        if not isinstance(found["files"], dict):
            raise TypeError("files are no mapping")
    except NotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{uri}: not what this program writes there ({error})",
            hint="choose another output folder, or remove it by hand",
        ) from None
    return dict(found)


def _check_empty(storage: Storage, output: str) -> None:
    """Refuse a folder with files that may be somebody's."""
    for entry in storage.walk(storage.resolve(output)):
        name = entry.uri.rsplit("/", 1)[1]
        if not (name.startswith(".") and name.endswith(".tmp")):  # left by a run that was killed
            raise SpecError(
                f"{entry.uri}: the output folder is not empty, and has no {PROVENANCE} of a "
                "finished training",
                hint="choose another output folder, or remove the file by hand",
            )


def _check_same(prepared: PreparedTraining, before: Mapping[str, Any]) -> None:
    if before["fingerprint"] != prepared.fingerprint:
        was = {name: before.get(name) for name in prepared.basis}
        changed = "\n".join(f"  {line}" for line in differences(was, dict(prepared.basis)))
        raise FingerprintMismatchError(
            f"{prepared.output} holds a tokenizer of another training:\n{changed}",
            hint="take the change back, choose another --output, or replace it with --fresh",
        )
    for name, about in before["files"].items():
        uri = join(prepared.output, name)
        found = prepared.storage.stat(uri)
        if found is None or found.num_bytes != about["num_bytes"]:
            size = "is gone" if found is None else f"has {found.num_bytes:,} bytes"
            raise IntegrityError(
                f"{uri}: {size}, {PROVENANCE} says {about['num_bytes']:,} bytes",
                hint="train again with --fresh",
            )


def _fill(sample: CorpusSample, prepared: PreparedTraining, progress: Progress) -> int:
    """Read the corpus and return how many samples of it are unusable."""
    for bound in prepared.chain.steps:
        bound.step.setup(bound.step.device)
    total = sum(partition.num_bytes for partition in prepared.partitions)
    done = num_input = num_bad = 0
    for partition in prepared.partitions:
        state = PartitionState(partition, {"read": 1, **_threads(prepared.chain)})
        progress("reading", done, total)
        for batch in _batches(prepared, state):
            sample.add(batch["key"], batch[prepared.job.text])
            progress("reading", done + state.snapshot()["read"].num_bytes, total)
        done += partition.num_bytes
        num_input += state.num_input
        num_bad += len(state.rejected)
        _check_budget(prepared.job, num_bad, num_input, state, at_end=False)
        last = state
    progress("reading", total, total)
    if prepared.partitions:
        _check_budget(prepared.job, num_bad, num_input, last, at_end=True)
    return num_bad


def _threads(chain: Chain) -> dict[str, int]:
    return {"cpu": 1} if chain.steps else {}


def _batches(prepared: PreparedTraining, state: PartitionState) -> Iterator[Batch]:
    chunk_size = prepared.source.chunk_size
    return read_through(prepared.chain.steps, prepared.source, state, 1, chunk_size)


def _check_budget(
    job: TrainSpec, bad: int, seen: int, state: PartitionState, *, at_end: bool
) -> None:
    budget = job.max_bad_samples
    if isinstance(budget, int):
        exceeded, allowed = bad > budget, f"{budget:,}"
    else:
        exceeded = (at_end or seen >= SHARE_FROM_SAMPLES) and bad > budget * seen
        allowed = f"{budget:.3%} of {seen:,}"
    if exceeded:
        example = next((f"; {r.uri}: {r.key}: {r.step}: {r.reason}" for r in state.rejected), "")
        raise BudgetExceededError(
            f"{bad:,} samples are unusable, max_bad_samples allows {allowed}{example}",
            hint="mend the input, or raise the limit",
        )


def _check_filled(sample: CorpusSample, job: TrainSpec) -> None:
    if sample.num_documents:
        return
    if not sample.num_seen:
        raise SpecError(
            f"{job.place('source')}: there are no documents to train on",
            hint="check the URLs, and that no filter among the operators drops everything",
        )
    raise SpecError(
        f"{job.place('sample')}: of {sample.num_seen:,} documents none is in the sample",
        hint="ask for more documents or bytes, or take another seed",
    )


def _sources(partitions: Sequence[Partition]) -> list[dict[str, Any]]:
    """Return name and size of every source file, in the order of reading."""
    files = {item.file.name: item.file.num_bytes for part in partitions for item in part.ranges}
    return [{"name": name, "num_bytes": size} for name, size in files.items()]
