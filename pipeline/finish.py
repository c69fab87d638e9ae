"""The end of a run or a retry: index, report and manifest, from what the ledger says."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from operators.base import FieldSpec
from pipeline.errors import IntegrityError
from pipeline.ledger import FOLDER, Ledger
from pipeline.manifest import INDEX, MANIFEST, GoldenSamples, Manifest, index_bytes
from pipeline.protocols import PartitionResult
from pipeline.report.summary import RunSummary, Sums, by_reason, summarize
from pipeline.retries import Retry, superseded
from pipeline.storage import Storage, join

JOB = "_job.json"
REPORT = "report.json"


def finish(
    storage: Storage,
    output: str,
    fields: Mapping[str, FieldSpec],
    num_planned: int,
    records: Ledger,
    retries: Sequence[Retry],
    *,
    num_resumed: int,
    started_at: float,
    engine: str,
) -> RunSummary:
    """Write index, manifest and report. The manifest comes last: it says the data set is whole.

    The records are read from the log once more, since memory should not hold a million of them.

    Args:
        storage: How to reach the data set.
        output: The data set.
        fields: What is written.
        num_planned: Partitions of the run's plan.
        records: The ledger, read to its end.
        retries: Those that there are; one that is not finished is left out.
        num_resumed: Partitions that were committed before.
        started_at: ``time.time()`` of the beginning.
        engine: Who did the work, for the report.

    Raises:
        IntegrityError: the ledger lacks partitions of the plan.
    """
    written = json.loads(storage.read(join(output, JOB)))
    finished = [retry for retry in retries if retry.is_finished(records.committed)]
    of_retry = {part.index: retry.number for retry in finished for part in retry.partitions}
    recovered: Counter[int] = Counter()
    token_fields = [name for name, spec in fields.items() if spec.vocab_size is not None]
    sums, golden = Sums(superseded=superseded(finished)), GoldenSamples(num_planned)

    def read() -> Iterator[PartitionResult]:
        for record in records.records():
            if record.partition < num_planned:
                golden.add(record)
            elif record.partition in of_retry:
                recovered[of_retry[record.partition]] += record.num_written
            else:
                continue  # of a retry that is not finished
            sums.add(record)
            yield record

    index = index_bytes(read(), token_fields)
    if sums.num_partitions != num_planned + len(of_retry):
        raise IntegrityError(
            f"{join(output, FOLDER)}: {sums.num_partitions - len(of_retry):,} partitions are "
            f"committed, the plan has {num_planned:,}",
            hint="run the same command again: it does what is missing",
        )
    warnings = [str(item["warning"]) for item in written["operators"] if item.get("warning")]
    warnings += written.get("decisions", [])
    manifest = Manifest(
        name=written["recipe"]["name"],
        fingerprint=written["fingerprint"],
        recipe=written["recipe"],
        operators=written["operators"],
        fields=fields,
        totals=_totals(sums, token_fields),
        filtered=by_reason(sums.filtered),
        quarantined=by_reason(sums.quarantined),
        warnings=warnings,
        random_weights=any(item.get("random_weights") for item in written["operators"]),
        golden=golden.picked(),
        libraries=written["libraries"],
        plan_sha256=written["plan_sha256"],
        index_sha256=hashlib.sha256(index).hexdigest(),
        retries=[_about(retry, recovered[retry.number]) for retry in finished],
    )
    summary = summarize(
        sums,
        name=written["recipe"]["name"],
        output=output,
        fingerprint=written["fingerprint"],
        num_resumed=num_resumed,
        started_at=started_at,
        engine=engine,
        warnings=warnings,
    )
    data = manifest.to_json()
    was_whole = _holds(storage, join(output, MANIFEST), data)
    if was_whole and _holds(storage, join(output, INDEX), index):
        return summary  # finished before: leave the report of the run that did the work
    with storage.open_write(join(output, INDEX)) as file:
        file.write(index)
    storage.write(join(output, REPORT), summary.to_json())
    storage.write(join(output, MANIFEST), data)
    return summary


def _holds(storage: Storage, uri: str, data: bytes | memoryview) -> bool:
    return storage.stat(uri) is not None and storage.read(uri) == data


def _totals(sums: Sums, token_fields: Sequence[str]) -> dict[str, Any]:
    return {
        "partitions": sums.num_partitions,
        "input_samples": sums.num_input,
        "samples": sums.num_written,
        "filtered": sums.num_filtered,
        "quarantined": sums.num_quarantined,
        "shards": sums.num_shards,
        "bytes": sums.num_bytes,
        "tokens": {name: sums.tokens[name] for name in token_fields},
    }


def _about(retry: Retry, recovered: int) -> dict[str, Any]:
    """Return what the manifest says of a retry."""
    return {
        "fingerprint": retry.fingerprint,
        "operators": retry.operators,
        "libraries": retry.libraries,
        "manifest_sha256": retry.manifest_sha256,
        "first_partition": retry.partitions[0].index,
        "partitions": len(retry.partitions),
        "retried": retry.samples,
        "recovered": recovered,
    }
