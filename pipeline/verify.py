"""Check a finished data set: every hash, count, dtype and id, and the operators' golden ids."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import FieldSpec
from pipeline.errors import SetupError, TokenmillError
from pipeline.ledger import Ledger
from pipeline.manifest import DataSet, open_data_set
from pipeline.plan import build_chain, fingerprint, read_plan
from pipeline.protocols import GoldenSample
from pipeline.sinks.arrow import arrow_type
from pipeline.sources import build_source
from pipeline.spec import JobSpec, job_from_recipe
from pipeline.stages import Worker, WorkerTask, row_digest
from pipeline.storage import Storage, join


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: What was checked.
        problem: What is wrong, or None.
        skipped: Why it could not be checked, or None.
    """

    check: str
    problem: str | None = None
    skipped: str | None = None


def verify(uri: str, storage: Storage, *, golden: bool = True) -> Iterator[Finding]:
    """Yield a finding per check: totals, ledger, every shard, every quarantine file, golden rows.

    Args:
        uri: The data set.
        storage: How to reach it, and its source.
        golden: Encode the golden samples again, when the operators can be built here.

    Raises:
        IntegrityError: manifest or index cannot be read at all.
    """
    data = open_data_set(uri, storage)
    yield Finding("manifest and index belong together")
    yield Finding("counts add up", problem=_totals_problem(data))
    yield from _check_ledger(data)
    for row in data.shards.to_pylist():
        yield Finding(row["path"], problem=_shard_problem(data, row))
    if golden:
        yield from _check_golden(data)


def _totals_problem(data: DataSet) -> str | None:
    totals = data.manifest.totals
    parts = totals["samples"] + totals["filtered"] + totals["quarantined"]
    if parts != totals["input_samples"]:
        return (
            f"{totals['samples']:,} written + {totals['filtered']:,} filtered + "
            f"{totals['quarantined']:,} quarantined = {parts:,}, but "
            f"{totals['input_samples']:,} were read"
        )
    for column, total in (("num_samples", "samples"), ("num_bytes", "bytes")):
        found = sum(data.shards[column].to_pylist())
        if found != totals[total]:
            return f"the shards have {found:,} {total}, the manifest says {totals[total]:,}"
    for name, count in totals["tokens"].items():
        found = sum(data.shards[f"tokens.{name}"].to_pylist())
        if found != count:
            return f"the shards have {found:,} {name}, the manifest says {count:,}"
    return None


def _check_ledger(data: DataSet) -> Iterator[Finding]:
    named = {}
    ledger = Ledger(data.storage, data.uri, data.manifest.fingerprint)
    partitions = 0
    for record in ledger.records():
        partitions += 1
        named.update({shard.path: shard.sha256 for shard in record.shards})
        if record.quarantine is not None:
            file = record.quarantine
            content = data.storage.read(join(data.uri, file.path))
            wrong = hashlib.sha256(content).hexdigest() != file.sha256
            yield Finding(file.path, problem="sha256 differs from the ledger" if wrong else None)
    index = dict(
        zip(data.shards["path"].to_pylist(), data.shards["sha256"].to_pylist(), strict=True)
    )
    problem = None
    if partitions != data.manifest.totals["partitions"]:
        problem = (
            f"{partitions:,} commit records, the manifest counts "
            f"{data.manifest.totals['partitions']:,} partitions"
        )
    elif named != index:
        problem = f"index and ledger differ in {sorted(set(named.items()) ^ set(index.items()))[0]}"
    yield Finding("ledger and index name the same shards", problem=problem)


def _shard_problem(data: DataSet, row: Mapping[str, Any]) -> str | None:
    uri = data.shard_uri(row["path"])
    try:
        content = data.storage.read(uri)
    except TokenmillError as error:
        return error.message
    if len(content) != row["num_bytes"]:
        return f"{len(content):,} bytes, the index says {row['num_bytes']:,}"
    digest = hashlib.sha256(content).hexdigest()
    if digest != row["sha256"]:
        return f"sha256 {digest[:12]}, the index says {row['sha256'][:12]}"
    reader = pa.ipc.open_file(pa.BufferReader(content))
    return _content_problem(data, reader, row)


