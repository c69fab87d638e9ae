"""An import from beginning to end: look at the source, check it, describe it as a data set.

Megatron's ``.bin`` files become flat shards, used where they lie. The samples of MDS shards hold
their values one behind another with headers between them, which no column can be mapped from:
they are copied into ordinary shards.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import FieldSpec
from pipeline.errors import (
    ContractError,
    FingerprintMismatchError,
    IntegrityError,
    SpecError,
)
from pipeline.flat_shards import LAYOUT, documents_bytes
from pipeline.imports.mds import (
    MdsShard,
    check_encodings,
    decode_mds,
    id_column,
    only_ids,
    read_mds,
    read_mds_index,
    spec_of,
)
from pipeline.imports.megatron import MegatronIndex, find_pairs, read_index
from pipeline.lease import Lease
from pipeline.manifest import FORMAT_VERSION, INDEX, MANIFEST, Manifest, index_bytes
from pipeline.protocols import PartitionResult, RowRange, Shard
from pipeline.sinks import ArrowSink
from pipeline.storage import NotFoundError, Storage, join

SOURCES = ("megatron", "mds")
IMPORTED = "_import.jsonl"
"""What was imported: a line for each file, with size and SHA-256."""

READERS = 4
_CHUNK_BYTES = 8 << 20
_KEY = "key"

Progress = Callable[[int, int], None]
"""Told how many bytes are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """What the files do not say of themselves.

    Attributes:
        source: A name of ``SOURCES``.
        vocab_size: All ids lie below it; None takes it from ``tokenizer``.
        tokenizer: A ``tokenizer.json``.
        field: What the ids are called; of MDS the column that they are in. None is ``ids``, or
            the only column that may hold them.
    """

    source: str
    vocab_size: int | None = None
    tokenizer: str | None = None
    field: str | None = None


@dataclass(frozen=True, slots=True)
class ImportResult:
    """A data set that was made of foreign files.

    Attributes:
        output: Its folder.
        num_samples, num_tokens: In it.
        num_files: How many files it is made of.
        num_bytes: Of its shards.
        is_copied: False when it uses the files where they lie.
    """

    output: str
    num_samples: int
    num_tokens: int
    num_files: int
    num_bytes: int
    is_copied: bool


def import_data_set(
    source: str,
    output: str,
    settings: ImportSettings,
    *,
    storage: Storage | None = None,
    progress: Progress | None = None,
) -> ImportResult:
    """Make a data set of files that another program wrote. The same call again does it anew.

    Args:
        source: Megatron: a ``.bin``, its path without the ending, or a folder of such. MDS: the
            folder of ``index.json``.
        output: The data set's folder: none yet, empty, or of the same import. It may be the
            source's own folder; paths in the index are relative then, so that it can be moved.
        settings: What the files do not say.
        storage: How to reach both.
        progress: Told about bytes, from any thread.

    Raises:
        SpecError: the settings are wrong.
        NotFoundError: a file is missing.
        IntegrityError: a file is damaged, or is not the one that its index describes.
        ContractError: a file holds what a data set cannot, or an id outside of the vocabulary.
        FingerprintMismatchError: the folder holds another data set.
    """
    storage = storage or Storage()
    if settings.source not in SOURCES:
        raise SpecError(
            f"--from {settings.source}: no such format", hint=f"choose of {', '.join(SOURCES)}"
        )
    if settings.field == _KEY:
        raise SpecError("--field key: that is what a sample is called by", hint="choose another")
    vocab_size, tokenizer = _vocabulary(settings, storage)
    kind = _Megatron if settings.source == "megatron" else _Mds
    made = kind(source, output, settings.field, vocab_size, storage, _Count(progress))
    made.look()
    name = storage.resolve(source).rstrip("/").rsplit("/", 1)[-1]
    files_sha256 = hashlib.sha256(made.listing()).hexdigest()
    about: dict[str, Any] = {
        "from": settings.source,
        "field": made.ids_field,
        "vocab_size": vocab_size,
        "tokenizer": tokenizer,
        "files_sha256": files_sha256,
    }
    shards = {"fields": list(made.specs), "compression": "none"}
    described = {"format_version": FORMAT_VERSION, "import": about, "shards": shards}
    canonical = json.dumps(described, sort_keys=True, ensure_ascii=False).encode()
    fingerprint = hashlib.sha256(canonical).hexdigest()
    _check_free(storage, output, fingerprint)
    with Lease(storage, output):
        storage.remove(join(output, MANIFEST))
        _remove_left_over(storage, output)
        index, totals = made.write(fingerprint)
        manifest = Manifest(
            name=name,
            fingerprint=fingerprint,
            recipe={"name": name, "import": {**about, "source": source}, "shards": shards},
            operators=[],
            fields=made.specs,
            totals=totals,
            filtered={},
            quarantined={},
            warnings=[],
            random_weights=False,
            golden=[],
            libraries={"numpy": np.__version__, "pyarrow": pa.__version__},
            plan_sha256=files_sha256,
            index_sha256=hashlib.sha256(index).hexdigest(),
        )
        storage.write(join(output, IMPORTED), made.listing())
        storage.write(join(output, INDEX), index)
        storage.write(join(output, MANIFEST), manifest.to_json())
    return ImportResult(
        output,
        totals["samples"],
        totals["tokens"][made.ids_field],
        len(made.files),
        totals["bytes"],
        made.is_copied,
    )


