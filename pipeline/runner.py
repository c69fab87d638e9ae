"""Joins plan, engine, commits and manifest: the one place that knows the life of a run.

A run is: plan once and write it down; process what the ledger lacks; commit each partition; write
manifest and report when none is left. Killed anywhere, the same call goes on.
"""

import json
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from operators.base import Resources
from pipeline import decisions, lease, ledger, retries
from pipeline.committer import Committer
from pipeline.decisions import Decision, read_decisions, warnings_of, write_decision
from pipeline.engines.inline import InlineEngine
from pipeline.errors import (
    AlreadyCommittedError,
    BudgetExceededError,
    ContractError,
    DecisionError,
    FingerprintMismatchError,
    IntegrityError,
    SpecError,
)
from pipeline.finish import JOB, REPORT, finish
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.manifest import (
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
)
from pipeline.model_cache import JobModelFiles
from pipeline.plan import (
    PLAN,
    Chain,
    Estimate,
    build_chain,
    estimate,
    fingerprint,
    list_partitions,
    plan_digest,
    read_plan,
    write_plan,
)
from pipeline.protocols import (
    Engine,
    EngineTask,
    Listener,
    Partition,
    PartitionResult,
    Source,
)
from pipeline.report.codebook import CODEBOOK
from pipeline.report.summary import RunSummary
from pipeline.sources import build_source
from pipeline.spec import JobSpec, RunSpec, WorkerRange
from pipeline.stages import WorkerTask
from pipeline.storage import Entry, NotFoundError, Storage, join

LIBRARIES = (
    *("numpy", "numba", "pillow", "pyarrow", "torch", "diffusers", "transformers"),
    *("tokenizers", "fastokens", "tiktoken", "sentencepiece", "regex"),
)
"""What may make bytes. Of these the manifest lists those that are installed."""

_OURS = {
    *("shards", "quarantine", ledger.FOLDER, lease.FOLDER, retries.FOLDER, decisions.FOLDER),
    *(PLAN, JOB, REPORT, MANIFEST, INDEX, CODEBOOK, "preview.png"),
}
SHARE_FROM_SAMPLES = 1_000
"""A share of bad samples is judged from this many input samples on, and at the end."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that is ready to run: everything is checked, nothing is written.

    Attributes:
        job: The job.
        storage: How to reach source and output.
        urls: The source's URLs, resolved.
        source: The source.
        output: The output folder's URI.
        model_files: Where the operators find model files.
        chain: The operators.
        identities: What identifies them.
        fingerprint: Of the recipe.
    """

    job: JobSpec
    storage: Storage
    urls: tuple[str, ...]
    source: Source
    output: str
    model_files: JobModelFiles
    chain: Chain
    identities: Sequence[Mapping[str, Any]]
    fingerprint: str

    @property
    def warnings(self) -> list[str]:
        """What the user must be told: of the operators, and how images are prepared."""
        of_operators = [str(item["warning"]) for item in self.identities if item.get("warning")]
        return [*of_operators, *self.chain.warnings]

    def task(self, worker: str) -> WorkerTask:
        """Return what a worker must be told; it may have another current folder."""
        output = self.storage.resolve(self.output)
        return WorkerTask(
            self.job,
            self.fingerprint,
            output,
            worker,
            self.storage,
            self.urls,
            self.model_files.known(),
        )