def _content_problem(data: DataSet, reader: Any, row: Mapping[str, Any]) -> str | None:
    metadata = json.loads((reader.schema.metadata or {}).get(b"tokenmill", b"{}"))
    if metadata.get("fingerprint") != data.manifest.fingerprint:
        return "carries another fingerprint than the manifest"
    for name, spec in data.manifest.fields.items():
        found = reader.schema.field(name).type if name in reader.schema.names else None
        if found != arrow_type(spec):
            return f"field {name!r} is {found}, expected {arrow_type(spec)}"
    rows, tokens = 0, dict.fromkeys(data.manifest.totals["tokens"], 0)
    for i in range(reader.num_record_batches):
        batch = reader.get_batch(i)
        batch.validate(full=True)
        rows += batch.num_rows
        for name in tokens:
            ids = _flat(batch.column(name))
            tokens[name] += len(ids)
            problem = _id_problem(name, ids, data.manifest.fields[name])
            if problem:
                return problem
    if rows != row["num_samples"]:
        return f"{rows:,} rows, the index says {row['num_samples']:,}"
    for name, count in tokens.items():
        if count != row[f"tokens.{name}"]:
            return f"{count:,} {name}, the index says {row[f'tokens.{name}']:,}"
    return None


def _id_problem(name: str, ids: np.ndarray, spec: FieldSpec) -> str | None:
    if len(ids) and spec.vocab_size is not None and int(ids.max()) >= spec.vocab_size:
        return f"field {name!r} holds id {int(ids.max()):,}, the vocabulary is {spec.vocab_size:,}"
    return None


def _flat(array: pa.Array) -> np.ndarray:
    while hasattr(array, "flatten") and pa.types.is_nested(array.type):
        array = array.flatten()
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values


def _check_golden(data: DataSet) -> Iterator[Finding]:
    check = f"{len(data.manifest.golden)} golden samples give the same ids"
    try:
        job = job_from_recipe(data.manifest.recipe)
        source = build_source(job.source, data.storage, job.source_urls())
        chain = build_chain(job, source.fields)
        now = fingerprint(job, chain.identities())
    except TokenmillError as error:
        yield Finding(check, skipped=str(error))
        return
    if now != data.manifest.fingerprint:
        yield Finding(
            check, problem="the operators here are others than those that wrote the data set"
        )
        return
    try:
        partitions = {p.index: p for p in read_plan(data.storage, data.uri)}
        for golden in data.manifest.golden:
            # The golden row is the first that was written, so reading up to it gives one row.
            partition = replace(partitions[golden.partition], max_samples=golden.row + 1)
            yield _golden_finding(job, now, partition, golden)
    except SetupError as error:
        yield Finding(check, skipped=str(error))


def _golden_finding(job: JobSpec, now: str, partition: Any, golden: GoldenSample) -> Finding:
    check = f"golden sample {golden.key}"
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(WorkerTask(job, now, folder, "verify"))
        try:
            result = worker.submit(partition).result()
            if result.num_written != 1:
                return Finding(check, problem=f"{result.num_written} rows now, one before")
            with pa.memory_map(join(folder, result.shards[0].path)) as file:
                batch = pa.ipc.open_file(file).get_batch(0)
                fields = {name: row_digest(_flat(batch.column(name))) for name in golden.fields}
                key = batch.column("key")[0].as_py()
        finally:
            worker.close()
    if key != golden.key:
        return Finding(check, problem=f"the row's key is {key!r} now")
    for name, digest in golden.fields.items():
        if fields[name] != digest:
            return Finding(
                check, problem=f"{name}: ids {fields[name]['head']} now, {digest['head']} before"
            )
    return Finding(check)
