"""Check a finished data set: every hash, count, dtype and id, and the operators' golden ids."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.base import FieldSpec
from pipeline.errors import IntegrityError, TokenmillError
from pipeline.finish import JOB
from pipeline.flat_shards import Documents, flat_batches, is_flat
from pipeline.imports.load import IMPORTED
from pipeline.lease import TTL_S, Lease
from pipeline.ledger import Ledger
from pipeline.manifest import (
    INDEX,
    MANIFEST,
    DataSet,
    GoldenSamples,
    Manifest,
    data_set_folder,
    open_data_set,
)
from pipeline.model_cache import JobModelFiles
from pipeline.plan import build_chain, fingerprint, plan_digest, read_plan
from pipeline.protocols import GoldenSample, Partition
from pipeline.quarantine import mask_poison
from pipeline.report.summary import Sums
from pipeline.retries import read_retries, superseded
from pipeline.sinks.arrow import arrow_type
from pipeline.sources import build_source
from pipeline.spec import job_from_recipe
from pipeline.stages import Worker, WorkerTask, row_digest
from pipeline.storage import NotFoundError, Storage, join

CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: What was checked.
        problem: What is wrong, or None.
        skipped: Why it could not be checked, or None.
        redo: Partitions to do anew to mend it; empty when the ledger gives manifest and index
            back; None when a repair cannot mend it.
    """

    check: str
    problem: str | None = None
    skipped: str | None = None
    redo: tuple[int, ...] | None = None


def verify(uri: str, storage: Storage, *, golden: bool = True) -> Iterator[Finding]:
    """Yield a finding per check: totals, ledger, every shard, every quarantine file, golden rows.

    Every object is read once, from front to back, in memory that does not grow with its size; no
    copy is made on this machine's disk but of golden samples, a shard of one row each.

    Args:
        uri: The data set.
        storage: How to reach it, and its source.
        golden: Encode the golden samples again, when the operators can be built here.

    Raises:
        NotFoundError: there is no manifest.
        IntegrityError: the manifest cannot be read.
    """
    check = "manifest and index belong together"
    try:
        data = open_data_set(uri, storage)
    except IntegrityError as error:
        if not error.message.startswith(join(data_set_folder(uri), INDEX)):
            raise
        yield Finding(check, error.message, redo=())
        return
    yield Finding(check)
    is_imported = data.manifest.is_imported  # nothing was planned, and no repair helps
    redo: tuple[int, ...] | None = None if is_imported else ()
    yield Finding("counts add up", _totals_problem(data), redo=redo)
    if is_imported:
        yield _check_import(data)
    else:
        yield from _check_plan(data)
        yield from _check_ledger(data)
    number = 0
    for batch in data.shards.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            redo = None if is_imported else (row["partition"],)
            yield Finding(row["path"], _shard_problem(data, row, number), redo=redo)
            number += 1
    if golden and not is_imported:
        yield from _check_golden(data)


def repair(
    uri: str, storage: Storage, findings: Iterable[Finding], *, ttl_s: float = TTL_S
) -> list[int]:
    """Take back what is damaged: the next run of the job does it anew, and nothing else.

    The data set is unfinished from then on, until that run writes its manifest.

    Args:
        uri: The data set.
        storage: How to reach it.
        findings: What ``verify`` found. Those that a repair cannot mend are left alone.
        ttl_s: How long to watch a lease that is there.

    Returns:
        The partitions whose commits were taken back.

    Raises:
        LeaseError: a run is at work on the folder.
    """
    folder = data_set_folder(uri)
    mend = [found.redo for found in findings if found.problem and found.redo is not None]
    if not mend:
        return []
    partitions = sorted({index for redo in mend for index in redo})
    with Lease(storage, folder, ttl_s=ttl_s):
        manifest = join(folder, MANIFEST)
        written = Manifest.from_json(storage.read(manifest), manifest)
        others = [retry.fingerprint for retry in read_retries(storage, folder)]
        ledger = Ledger(storage, folder, written.fingerprint, others)
        ledger.mend()
        if partitions:
            ledger.withdraw(partitions)
        # Last: without it the next run would finish the data set from what the ledger says.
        storage.remove(manifest)
    return partitions