class Listeners:
    """Several listeners as one; each hears everything, in their order."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def waiting(self, message: str) -> None:
        """See ``Listener.waiting``."""
        for listener in self._listeners:
            listener.waiting(message)

    def decided(self, warning: str) -> None:
        """See ``Listener.decided``."""
        for listener in self._listeners:
            listener.decided(warning)

    def begin(self, partitions: Sequence[Partition], done: Set[int], engine: Engine) -> None:
        """See ``Listener.begin``."""
        for listener in self._listeners:
            listener.begin(partitions, done, engine)

    def committed(self, result: PartitionResult) -> None:
        """See ``Listener.committed``."""
        for listener in self._listeners:
            listener.committed(result)


@dataclass(slots=True)
class RunState:
    """Where a run stands.

    Attributes:
        prepared: The job.
        partitions: The plan.
        started_at: ``time.time()`` of this run's beginning.
        num_resumed: How many partitions were committed when this run began.
        num_input: Samples read in partitions that are done.
        quarantined: ``step: error`` -> samples of them that could not be used.
    """

    prepared: Prepared
    partitions: Sequence[Partition]
    started_at: float
    num_resumed: int = 0
    num_input: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)

    def add(self, result: PartitionResult) -> None:
        """Count a partition that is done."""
        self.num_input += result.num_input
        self.quarantined.update(result.quarantined)


def prepare(job: JobSpec, output: str | None = None) -> Prepared:
    """Check a job against its source and operators; writes nothing.

    Raises:
        SpecError: the operators do not fit together.
        SetupError: the source or weights cannot be reached.
    """
    storage = Storage(job.storage_options())
    urls = tuple(job.source_urls())
    source = build_source(job.source, storage, urls)
    model_files = JobModelFiles(storage)
    chain = build_chain(job, source.fields, model_files)
    identities = chain.identities()
    uri = (output or job.output_uri()).rstrip("/")
    digest = fingerprint(job, identities)
    return Prepared(job, storage, urls, source, uri, model_files, chain, identities, digest)


def preview_plan(prepared: Prepared) -> tuple[list[Partition], Estimate]:
    """Return the partitions that a run would process, and an estimate; writes nothing."""
    partitions = list_partitions(prepared.job, prepared.source)
    return partitions, estimate(prepared.chain, prepared.source, partitions)


def run(
    prepared: Prepared,
    *,
    engine: str = "ray",
    address: str | None = None,
    workers: int | WorkerRange | None = None,
    fresh: bool = False,
    listener: Listener | None = None,
) -> RunSummary:
    """Run a job, or go on with it, until its manifest is written.

    Args:
        prepared: The job.
        engine: ``inline`` or ``ray``.
        address: Ray cluster to join; None starts a private one.
        workers: Number of workers, or a range; None is the job's ``run.workers``.
        fresh: Remove what is in the output folder first.
        listener: Hears of the progress.

    Raises:
        TokenmillError: what ended the run. What is committed stays.
    """
    storage, output = prepared.storage, prepared.output
    if fresh:
        _removable(storage, output)  # before anything is written there
    planned = None
    if fresh or storage.stat(join(output, JOB)) is None:
        planned = list_partitions(prepared.job, prepared.source)  # writes nothing, may take long
        storage.check_exclusive(join(output, JOB))  # lease and commits depend on it
    waiting = None if listener is None else listener.waiting
    with Lease(storage, output, waiting=waiting) as held:
        if fresh:
            remove_output(storage, output)
        while True:
            made = read_decisions(storage, output)
            decided = _with_decisions(prepared, made)
            if listener is not None:
                for warning in warnings_of(made):
                    listener.decided(warning)
            try:
                return _run(decided, planned, made, held, engine, address, workers, listener)
            except DecisionError as error:
                held.check()
                _decide(decided, made, error)
                planned = None


def _run(
    prepared: Prepared,
    planned: list[Partition] | None,
    made_decisions: Sequence[Decision],
    held: Lease,
    engine: str,
    address: str | None,
    workers: int | WorkerRange | None,
    listener: Listener | None,
) -> RunSummary:
    partitions = _begin(prepared, planned, made_decisions)
    retried = retries.read_retries(prepared.storage, prepared.output)
    others = [retry.fingerprint for retry in retried]
    records = Ledger(prepared.storage, prepared.output, prepared.fingerprint, others)
    state = RunState(prepared, partitions, time.time())
    records.load(state.add)
    state.num_resumed = len(records.committed)
    pending = [partition for partition in partitions if partition.index not in records.committed]
    pending.sort(key=lambda p: p.num_bytes, reverse=True)  # the largest first: no long tail
    if pending:
        _check_budget(state, at_end=False)
        made = make_engine(prepared, engine, address, workers)
        try:
            if listener is not None:
                listener.begin(partitions, records.committed, made)
            with Committer(records) as commits:
                _process(state, made, pending, commits, held, listener)
        finally:
            made.close()
    _check_budget(state, at_end=True)
    held.check()
    if made_decisions:
        _remove_discarded(prepared, records)
    return finish(
        prepared.storage,
        prepared.output,
        prepared.chain.output,
        len(partitions),
        records,
        retried,
        num_resumed=state.num_resumed,
        started_at=state.started_at,
        engine=engine,
    )


def remove_output(storage: Storage, output: str) -> None:
    """Remove a data set and all traces of its run but the lease, which the caller holds.

    Raises:
        SpecError: the folder holds files that no run writes; nothing was removed.
    """
    # The manifest goes first: a half-removed data set must not look finished. Then the decisions:
    # without the job they would hold for the next one.
    for entry in sorted(_removable(storage, output), key=_removed_at):
        storage.remove(entry.uri)


def _removed_at(entry: Entry) -> int:
    folder, name = entry.uri.rsplit("/", 2)[-2:]
    return 0 if name == MANIFEST else 1 if folder == decisions.FOLDER else 2


def _removable(storage: Storage, output: str) -> list[Entry]:
    """Return what ``remove_output`` removes."""
    output = storage.resolve(output)  # as the walk gives names: "./out" would not match "out"
    entries = list(storage.walk(output))
    foreign = [entry.uri for entry in entries if not _is_ours(entry.uri[len(output) + 1 :])]
    if foreign:
        raise SpecError(
            f"{output}: --fresh would remove {foreign[0]}, which no run of this program wrote",
            hint="choose another output folder, or remove it by hand",
        )
    held = join(output, lease.FOLDER) + "/"
    return [entry for entry in entries if not entry.uri.startswith(held)]


def _is_ours(path: str) -> bool:
    top = path.split("/", 1)[0]
    # A killed run leaves temporary files: ``.manifest.json.x1y2.tmp``.
    left_over = top.startswith(".") and top.endswith(".tmp")
    return top in _OURS or (left_over and top[1:].rsplit(".", 2)[0] in _OURS)


def with_decisions(job: JobSpec, made: Sequence[Decision]) -> JobSpec:
    """Return a job with the settings that a run decided on; another operator's are left alone."""
    operators = list(job.operators)
    for decision in made:
        if decision.step < len(operators) and operators[decision.step].name == decision.name:
            config = operators[decision.step]
            values = {**config.model_dump(), decision.field: decision.value}
            operators[decision.step] = type(config).model_validate(values)
    return job.model_copy(update={"operators": operators})


