"""Try the quarantined samples of a finished data set again, and add those that work now."""

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipeline import runner
from pipeline.committer import Committer
from pipeline.decisions import read_decisions
from pipeline.errors import FingerprintMismatchError, SpecError
from pipeline.finish import JOB, finish
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.manifest import MANIFEST, open_data_set
from pipeline.plan import read_plan
from pipeline.protocols import Listener, Partition, PartitionResult
from pipeline.retries import Retry, drop_retry, plan_retry, read_retries, superseded, write_retry
from pipeline.runner import Prepared
from pipeline.spec import JobSpec, WorkerRange, job_from_recipe
from pipeline.storage import Storage, join


@dataclass(slots=True)
class Outcome:
    """What a retry did.

    Attributes:
        output: The data set.
        tried: Samples of the quarantine.
        read: Samples that they were; more, where a damaged file hid some.
        recovered: Rows that were added.
        filtered, quarantined: Reason -> samples.
    """

    output: str
    tried: int = 0
    read: int = 0
    recovered: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)

    def add(self, result: PartitionResult) -> None:
        """Count a partition of the retry."""
        self.read += result.num_input
        self.recovered += result.num_written
        self.filtered.update(result.filtered)
        self.quarantined.update(result.quarantined)


def prepare(output: str, storage: Storage, job: JobSpec | None = None) -> Prepared:
    """Check a retry of a data set; writes nothing.

    Args:
        output: The data set.
        storage: How to reach it.
        job: The job that made it, with what was mended in its operators, and with settings of
            ``run`` and ``storage``; None takes the recipe from the data set.

    Raises:
        NotFoundError: there is no finished data set.
        SpecError: the job is not of that data set.
    """
    data = open_data_set(output, storage)
    recipe = data.manifest.recipe
    if job is not None:
        # What the run decided of its operators holds for what is added to it, too.
        job = runner.with_decisions(job, read_decisions(storage, data.uri))
        for part in ("name", "source", "shards", "limit", "batch_size"):
            if job.recipe()[part] != recipe[part]:
                raise SpecError(
                    f"{job.place(part)}: {json.dumps(job.recipe()[part])}, the data set was made "
                    f"with {json.dumps(recipe[part])}",
                    hint="a retry may differ in its operators alone",
                )
    prepared = runner.prepare(job if job is not None else job_from_recipe(recipe), data.uri)
    if dict(prepared.chain.output) != dict(data.manifest.fields):
        raise SpecError(
            f"{data.uri}: the operators write {_fields(prepared.chain.output)} now, the data set "
            f"has {_fields(data.manifest.fields)}",
            hint="run the job anew with another --output",
        )
    return prepared