def mend_ledger(uri: str, storage: Storage) -> list[str]:
    """Keep what can be read of the ledger of a run that is not finished; return what was wrong.

    Raises:
        LeaseError: a run is at work on the folder.
    """
    try:
        job = json.loads(storage.read(join(uri, JOB)))
    except NotFoundError:
        return []
    with Lease(storage, uri):
        others = [retry.fingerprint for retry in read_retries(storage, uri)]
        return Ledger(storage, uri, job["fingerprint"], others).mend()


def _num_planned(manifest: Manifest) -> int:
    """Return the partitions of the run itself."""
    added: int = sum(retry["partitions"] for retry in manifest.retries)
    everything: int = manifest.totals["partitions"]
    return everything - added


def _totals_problem(data: DataSet) -> str | None:
    totals = data.manifest.totals
    parts = totals["samples"] + totals["filtered"] + totals["quarantined"]
    if parts != totals["input_samples"]:
        return (
            f"{totals['samples']:,} written + {totals['filtered']:,} filtered + "
            f"{totals['quarantined']:,} quarantined = {parts:,}, but "
            f"{totals['input_samples']:,} were read"
        )
    if data.shards.num_rows != totals["shards"]:
        return f"the index has {data.shards.num_rows:,} shards, the manifest {totals['shards']:,}"
    for column, total in (("num_samples", "samples"), ("num_bytes", "bytes")):
        found = _total(data.shards[column])
        if found != totals[total]:
            return f"the shards have {found:,} {total}, the manifest says {totals[total]:,}"
    for name, count in totals["tokens"].items():
        found = _total(data.shards[f"tokens.{name}"])
        if found != count:
            return f"the shards have {found:,} {name}, the manifest says {count:,}"
    return None


def _total(column: pa.ChunkedArray) -> int:
    return pc.sum(column).as_py() or 0


def _check_import(data: DataSet) -> Finding:
    try:
        listing = data.storage.read(join(data.uri, IMPORTED))
        same = hashlib.sha256(listing).hexdigest() == data.manifest.plan_sha256
        problem = None if same else "the list is not the one that the manifest names"
    except TokenmillError as error:
        problem = error.message
    return Finding("imported files", problem)


def _check_plan(data: DataSet) -> Iterator[Finding]:
    try:
        same = plan_digest(read_plan(data.storage, data.uri)) == data.manifest.plan_sha256
        problem = None if same else "the plan is not the one that the manifest names"
    except TokenmillError as error:
        problem = error.message
    yield Finding("plan", problem)


def _check_ledger(data: DataSet) -> Iterator[Finding]:
    columns = data.shards.select(["partition", "path", "sha256"]).combine_chunks()
    partitions = columns["partition"].to_numpy()
    seen: set[int] = set()
    damage: list[IntegrityError] = []
    num_planned = _num_planned(data.manifest)
    begun = {retry.partitions[0].index: retry for retry in read_retries(data.storage, data.uri)}
    listed = [retry["first_partition"] for retry in data.manifest.retries]
    finished = [begun[first] for first in listed if first in begun]
    sums, golden = Sums(superseded=superseded(finished)), GoldenSamples(num_planned)
    expected = {*range(num_planned)}
    expected.update(part.index for retry in finished for part in retry.partitions)
    others = [retry.fingerprint for retry in begun.values()]
    try:
        ledger = Ledger(data.storage, data.uri, data.manifest.fingerprint, others)
        for record in ledger.records(damage.append):
            if record.partition not in expected:
                continue  # of a retry that is not finished
            seen.add(record.partition)
            sums.add(record)
            if record.partition < num_planned:
                golden.add(record)
            first, stop = np.searchsorted(partitions, [record.partition, record.partition + 1])
            rows = columns.slice(first, stop - first).to_pylist()
            named = [(shard.path, shard.sha256) for shard in record.shards]
            differ = named != [(row["path"], row["sha256"]) for row in rows]
            yield Finding(
                f"commit record of partition {record.partition}",
                "names other shards than the index" if differ else None,
                redo=(record.partition,),
            )
            if record.quarantine is not None:
                file = record.quarantine
                problem = _digest_problem(data, file.path, file.num_bytes, file.sha256, "ledger")
                yield Finding(file.path, problem, redo=(record.partition,))
    except IntegrityError as error:  # of another version or run: nothing is damaged
        yield Finding("ledger", error.message)
        return
    for found in damage:
        yield Finding("ledger", found.message, redo=())
    for index in sorted(expected - seen):
        yield Finding(f"commit record of partition {index}", "there is none", redo=(index,))
    if seen == expected:
        problem = _summary_problem(data.manifest, sums, golden)
        yield Finding("manifest and ledger agree", problem, redo=())