def _with_decisions(prepared: Prepared, made: Sequence[Decision]) -> Prepared:
    job = with_decisions(prepared.job, made)
    return prepared if job == prepared.job else prepare(job, prepared.output)


def _decide(prepared: Prepared, made: Sequence[Decision], error: DecisionError) -> None:
    """Write down that an operator's setting has another value from now on.

    Raises:
        ContractError: it was decided before.
    """
    labels = [bound.label for bound in prepared.chain.steps]
    step = labels.index(error.step)
    config = prepared.job.operators[step]
    known = any((old.step, old.field) == (step, error.field) for old in made)
    if known or getattr(config, error.field) == error.value:
        raise ContractError(
            f"{error.step}: {error.field}: {error.value} does not mend what it is to mend: "
            f"{error.message}",
            hint="this is a defect of the operator",
        ) from error
    decision = Decision(
        number=len(made) + 1,
        step=step,
        name=config.name,
        field=error.field,
        value=error.value,
        warning=f"{error.warning}: {error.field}: {error.value} is used for the whole run",
        found=error.found,
        discards=prepared.fingerprint,
        fingerprint="",
    )
    after = _with_decisions(prepared, [decision])
    decision = replace(decision, fingerprint=after.fingerprint)
    with suppress(AlreadyCommittedError):  # another driver was faster: its decision is read next
        write_decision(prepared.storage, prepared.output, decision)