def _vocabulary(settings: ImportSettings, storage: Storage) -> tuple[int, dict[str, Any] | None]:
    """Return the vocabulary's size, and what identifies the tokenizer if one was given."""
    if settings.tokenizer is None:
        if settings.vocab_size is None:
            raise SpecError(
                "the files do not say how large the vocabulary is",
                hint="give --vocab-size, or --tokenizer with a tokenizer.json",
            )
        return settings.vocab_size, None
    data = storage.read(settings.tokenizer)
    try:
        raw = json.loads(data)
        vocab = raw["model"]["vocab"]
        ids = range(len(vocab)) if isinstance(vocab, list) else vocab.values()
        found = 1 + max([-1, *ids, *(added["id"] for added in raw.get("added_tokens", ()))])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"--tokenizer {settings.tokenizer}: no vocabulary in it ({error})",
            hint="give a tokenizer.json, or --vocab-size instead",
        ) from None
    if settings.vocab_size is not None and settings.vocab_size < found:
        raise SpecError(
            f"--vocab-size {settings.vocab_size:,}: the tokenizer has ids up to {found - 1:,}",
            hint="a vocabulary may be padded, never cut; leave one of the two away",
        )
    about = {
        "name": settings.tokenizer.rstrip("/").rsplit("/", 1)[-1],
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return settings.vocab_size or found, about


def _check_free(storage: Storage, output: str, fingerprint: str) -> None:
    """Raise FingerprintMismatchError when a folder belongs to something else."""
    address = join(output, MANIFEST)
    try:
        found = Manifest.from_json(storage.read(address), address).fingerprint
    except NotFoundError:
        if storage.stat(join(output, "_job.json")) is None:
            return
        found = "a run that is not finished"
    if found != fingerprint:
        raise FingerprintMismatchError(
            f"{output}: holds another data set ({found[:32]})",
            hint="choose another folder, or remove this one",
        )


def _remove_left_over(storage: Storage, output: str) -> None:
    """Remove what an import that was killed left half done: the lease says that it is gone."""
    for folder in ("documents", "shards"):
        for entry in storage.walk(join(storage.resolve(output), folder)):
            name = entry.uri.rsplit("/", 1)[-1]
            if name.startswith(".") and name.endswith(".tmp"):
                storage.remove(entry.uri)
    storage.drop_uploads(output)


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """A file of the source.

    Attributes:
        name: Below the source's folder.
        num_bytes: Size.
        sha256: Of its bytes, hex.
    """

    name: str
    num_bytes: int
    sha256: str


class _Count:
    """Adds up bytes, from several threads."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._lock = progress, Lock()
        self.done, self.total = 0, 0

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self.done += num_bytes
            if self._progress is not None:
                self._progress(self.done, self.total)


@dataclass(slots=True)
class _Import:
    """What both formats have in common.

    Attributes:
        ids_field: What the ids are called.
        specs: Of the data set's fields, known after ``look``.
        files: What was imported, known after ``look``.
    """

    source: str
    output: str
    ids_field: str | None
    vocab_size: int
    storage: Storage
    count: _Count
    specs: dict[str, FieldSpec] = field(default_factory=dict)
    files: list[ImportedFile] = field(default_factory=list)

    def listing(self) -> bytes:
        """Return the bytes of ``_import.jsonl``."""
        lines = [json.dumps(asdict(file), sort_keys=True) for file in self.files]
        return "".join(f"{line}\n" for line in lines).encode()

    def _index(self, results: Sequence[PartitionResult]) -> tuple[bytes, dict[str, Any]]:
        names = [name for name, spec in self.specs.items() if spec.vocab_size is not None]
        shards = [shard for result in results for shard in result.shards]
        samples = sum(result.num_written for result in results)
        totals = {
            "partitions": len(results),
            "input_samples": samples,
            "samples": samples,
            "filtered": 0,
            "quarantined": 0,
            "shards": len(shards),
            "bytes": sum(shard.num_bytes for shard in shards),
            "tokens": {name: sum(shard.tokens[name] for shard in shards) for name in names},
        }
        return bytes(index_bytes(results, names)), totals


class _Megatron(_Import):
    """Pairs of ``.bin`` and ``.idx``: partition i is pair i, its only shard the ``.bin``."""

    is_copied = False

    def look(self) -> None:
        """Read all indexes, and every ``.bin`` once: for its hash and its largest id."""
        self.ids_field = self.ids_field or "ids"
        self._prefixes = find_pairs(self.source, self.storage)
        self.count.total = 0
        stored: dict[str, str] = {}
        for prefix in self._prefixes:
            entry = self.storage.stat(f"{prefix}.bin")
            self.count.total += entry.num_bytes if entry is not None else 0
        with ThreadPoolExecutor(READERS, "import") as pool:
            for prefix, (dtype, files) in zip(
                self._prefixes, pool.map(self._scan, self._prefixes), strict=True
            ):
                stored[prefix] = dtype
                self.files += files
        if len(set(stored.values())) > 1:
            kinds = ", ".join(f"{prefix} {dtype}" for prefix, dtype in stored.items())
            raise ContractError(
                f"{self.source}: ids of different types in one data set: {kinds}",
                hint="import them one by one, and mix them when they are read",
            )
        kind = np.dtype(next(iter(stored.values())))
        # Below half of its range an unsigned type has the same bytes: no id is negative.
        dtype = f"uint{8 * kind.itemsize}"
        self.specs = {self.ids_field: FieldSpec(dtype, (None,), self.vocab_size)}

    def write(self, fingerprint: str) -> tuple[bytes, dict[str, Any]]:
        """Write the documents files; return the index and the totals."""
        assert self.ids_field is not None
        results, documents = [], []
        for number, prefix in enumerate(self._prefixes):
            index = read_index(prefix, self.storage)
            ids = self.files[2 * number]
            num = len(index.offsets) - 1
            shards = []
            if num:
                path = f"documents/{number:07d}-000.arrow"
                data = documents_bytes(index.offsets, index.dtype.itemsize, fingerprint)
                self.storage.write(join(self.output, path), data)
                digest = hashlib.sha256(data).hexdigest()
                documents.append({"path": path, "num_bytes": len(data), "sha256": digest})
                tokens = {self.ids_field: int(index.offsets[-1])}
                origin = (RowRange(ids.name, 0, num),)
                path = self._path(index.bin_uri)
                shards.append(Shard(path, ids.num_bytes, ids.sha256, num, tokens, origin))
            results.append(_result(number, num, shards))
        plain, totals = self._index(results)
        table = pa.ipc.open_file(pa.BufferReader(plain)).read_all()
        table = table.append_column("layout", pa.array([LAYOUT] * len(documents), pa.string()))
        kind = pa.struct(
            [("path", pa.string()), ("num_bytes", pa.int64()), ("sha256", pa.string())]
        )
        table = table.append_column("documents", pa.array(documents, kind))
        out = pa.BufferOutputStream()
        with pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
        return out.getvalue().to_pybytes(), totals

    def _path(self, uri: str) -> str:
        """Return a path below the output, or a full address."""
        full, folder = self.storage.resolve(uri), self.storage.resolve(self.output)
        return full.removeprefix(folder.rstrip("/") + "/")

    def _scan(self, prefix: str) -> tuple[str, list[ImportedFile]]:
        index = read_index(prefix, self.storage)
        sha256, num_bytes = self._check_ids(index)
        digest = hashlib.sha256(index.idx_bytes).hexdigest()
        name = self._name(prefix)
        return index.dtype.name, [
            ImportedFile(f"{name}.bin", num_bytes, sha256),
            ImportedFile(f"{name}.idx", len(index.idx_bytes), digest),
        ]

    def _name(self, prefix: str) -> str:
        full, folder = self.storage.resolve(prefix), self.storage.resolve(self.source)
        below = full.removeprefix(folder.rstrip("/") + "/")
        return below if below != full else full.rsplit("/", 1)[-1]

    def _check_ids(self, index: MegatronIndex) -> tuple[str, int]:
        """Read a ``.bin``; return its SHA-256 and size."""
        digest, done = hashlib.sha256(), 0
        with self.storage.open_read(index.bin_uri) as file:
            while data := _read_chunk(file):
                digest.update(data)
                ids = np.frombuffer(data, index.dtype, len(data) // index.dtype.itemsize)
                if int(ids.max()) >= self.vocab_size or int(ids.min()) < 0:
                    wrong = (ids < 0) | (ids >= self.vocab_size)
                    at = int(np.argmax(wrong))
                    raise ContractError(
                        f"{index.bin_uri}: id {int(ids[at]):,} at position "
                        f"{done // index.dtype.itemsize + at:,}, the vocabulary is said to be "
                        f"{self.vocab_size:,}",
                        hint="give the right --vocab-size or --tokenizer",
                    )
                done += len(data)
                self.count.add(len(data))
        expected = int(index.offsets[-1]) * index.dtype.itemsize
        if done != expected:
            raise IntegrityError(
                f"{index.bin_uri}: {done:,} bytes, {expected:,} when this began",
                hint="it changes: import it when it is whole",
            )
        return digest.hexdigest(), done


class _Mds(_Import):
    """A folder of MDS shards: partition i is shard i, copied into ordinary shards."""

    is_copied = True

    def look(self) -> None:
        """Read every shard once: for its hash, and what its columns hold."""
        self._shards = [s for s in read_mds_index(self.source, self.storage) if s.num_samples]
        if not self._shards:
            raise SpecError(f"{self.source}: no sample in it")
        self._encodings = self._shards[0].columns
        check_encodings(self._encodings)
        columns = self._decoded(self._shards[0])[0]
        specs = {n: spec_of(e, columns[n]) for n, e in self._encodings.items()}
        if self.ids_field is None:
            self.ids_field = only_ids(self._encodings, specs)
        elif self.ids_field not in specs:
            raise SpecError(
                f"--field {self.ids_field}: no such column", hint=f"choose of {', '.join(specs)}"
            )
        self._has_keys = self._encodings.get(_KEY) == "str"
        if _KEY in specs and not self._has_keys:
            raise ContractError(
                f"column 'key' is {self._encodings[_KEY]}, a sample's key is text",
                hint="write it again under another name",
            )
        _, dtype = id_column(
            self.ids_field, columns[self.ids_field], specs[self.ids_field], self.vocab_size
        )
        ids = FieldSpec(dtype, specs[self.ids_field].shape, self.vocab_size)
        self.specs = {n: ids if n == self.ids_field else s for n, s in specs.items() if n != _KEY}
        self.count.total = 2 * sum(shard.num_bytes for shard in self._shards)
        with ThreadPoolExecutor(READERS, "import") as pool:
            self.files = list(pool.map(self._hashed, self._shards))

    def write(self, fingerprint: str) -> tuple[bytes, dict[str, Any]]:
        """Copy every shard; return the index and the totals."""
        counts = np.array([shard.num_samples for shard in self._shards])
        firsts: list[int] = (np.cumsum(counts) - counts).tolist()
        with ThreadPoolExecutor(READERS, "import") as pool:
            copied = pool.map(
                lambda number: self._copy(number, firsts[number], fingerprint), range(len(counts))
            )
            return self._index(list(copied))

    def _decoded(self, shard: MdsShard) -> tuple[dict[str, Any], str]:
        data, sha256 = read_mds(self.source, shard, self.storage)
        return decode_mds(join(self.source, shard.path), data, shard), sha256

    def _hashed(self, shard: MdsShard) -> ImportedFile:
        _, sha256 = read_mds(self.source, shard, self.storage)
        self.count.add(shard.num_bytes)
        return ImportedFile(shard.path, shard.num_bytes, sha256)

    def _copy(self, number: int, first: int, fingerprint: str) -> PartitionResult:
        assert self.ids_field is not None
        shard = self._shards[number]
        columns, sha256 = self._decoded(shard)
        uri = join(self.source, shard.path)
        if sha256 != self.files[number].sha256:
            raise IntegrityError(f"{uri}: changed while it was imported", hint="import it again")
        for name, spec in self.specs.items():
            now = spec_of(self._encodings[name], columns[name])
            if now.shape != spec.shape:
                raise ContractError(
                    f"{uri}: field {name!r} is {now}, in the shards before it {spec}",
                    hint="all rows must agree but in their first dimension",
                )
        columns[self.ids_field], _ = id_column(
            self.ids_field,
            columns[self.ids_field],
            spec_of(self._encodings[self.ids_field], columns[self.ids_field]),
            self.vocab_size,
        )
        num = shard.num_samples
        if not self._has_keys:
            rows = np.arange(first, first + num).astype(str)
            columns[_KEY] = pa.array(np.char.zfill(rows, 10).tolist(), pa.large_string())
        sink = ArrowSink(
            self.storage,
            self.output,
            number,
            [shard.path],
            self.specs,
            {
                "format_version": FORMAT_VERSION,
                "fingerprint": fingerprint,
                "partition": number,
                "fields": {name: asdict(spec) for name, spec in self.specs.items()},
            },
            compression="none",
            shard_bytes=1 << 30,
        )
        try:
            sink.write(columns, np.zeros(num, np.int32), np.arange(num))
            written = sink.close()
        except BaseException:
            sink.abort()
            raise
        self.count.add(shard.num_bytes)
        return _result(number, num, written)


def _result(number: int, num: int, shards: Sequence[Shard]) -> PartitionResult:
    return PartitionResult(
        partition=number,
        num_input=num,
        num_written=num,
        filtered={},
        quarantined={},
        shards=tuple(shards),
        quarantine=None,
        golden=None,
        stages={},
        wall_s=0.0,
        worker="import",
    )


def _read_chunk(file: Any) -> bytes:
    """Read whole ids: fewer bytes than asked for come at the end alone."""
    parts: list[bytes] = []
    missing = _CHUNK_BYTES
    while missing and (data := file.read(missing)):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)
