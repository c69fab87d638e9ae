"""The manifest: an immutable description of a finished data set, enough to read it.

``manifest.json`` describes; ``index.arrow`` lists the shards, one row each, and the manifest holds
its hash. ``FORMAT.md`` is the contract.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import FieldSpec
from pipeline.errors import IntegrityError
from pipeline.protocols import GoldenSample, PartitionResult
from pipeline.storage import NotFoundError, Storage, join

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INDEX = "index.arrow"
GOLDEN_SAMPLES = 8
INDEX_CHUNK_ROWS = 1 << 16
"""Rows of the index that are Python objects at a time."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a reader must know of a finished data set.

    Attributes:
        name: The job's name.
        fingerprint: SHA-256 over recipe, operator identities and format version.
        recipe: The resolved half of the job that changes bytes.
        operators: Identity of every operator: config, version, weight digests, metadata.
        fields: Field -> spec, without ``key``.
        totals: samples, bytes, shards, partitions, input, filtered, quarantined, tokens per field.
        filtered: ``filter: reason`` -> samples.
        quarantined: ``step: error`` -> samples.
        warnings: What a user of these tokens must be told.
        random_weights: True when the tokens mean nothing (weights were random).
        golden: Rows to encode again when verifying.
        libraries: Package -> version, of those that make bytes.
        plan_sha256: Of the plan's partitions.
        index_sha256: Of ``index.arrow``.
        retries: What retries of quarantined samples added, each with its own fingerprint,
            operators, libraries, and the SHA-256 of the manifest before it.
    """

    name: str
    fingerprint: str
    recipe: Mapping[str, Any]
    operators: Sequence[Mapping[str, Any]]
    fields: Mapping[str, FieldSpec]
    totals: Mapping[str, Any]
    filtered: Mapping[str, int]
    quarantined: Mapping[str, int]
    warnings: Sequence[str]
    random_weights: bool
    golden: Sequence[GoldenSample]
    libraries: Mapping[str, str]
    plan_sha256: str
    index_sha256: str
    format_version: int = FORMAT_VERSION
    retries: Sequence[Mapping[str, Any]] = ()

    @property
    def is_imported(self) -> bool:
        """True when no run made the data set but an import of foreign files."""
        return "import" in self.recipe

    def fingerprint_of(self, partition: int) -> str:
        """Return the fingerprint of the run, or of the retry, that a partition belongs to."""
        for retry in self.retries:
            first = retry["first_partition"]
            if first <= partition < first + retry["partitions"]:
                return str(retry["fingerprint"])
        return self.fingerprint

    def to_json(self) -> bytes:
        """Return the bytes of ``manifest.json``: sorted keys, UTF-8, a final newline."""
        text = json.dumps(asdict(self), sort_keys=True, indent=1, ensure_ascii=False)
        return (text + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> "Manifest":
        """Parse ``manifest.json``; keys of a later minor version are passed over.

        Raises:
            IntegrityError: not a manifest, or of another format version.
        """
        try:
            raw = json.loads(data)
            version = raw["format_version"]
        except (ValueError, KeyError, TypeError):
            raise IntegrityError(
                f"{uri}: not a manifest", hint="give the output folder of a finished run"
            ) from None
        if version != FORMAT_VERSION:
            raise IntegrityError(
                f"{uri}: format version {version}, this program reads {FORMAT_VERSION}",
                hint="use the program version that wrote it",
            )
        try:
            raw.setdefault("retries", [])
            known = {item.name: raw[item.name] for item in dataclass_fields(cls)}
            known["fields"] = {name: _field_spec(spec) for name, spec in raw["fields"].items()}
            known["golden"] = [_golden_sample(sample) for sample in raw["golden"]]
        except KeyError as error:
            raise IntegrityError(
                f"{uri}: the manifest has no {error}",
                hint="run the job again: it rewrites manifest and index from the ledger",
            ) from None
        return cls(**known)


@dataclass(frozen=True, slots=True)
class DataSet:
    """A finished data set: its manifest, its shard table and where it lies.

    Attributes:
        uri: The folder.
        manifest: The description.
        shards: One row per shard: ``path``, ``partition``, ``num_bytes``, ``sha256``,
            ``num_samples``, ``sources`` (list of name, first, stop), and ``tokens.<field>``.
        storage: How to reach it.
    """

    uri: str
    manifest: Manifest
    shards: pa.Table
    storage: Storage = field(repr=False)

    def shard_uri(self, path: str) -> str:
        """Return the full address of a shard path, which may be one: of files used in place."""
        return path if path.startswith("/") or "://" in path else join(self.uri, path)


def open_data_set(uri: str, storage: Storage | None = None) -> DataSet:
    """Open a finished data set by its folder or by the address of its ``manifest.json``.

    Raises:
        NotFoundError: there is no manifest (the run is not finished, or the address is wrong).
        IntegrityError: manifest and index do not belong together.
    """
    storage = storage or Storage()
    folder = data_set_folder(uri)
    address = join(folder, MANIFEST)
    try:
        manifest = Manifest.from_json(storage.read(address), address)
    except NotFoundError:
        raise NotFoundError(
            f"{address}: no such object",
            hint="the run is not finished (`pipeline status` tells), or the address is wrong",
        ) from None
    index = storage.read(join(folder, INDEX))
    found = hashlib.sha256(index).hexdigest()
    if found != manifest.index_sha256:
        raise IntegrityError(
            f"{join(folder, INDEX)}: sha256 {found[:12]}, the manifest says "
            f"{manifest.index_sha256[:12]}",
            hint="`pipeline verify --repair`, then run the job again: it writes both anew",
        )
    return DataSet(folder, manifest, pa.ipc.open_file(pa.BufferReader(index)).read_all(), storage)


def data_set_folder(uri: str) -> str:
    """Return the folder of a data set, given it or the address of its ``manifest.json``."""
    return uri.rstrip("/").removesuffix("/" + MANIFEST)


def index_bytes(results: Iterable[PartitionResult], token_fields: Sequence[str]) -> memoryview:
    """Return the bytes of ``index.arrow`` for commit records in any order."""
    rows = _IndexRows(token_fields)
    parts: dict[str, list[pa.Array]] = {name: [column] for name, column in rows.columns().items()}
    for result in results:
        rows.add(result)
        if len(rows) >= INDEX_CHUNK_ROWS:
            for name, column in rows.columns().items():
                parts[name].append(column)
            rows = _IndexRows(token_fields)
    for name, column in rows.columns().items():
        parts[name].append(column)
    order = pa.array(np.argsort(pa.concat_arrays(parts["partition"]).to_numpy(), kind="stable"))
    # One column after the other, so that the index is in memory once and not three times.
    table = pa.table({name: pa.concat_arrays(parts.pop(name)).take(order) for name in list(parts)})
    size = pa.MockOutputStream()
    _write(table, size)
    data = pa.allocate_buffer(size.size())  # a stream that grows would hold up to twice as much
    _write(table, pa.FixedSizeBufferWriter(data))
    return memoryview(data).cast("B")


def _write(table: pa.Table, file: pa.NativeFile) -> None:
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


class GoldenSamples:
    """Picks up to ``GOLDEN_SAMPLES`` golden rows, evenly spaced over the partitions.

    The plan is cut into as many stretches, and the first row of each is picked: so the choice does
    not depend on the order in which records are added, and no more than these rows are kept.

    Args:
        num_partitions: Partitions of the plan.
    """

    def __init__(self, num_partitions: int) -> None:
        self._starts = [i * num_partitions // GOLDEN_SAMPLES for i in range(GOLDEN_SAMPLES)]
        self._found: dict[int, GoldenSample] = {}

    def add(self, result: PartitionResult) -> None:
        """Look at a commit record."""
        if result.golden is not None:
            stretch = bisect_right(self._starts, result.partition)
            have = self._found.get(stretch)
            if have is None or result.partition < have.partition:
                self._found[stretch] = result.golden

    def picked(self) -> list[GoldenSample]:
        """Return the rows, by partition."""
        return [self._found[stretch] for stretch in sorted(self._found)]


class _IndexRows:
    """Rows of the index, as columns."""

    def __init__(self, token_fields: Sequence[str]) -> None:
        self._paths: list[str] = []
        self._partitions: list[int] = []
        self._num_bytes: list[int] = []
        self._sha256: list[str] = []
        self._num_samples: list[int] = []
        self._names: list[str] = []
        self._first: list[int] = []
        self._stop: list[int] = []
        self._ends = [0]
        self._tokens: dict[str, list[int]] = {name: [] for name in token_fields}

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, result: PartitionResult) -> None:
        for shard in result.shards:
            self._paths.append(shard.path)
            self._partitions.append(result.partition)
            self._num_bytes.append(shard.num_bytes)
            self._sha256.append(shard.sha256)
            self._num_samples.append(shard.num_samples)
            for origin in shard.sources:
                self._names.append(origin.name)
                self._first.append(origin.first)
                self._stop.append(origin.stop)
            self._ends.append(len(self._names))
            for name, counts in self._tokens.items():
                counts.append(shard.tokens[name])

    def columns(self) -> dict[str, pa.Array]:
        source = pa.struct([("name", pa.string()), ("first", pa.int64()), ("stop", pa.int64())])
        sources = pa.StructArray.from_arrays(
            [
                pa.array(self._names, pa.string()),
                pa.array(self._first, pa.int64()),
                pa.array(self._stop, pa.int64()),
            ],
            fields=list(source),
        )
        columns = {
            "path": pa.array(self._paths, pa.string()),
            "partition": pa.array(self._partitions, pa.int64()),
            "num_bytes": pa.array(self._num_bytes, pa.int64()),
            "sha256": pa.array(self._sha256, pa.string()),
            "num_samples": pa.array(self._num_samples, pa.int64()),
            "sources": pa.ListArray.from_arrays(
                pa.array(self._ends, pa.int32()), sources, type=pa.list_(source)
            ),
        }
        for name, counts in self._tokens.items():
            columns[f"tokens.{name}"] = pa.array(counts, pa.int64())
        return columns


def _field_spec(raw: Mapping[str, Any]) -> FieldSpec:
    return FieldSpec(raw["dtype"], tuple(raw["shape"]), raw["vocab_size"])


def _golden_sample(raw: Mapping[str, Any]) -> GoldenSample:
    return GoldenSample(raw["partition"], raw["row"], raw["key"], raw["fields"])