def _remove_discarded(prepared: Prepared, records: Ledger) -> None:
    """Remove shards and quarantine files that no record names: of before a decision.

    Most were replaced by those of the same names.
    """
    storage, output = prepared.storage, prepared.storage.resolve(prepared.output)
    named: set[str] = set()
    for record in records.records():
        named.update(shard.path for shard in record.shards)
        if record.quarantine is not None:
            named.add(record.quarantine.path)
    for folder in ("shards", "quarantine"):
        for entry in list(storage.walk(join(output, folder))):
            if entry.uri[len(output) + 1 :] not in named:
                storage.remove(entry.uri)


def _begin(
    prepared: Prepared, planned: list[Partition] | None, made: Sequence[Decision]
) -> list[Partition]:
    """Write down plan and job, or read them back; refuse a folder of another recipe."""
    storage, output = prepared.storage, prepared.output
    try:
        written = json.loads(storage.read(join(output, JOB)))
        was, plan_sha256 = written["fingerprint"], written["plan_sha256"]
    except NotFoundError:
        return _write_down(prepared, planned, made)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{join(output, JOB)}: not what a run wrote there ({error})",
            hint="start again with --fresh",
        ) from None
    holds = made[-1].fingerprint if made else was
    if holds != prepared.fingerprint:
        changed = differences(
            {name: written.get(name) for name in ("format_version", "recipe", "operators")},
            what_changes_bytes(prepared),
        )
        raise FingerprintMismatchError(
            f"{output} belongs to another recipe:\n" + "\n".join(f"  {line}" for line in changed),
            hint="take the change back, choose another --output, or start again with --fresh",
        )
    partitions = read_plan(storage, output, prepared.urls)
    if plan_digest(partitions) != plan_sha256:
        raise IntegrityError(
            f"{join(output, PLAN)}: not the plan that the run began with",
            hint="start again with --fresh",
        )
    if was != holds:  # a decision was made, and nothing yet with it
        storage.write(join(output, JOB), _job_bytes(prepared, plan_sha256, made))
    return partitions


def _write_down(
    prepared: Prepared, planned: list[Partition] | None, made: Sequence[Decision]
) -> list[Partition]:
    job, storage, output = prepared.job, prepared.storage, prepared.output
    partitions = list_partitions(job, prepared.source) if planned is None else planned
    digest = write_plan(storage, output, partitions)
    try:
        storage.create_exclusive(join(output, JOB), _job_bytes(prepared, digest, made))
    except AlreadyCommittedError:
        return _begin(prepared, None, made)  # another driver was faster: take its plan
    return partitions


def _job_bytes(prepared: Prepared, plan_sha256: str, made: Sequence[Decision]) -> bytes:
    content = {
        "fingerprint": prepared.fingerprint,
        **what_changes_bytes(prepared),
        "plan_sha256": plan_sha256,
        "libraries": libraries(),
        **({"decisions": warnings_of(made)} if made else {}),
    }
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False).encode()


def what_changes_bytes(prepared: Prepared) -> dict[str, Any]:
    """Return what the fingerprint is made of."""
    return {
        "format_version": FORMAT_VERSION,
        "recipe": prepared.job.recipe(),
        "operators": list(prepared.identities),
    }


def make_engine(
    prepared: Prepared, name: str, address: str | None, workers: int | WorkerRange | None
) -> Engine:
    """Return the engine of that name, for a job; nothing is started yet."""
    job = prepared.job
    if name != "inline":
        prepared.model_files.fetch_all()
    count = workers if workers is not None else job.run.workers
    return engine_for(
        prepared.task(name),
        _resources(prepared.chain.resources, job.run),
        name,
        address,
        None if isinstance(count, str) else count,
    )