def _summary_problem(manifest: Manifest, sums: Sums, golden: GoldenSamples) -> str | None:
    for name, said, found in (
        ("input_samples", manifest.totals["input_samples"], sums.num_input),
        ("filtered", dict(manifest.filtered), dict(sums.filtered)),
        ("quarantined", dict(manifest.quarantined), dict(sums.quarantined)),
        ("golden", _plain(manifest.golden), _plain(golden.picked())),
    ):
        if said != found:
            return f"{name}: the manifest says {said}, the commit records {found}"
    return None


def _plain(golden: Sequence[GoldenSample]) -> dict[str, str]:
    """Return key -> digest of all its ids, short enough for a message."""
    return {
        sample.key: ", ".join(
            str(sample.fields[name]["sha256"])[:12] for name in sorted(sample.fields)
        )
        for sample in golden
    }


def _digest_problem(
    data: DataSet, path: str, num_bytes: int, sha256: str, where: str
) -> str | None:
    try:
        with _hashed(data, path) as file:
            file.read_rest()
            return _difference(file, num_bytes, sha256, where)
    except TokenmillError as error:
        return error.message


def _shard_problem(data: DataSet, row: Mapping[str, Any], number: int) -> str | None:
    try:
        with _hashed(data, row["path"]) as file:
            problem, raised = None, None
            try:
                if is_flat(data, number):
                    problem = _flat_problem(data, file, row, number)
                else:
                    problem = _content_problem(data, file, row)
            except TokenmillError:
                raise
            except Exception as error:  # damaged bytes may raise anything: the hash tells them
                raised = error
            file.read_rest()
            differs = _difference(file, row["num_bytes"], row["sha256"], "index")
            if differs is None and isinstance(raised, pa.ArrowException):
                return f"not a shard: {str(raised).splitlines()[0]}"
            if differs is None and raised is not None:
                raise raised
            return differs or problem
    except TokenmillError as error:
        return error.message


def _difference(file: "_HashedFile", num_bytes: int, sha256: str, where: str) -> str | None:
    if file.num_bytes != num_bytes:
        return f"{file.num_bytes:,} bytes, the {where} says {num_bytes:,}"
    if file.sha256 != sha256:
        return f"sha256 {file.sha256[:12]}, the {where} says {sha256[:12]}"
    return None


@contextmanager
def _hashed(data: DataSet, path: str) -> Iterator["_HashedFile"]:
    uri = data.shard_uri(path)
    with data.storage.open_read(uri) as file:
        yield _HashedFile(file, data.storage.opened(uri, file).num_bytes)


class _HashedFile:
    """Reads an object once, from front to back, and hashes it; no copy is made."""

    closed = False

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def read(self, size: int) -> bytes:
        # A damaged file may ask for any size.
        data = self._file.read(min(size, max(0, self._size - self.num_bytes)))
        self._hash.update(data)
        self.num_bytes += len(data)
        return data

    def read_rest(self) -> None:
        while self.read(CHUNK_BYTES):
            pass

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


