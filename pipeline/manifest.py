"""The manifest: an immutable description of a finished data set, enough to read it.

``manifest.json`` describes; ``index.arrow`` lists the shards, one row each, and the manifest holds
its hash. ``FORMAT.md`` is the contract.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any

import pyarrow as pa

from operators.base import FieldSpec
from pipeline.errors import IntegrityError
from pipeline.protocols import GoldenSample, PartitionResult
from pipeline.storage import NotFoundError, Storage, join

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INDEX = "index.arrow"
GOLDEN_SAMPLES = 8


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
        """Return the full address of a shard path."""
        return join(self.uri, path)


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


def index_bytes(results: Iterable[PartitionResult], token_fields: Sequence[str]) -> bytes:
    """Return the bytes of ``index.arrow`` for commit records sorted by partition."""
    rows = [(result.partition, shard) for result in results for shard in result.shards]
    source = pa.struct([("name", pa.string()), ("first", pa.int64()), ("stop", pa.int64())])
    columns: dict[str, pa.Array] = {
        "path": pa.array([s.path for _, s in rows], pa.string()),
        "partition": pa.array([index for index, _ in rows], pa.int64()),
        "num_bytes": pa.array([s.num_bytes for _, s in rows], pa.int64()),
        "sha256": pa.array([s.sha256 for _, s in rows], pa.string()),
        "num_samples": pa.array([s.num_samples for _, s in rows], pa.int64()),
        "sources": pa.array([[asdict(r) for r in s.sources] for _, s in rows], pa.list_(source)),
    }
    for name in token_fields:
        columns[f"tokens.{name}"] = pa.array([s.tokens[name] for _, s in rows], pa.int64())
    table = pa.table(columns)
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def pick_golden(results: Sequence[PartitionResult]) -> list[GoldenSample]:
    """Return up to ``GOLDEN_SAMPLES`` golden rows, evenly spaced over the partitions."""
    found = [result.golden for result in results if result.golden is not None]
    if len(found) <= GOLDEN_SAMPLES:
        return found
    return [found[i * len(found) // GOLDEN_SAMPLES] for i in range(GOLDEN_SAMPLES)]


def _field_spec(raw: Mapping[str, Any]) -> FieldSpec:
    return FieldSpec(raw["dtype"], tuple(raw["shape"]), raw["vocab_size"])


def _golden_sample(raw: Mapping[str, Any]) -> GoldenSample:
    return GoldenSample(raw["partition"], raw["row"], raw["key"], raw["fields"])