def retry(
    prepared: Prepared,
    *,
    engine: str = "ray",
    address: str | None = None,
    workers: int | WorkerRange | None = None,
    listener: Listener | None = None,
) -> Outcome:
    """Try the quarantined samples again, or go on with a retry that was stopped.

    What was written before stays as it is; new shards stand behind it in the index.

    Args:
        prepared: The data set; see ``prepare``.
        engine: ``inline`` or ``ray``.
        address: Ray cluster to join; None starts a private one.
        workers: As for ``runner.run``.
        listener: Hears of the progress.

    Raises:
        TokenmillError: what ended it. What is committed stays.
    """
    storage, output = prepared.storage, prepared.output
    started_at = time.time()
    waiting = None if listener is None else listener.waiting
    with Lease(storage, output, waiting=waiting) as held:
        data = open_data_set(output, storage)
        plan = read_plan(storage, output, prepared.urls)
        retries = read_retries(storage, output, prepared.urls)
        written = json.loads(storage.read(join(output, JOB)))
        others = {written["fingerprint"], *(found.fingerprint for found in retries)}
        records = Ledger(storage, output, prepared.fingerprint, others)
        quarantined: dict[int, PartitionResult] = {}
        outcomes: dict[int, PartitionResult] = {}

        def look(result: PartitionResult) -> None:
            if result.quarantine is not None:
                quarantined[result.partition] = result
            if result.partition >= len(plan):
                outcomes[result.partition] = result

        records.load(look)
        kept = [found for found in retries if not found.is_dropped]
        if kept and not kept[-1].is_finished(records.committed):
            now = kept[-1]
            _check_same(now, prepared)
        elif len(kept) > len(data.manifest.retries):
            now = kept[-1]  # it was stopped between its last commit and the manifest
        else:
            planned = _plan(prepared, plan, retries, quarantined)
            if planned is None:
                return Outcome(output)
            now = planned
            write_retry(storage, output, now)
            retries.append(now)
        outcome = Outcome(output, now.samples)
        committed = records.committed
        pending = [part for part in now.partitions if part.index not in committed]
        for part in now.partitions:
            if part.index in outcomes:
                outcome.add(outcomes[part.index])
        num_resumed = len(committed)
        if pending:
            made = runner.make_engine(prepared, engine, address, workers)
            try:
                if listener is not None:
                    everything = [*plan, *(part for r in retries for part in r.partitions)]
                    listener.begin(everything, committed, made)
                with Committer(records) as commits:
                    for result in runner.commit_results(made, pending, commits, held, listener):
                        outcome.add(result)
            finally:
                made.close()
        held.check()
        finish(
            storage,
            output,
            prepared.chain.output,
            len(plan),
            records,
            retries,
            num_resumed=num_resumed,
            started_at=started_at,
            engine=engine,
        )
    return outcome


def drop(output: str, storage: Storage) -> int:
    """Give up a retry that is not finished; return its number.

    What it committed is taken back, and `gc` removes its shards.

    Raises:
        SpecError: there is none.
    """
    with Lease(storage, output):
        open_data_set(output, storage)
        written = json.loads(storage.read(join(output, JOB)))
        retries = read_retries(storage, output)
        others = [found.fingerprint for found in retries]
        records = Ledger(storage, output, written["fingerprint"], others)
        records.load(lambda _: None)
        kept = [found for found in retries if not found.is_dropped]
        if not kept or kept[-1].is_finished(records.committed):
            raise SpecError(f"{output}: no retry of it is under way", hint="there is none to drop")
        committed = [p.index for p in kept[-1].partitions if p.index in records.committed]
        if committed:
            records.withdraw(committed)
        drop_retry(storage, output, kept[-1])
    return kept[-1].number


def _plan(
    prepared: Prepared,
    plan: list[Partition],
    retries: list[Retry],
    quarantined: dict[int, PartitionResult],
) -> Retry | None:
    """Plan what is left in the quarantine; None when nothing is."""
    taken_over = superseded(found for found in retries if not found.is_dropped)
    left = [result for index, result in quarantined.items() if index not in taken_over]
    if not left:
        return None
    known = {part.index: part for part in plan}
    known |= {part.index: part for found in retries for part in found.partitions}
    partitions, supersedes, samples = plan_retry(
        prepared.storage, prepared.output, prepared.source, known, left, len(known)
    )
    manifest = prepared.storage.read(join(prepared.output, MANIFEST))
    return Retry(
        number=len(retries) + 1,
        fingerprint=prepared.fingerprint,
        recipe=prepared.job.recipe(),
        operators=[dict(item) for item in prepared.identities],
        libraries=runner.libraries(),
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        samples=samples,
        supersedes=tuple(supersedes),
        partitions=tuple(partitions),
    )


def _check_same(begun: Retry, prepared: Prepared) -> None:
    if begun.fingerprint == prepared.fingerprint:
        return
    now = runner.what_changes_bytes(prepared)
    was = {**now, "recipe": begun.recipe, "operators": begun.operators}
    lines = "\n".join(f"  {line}" for line in runner.differences(was, now))
    raise FingerprintMismatchError(
        f"{prepared.output}: retry {begun.number} was begun with another recipe:\n{lines}",
        hint="take the change back, or give that retry up: "
        f"pipeline retry {prepared.output} --drop",
    )


def _fields(fields: Any) -> str:
    return ", ".join(f"{name}: {spec}" for name, spec in fields.items())