def _content_problem(data: DataSet, file: _HashedFile, row: Mapping[str, Any]) -> str | None:
    # An IPC file is a stream of record batches between two magic words, with a footer at its end
    # for those who jump about.
    if file.read(len(_MAGIC)) != _MAGIC:
        return "not a shard: does not begin as an Arrow file"
    reader = pa.ipc.open_stream(pa.PythonFile(file, "r"))
    metadata = json.loads((reader.schema.metadata or {}).get(b"tokenmill", b"{}"))
    if metadata.get("fingerprint") != data.manifest.fingerprint_of(row["partition"]):
        return "carries another fingerprint than the manifest"
    for name, spec in data.manifest.fields.items():
        found = reader.schema.field(name).type if name in reader.schema.names else None
        if found != arrow_type(spec):
            return f"field {name!r} is {found}, expected {arrow_type(spec)}"
    rows, tokens = 0, dict.fromkeys(data.manifest.totals["tokens"], 0)
    for batch in reader:
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


_MAGIC = b"ARROW1\0\0"


def _flat_problem(
    data: DataSet, file: _HashedFile, row: Mapping[str, Any], number: int
) -> str | None:
    documents = Documents(data, number)
    named = row["documents"]
    problem = _digest_problem(data, named["path"], named["num_bytes"], named["sha256"], "index")
    if problem:
        return f"{named['path']}: {problem}"
    ((name, spec),) = data.manifest.fields.items()
    if documents.num_ids != row[f"tokens.{name}"]:
        return f"{documents.num_ids:,} {name}, the index says {row[f'tokens.{name}']:,}"
    if documents.num_ids * np.dtype(spec.dtype).itemsize != row["num_bytes"]:
        return f"{documents.num_ids:,} {name} of {spec.dtype} in {row['num_bytes']:,} bytes"
    for batch in flat_batches(file, documents, [name], name, spec, 0):
        problem = _id_problem(name, _flat(batch.column(name)), spec)
        if problem:
            return problem
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
        urls = tuple(job.source_urls())
        source = build_source(job.source, data.storage, urls)
        model_files = JobModelFiles(data.storage)
        identities = build_chain(job, source.fields, model_files).identities()
        now = fingerprint(job, identities)
        if now != data.manifest.fingerprint:
            was = data.manifest.operators
            others = [new["label"] for new in identities if new not in was] or ["their defaults"]
            names = ", ".join(others)
            yield Finding(check, f"the operators here are not those that wrote it: {names} differ")
            return
        with tempfile.TemporaryDirectory() as folder:
            known = model_files.known()
            worker = Worker(WorkerTask(job, now, folder, "verify", data.storage, urls, known))
            try:
                partitions = read_plan(data.storage, data.uri, urls)
                for golden in data.manifest.golden:
                    planned = partitions[golden.partition]
                    partition = mask_poison(data.storage, data.uri, planned)
                    yield _golden_finding(worker, folder, partition, golden)
            finally:
                worker.close()
    except TokenmillError as error:
        yield Finding(check, skipped=str(error))


def _golden_finding(
    worker: Worker, folder: str, partition: Partition, golden: GoldenSample
) -> Finding:
    check = f"golden sample {golden.key}"
    # The golden row is the first that was written, so reading up to it gives one row.
    result = worker.submit(replace(partition, max_samples=golden.row + 1)).result()
    if result.num_written != 1:
        return Finding(check, f"{result.num_written} rows now, one before")
    with pa.memory_map(join(folder, result.shards[0].path)) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
        fields = {name: row_digest(_flat(batch.column(name))) for name in golden.fields}
        key = batch.column("key")[0].as_py()
    if key != golden.key:
        return Finding(check, f"the row's key is {key!r} now")
    for name, digest in golden.fields.items():
        if fields[name] != digest:
            now, before = fields[name], digest
            return Finding(
                check,
                f"{name}: {now['num']} ids {now['head']}... now, "
                f"{before['num']} ids {before['head']}... before",
            )
    return Finding(check)