def engine_for(
    task: EngineTask,
    resources: Resources,
    name: str,
    address: str | None,
    workers: int | WorkerRange | None,
) -> Engine:
    """Return the engine of that name, for any task; nothing is started yet.

    Args:
        task: What the workers do.
        resources: What one of them needs.
        name: ``inline`` or ``ray``.
        address: Ray cluster to join; None starts a private one.
        workers: How many; None is as many as fit.
    """
    if name == "inline":
        return InlineEngine(task, task.placement.max_attempts)
    from pipeline.engines.ray import RayEngine

    return RayEngine(task, resources, workers, address)


def _resources(needs: Resources, run: RunSpec) -> Resources:
    """Return what a worker asks the cluster for.

    Decode threads count as cores: on a CPU job the default is one worker per core.
    """
    gpus = needs.gpus if run.num_gpus is None else run.num_gpus
    return replace(needs, cpus=max(needs.cpus, float(run.cpu_threads)), gpus=gpus)


def _process(
    state: RunState,
    engine: Engine,
    pending: Sequence[Partition],
    commits: Committer,
    held: Lease,
    listener: Listener | None,
) -> None:
    for result in commit_results(engine, pending, commits, held, listener):
        state.add(result)
        _check_budget(state, at_end=False)


def commit_results(
    engine: Engine,
    pending: Sequence[Partition],
    commits: Committer,
    held: Lease,
    listener: Listener | None,
) -> Iterator[PartitionResult]:
    """Process partitions, and yield each result when it was handed to the committer.

    Raises:
        TokenmillError: what ended the work; or the lease is lost.
    """
    for result in engine.run(pending):
        held.check()
        if result is None:
            continue
        check_counts(result)
        commits.add(result)
        if listener is not None:
            listener.committed(result)
        yield result


def check_counts(result: PartitionResult) -> None:
    """Raise IntegrityError when a partition's samples do not add up."""
    total = result.num_written + result.num_filtered + result.num_quarantined
    if total != result.num_input:
        raise IntegrityError(
            f"partition {result.partition}: {result.num_input:,} samples read, but "
            f"{result.num_written:,} written + {result.num_filtered:,} filtered + "
            f"{result.num_quarantined:,} quarantined = {total:,}",
            hint="this is a defect of the program; nothing was committed",
        )


def _check_budget(state: RunState, *, at_end: bool) -> None:
    budget = state.prepared.job.run.max_bad_samples
    bad, seen = state.quarantined.total(), state.num_input
    if isinstance(budget, int):
        exceeded = bad > budget
        allowed = f"{budget:,}"
    else:
        judged = at_end or seen >= SHARE_FROM_SAMPLES
        exceeded = judged and bad > budget * seen
        allowed = f"{budget:.3%} of {seen:,}"
    if exceeded:
        most = ", ".join(f"{name} ({count:,})" for name, count in state.quarantined.most_common(3))
        raise BudgetExceededError(
            f"{bad:,} samples are in the quarantine, run.max_bad_samples allows {allowed}: {most}",
            hint=f"look at {join(state.prepared.output, 'quarantine')}, then mend the input or "
            "raise the limit, and run the same command again",
        )


def libraries() -> dict[str, str]:
    """Return package -> version of what makes bytes."""
    found = {"python": platform.python_version(), "tokenmill": _version("tokenmill")}
    for name in LIBRARIES:
        found[name] = _version(name)
    return {name: text for name, text in found.items() if text}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def differences(was: Any, now: Any, path: str = "") -> list[str]:
    """Return ``field: was -> now`` for every leaf that differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        found = []
        for key in sorted({*was, *now}):
            found += differences(was.get(key), now.get(key), f"{path}.{key}" if path else key)
        return found
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        found = []
        for i, (a, b) in enumerate(zip(was, now, strict=True)):
            found += differences(a, b, f"{path}[{i}]")
        return found
    return [] if was == now else [f"{path}: {json.dumps(was)} -> {json.dumps(now)}"]
