"""How much of its codebook a tokenizer uses: counted in the shards of a finished data set."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from threading import Event, Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError
from pipeline.flat_shards import Documents, flat_batches, is_flat
from pipeline.manifest import DataSet, Manifest
from pipeline.report.histogram import DENSE_SIZE, Histogram, make_counter
from pipeline.storage import NotFoundError, join

CODEBOOK = "codebook.json"
CODEBOOK_VERSION = 1

NUM_TOP = 20
CURVE_POINTS = 50

READERS = 8
"""Shards read at a time: a distant store lets a reader wait. Counting itself takes one core."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class IdFigures:
    """What counts of ids say: N ids, of which D are different and occur c times each.

    Attributes:
        ids: N.
        used: D.
        used_share: D / codebook size.
        entropy_bits: Sum of -(c / N) log2(c / N); None without ids.
        perplexity: 2 ** entropy: as many ids, all equally frequent, have the same entropy.
        zipf_slope: Slope of the line through (log rank, log c) of the D ids, rank 1 being the most
            frequent; least squares, every id weighing the same. Equally frequent ids have 0, words
            of a text about -1. None for fewer than two different ids.
        kept_share: 1; or less when there were too many different ids to keep (``Histogram``), and
            all but N is estimated from this share of them.
    """

    ids: int
    used: int
    used_share: float
    entropy_bits: float | None
    perplexity: float | None
    zipf_slope: float | None
    kept_share: float


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """Figures of one stream of a field.

    Attributes:
        stream: Its name in the token layout; ``id`` when there is but one.
        codebook_size: All ids lie below it.
        all: Of all its ids.
        scales: Of the ids of each scale, coarsest first, when the layout has scales.
        top: The most frequent ids, each with its count.
        curve: Ranks, evenly spaced by their logarithm, each with the count of its id.
    """

    stream: str
    codebook_size: int
    all: IdFigures
    scales: Sequence[IdFigures]
    top: Sequence[tuple[int, int]]
    curve: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class FieldFigures:
    """Figures of one field of ids.

    Attributes:
        scales: Sides of the layout's scales.
        streams: In the layout's order.
    """

    scales: Sequence[int]
    streams: Sequence[StreamFigures]


@dataclass(frozen=True, slots=True)
class CodebookReport:
    """Figures of every field of ids: the content of ``codebook.json``.

    Attributes:
        fingerprint: Of the data set.
        index_sha256: Of its index, so that it can be told whether the shards are still these.
        random_weights: The tokens mean nothing, and so do the figures.
        fields: Field -> figures, in the order of the shards.
    """

    fingerprint: str
    index_sha256: str
    random_weights: bool
    fields: Mapping[str, FieldFigures]
    version: int = CODEBOOK_VERSION

    def to_json(self) -> bytes:
        """Return the bytes of ``codebook.json``."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()


def kept_report(data: DataSet) -> CodebookReport | None:
    """Return the figures that lie beside a data set, unless they are those of other shards."""
    try:
        raw = json.loads(data.storage.read(join(data.uri, CODEBOOK)))
        fields = {name: _field_figures(each) for name, each in raw["fields"].items()}
        report = CodebookReport(**{**raw, "fields": fields})
    except (NotFoundError, ValueError, KeyError, TypeError):  # none, or of another version
        return None
    manifest = data.manifest
    now = (CODEBOOK_VERSION, manifest.fingerprint, manifest.index_sha256)
    found = (report.version, report.fingerprint, report.index_sha256)
    return report if found == now else None


def keep_report(data: DataSet, report: CodebookReport) -> None:
    """Write the figures beside the data set, of which they are no part."""
    data.storage.write(join(data.uri, CODEBOOK), report.to_json())


def count_ids(data: DataSet, progress: Progress | None = None) -> CodebookReport:
    """Read the ids of a data set once, and nothing else of it, and return their figures.

    Takes memory by the size of the codebooks, not of the data set.

    Args:
        data: The data set.
        progress: Told the ids that were counted so far, and how many there are.

    Raises:
        IntegrityError: a shard is not what manifest and index say.
    """
    counting = _Counting(data, progress)
    with ThreadPoolExecutor(READERS, "count") as pool:
        workers = [pool.submit(counting.work) for _ in range(READERS)]
        try:
            for worker in workers:
                worker.result()
        except BaseException:  # Ctrl-C, too: do not wait until the other shards are counted
            counting.stop()
            raise
    return CodebookReport(
        fingerprint=data.manifest.fingerprint,
        index_sha256=data.manifest.index_sha256,
        random_weights=data.manifest.random_weights,
        fields={field.name: field.figures() for field in counting.fields},
    )


class _Counting:
    """Counts the shards of a data set, from several threads."""

    def __init__(self, data: DataSet, progress: Progress | None) -> None:
        manifest, names = data.manifest, data.manifest.recipe["shards"]["fields"]
        self.fields = [
            _Field(name, manifest) for name in names if manifest.fields[name].vocab_size is not None
        ]
        # Behind the key. Other columns are not even read.
        self._columns = [1 + names.index(field.name) for field in self.fields]
        self._data = data
        self._progress = progress
        totals = [pc.sum(data.shards[f"tokens.{field.name}"]).as_py() for field in self.fields]
        self._total, self._done = sum(total or 0 for total in totals), 0
        self._lock = Lock()
        self._stopped = Event()
        self._shards = self._all_shards() if self.fields else iter(())

    def work(self) -> None:
        """Count shards until none is left."""
        try:
            while (shard := self._next()) is not None:
                uri = self._data.shard_uri(shard["path"])
                with _integrity_errors(uri):
                    for batch in self._batches(uri, shard["num_bytes"], shard["number"]):
                        self._add(batch)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Let every thread end after its record batch."""
        self._stopped.set()

    def _all_shards(self) -> Iterator[Mapping[str, Any]]:
        shards = self._data.shards.select(["path", "num_bytes"])
        shards = shards.append_column("number", pa.array(np.arange(shards.num_rows)))
        for batch in shards.to_batches(1024):
            yield from batch.to_pylist()

    def _next(self) -> Mapping[str, Any] | None:
        with self._lock:
            return None if self._stopped.is_set() else next(self._shards, None)

    def _batches(self, uri: str, num_bytes: int, shard: int) -> Iterator[pa.RecordBatch]:
        storage = self._data.storage
        local = storage.local_path(uri)
        with storage.open_read(uri, read_ahead=False) as file:
            found = storage.opened(uri, file).num_bytes
            if found != num_bytes:
                raise ValueError(f"{found:,} bytes, the index says {num_bytes:,}")
            if is_flat(self._data, shard):
                ((name, spec),) = self._data.manifest.fields.items()
                documents = Documents(self._data, shard)
                for batch in flat_batches(file, documents, [name], name, spec, 0):
                    if self._stopped.is_set():
                        return
                    yield batch
                return
            source = pa.PythonFile(file, "r") if local is None else pa.memory_map(str(local))
            options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=self._columns)
            reader = pa.ipc.open_file(source, options=options)
            for number in range(reader.num_record_batches):
                if self._stopped.is_set():
                    return
                yield reader.get_batch(number)

    def _add(self, batch: pa.RecordBatch) -> None:
        with self._lock:
            for field in self.fields:
                self._done += field.add(batch.column(field.name))
            if self._progress is not None:
                self._progress(self._done, self._total)


@contextmanager
def _integrity_errors(uri: str) -> Iterator[None]:
    hint = "`pipeline verify` tells what is damaged, and with --repair mends it"
    try:
        yield
    except (pa.ArrowException, KeyError) as error:
        raise IntegrityError(f"{uri}: not a shard ({error})", hint=hint) from None
    except ValueError as error:
        raise IntegrityError(f"{uri}: {error}", hint=hint) from None


class _Field:
    """Counts the ids of one field."""

    def __init__(self, name: str, manifest: Manifest) -> None:
        spec = manifest.fields[name]
        assert spec.vocab_size is not None
        self.name = name
        layout = _layout_of(name, manifest)
        self._streams: list[str] = layout.get("streams", ["id"])
        self._sizes: list[int] = layout.get("codebook_sizes", [spec.vocab_size])
        self._sides: list[int] = layout.get("scales", [])
        self._stops = np.cumsum(np.square(np.array(self._sides, np.int64)))
        self._num_positions = layout.get("positions", 1)
        # Of each stream the counter of all its ids, then one for each scale.
        num = 1 + len(self._sides)
        room = DENSE_SIZE // (num * len(self._sizes))
        self._counters = [[make_counter(size, room) for _ in range(num)] for size in self._sizes]

    def add(self, column: pa.Array) -> int:
        """Count a column, and return the number of its ids."""
        num_streams = len(self._sizes)
        ids_MS = _values(column).reshape(-1, num_streams)  # M positions of all rows, S streams
        for stream, size in enumerate(self._sizes):
            ids = ids_MS[:, stream]
            if len(ids) and int(ids.max()) >= size:
                raise ValueError(
                    f"field {self.name!r} holds id {int(ids.max()):,}, the codebook of stream "
                    f"{self._streams[stream]!r} has {size:,} ids"
                )
            self._counters[stream][0].add(ids)
        if self._sides:
            scales_M = np.searchsorted(self._stops, self._places(column, len(ids_MS)), side="right")
            for scale in range(len(self._sides)):
                ids_of_scale_MS = ids_MS[scales_M == scale]
                for stream in range(num_streams):
                    self._counters[stream][1 + scale].add(ids_of_scale_MS[:, stream])
        return ids_MS.size

    def figures(self) -> FieldFigures:
        """Return what was counted."""
        streams = []
        for name, size, counters in zip(self._streams, self._sizes, self._counters, strict=True):
            ranked, *scales = [_ranked(counter.histogram()) for counter in counters]
            streams.append(
                StreamFigures(
                    stream=name,
                    codebook_size=size,
                    all=_id_figures(ranked, size),
                    scales=[_id_figures(scale, size) for scale in scales],
                    top=_pairs(ranked.ids[:NUM_TOP], ranked.counts[:NUM_TOP]),
                    curve=_curve(ranked),
                )
            )
        return FieldFigures(self._sides, streams)

    def _places(self, column: pa.Array, num: int) -> np.ndarray:
        """Return int64 [num]: where each position stands in its row, or in its view of the row."""
        if not pa.types.is_list(column.type):
            starts = np.arange(num) // self._num_positions * self._num_positions
        else:
            offsets = column.offsets.to_numpy()
            starts = np.repeat(offsets[:-1] - offsets[0], np.diff(offsets))
        places: np.ndarray = np.arange(num) - starts
        return places


def _layout_of(name: str, manifest: Manifest) -> Mapping[str, Any]:
    """Return the token layout of a field, or an empty one when none describes it."""
    makers = [item for item in manifest.operators if name in item.get("outputs", ())]
    layout = makers[-1].get("metadata", {}).get("layout") if makers else None
    if not layout:
        return {}
    views = (layout["views"],) if "views" in layout else ()
    streams = (len(layout["streams"]),) if len(layout["streams"]) > 1 else ()
    shapes = [(*views, length, *streams) for length in (layout["positions"], None)]
    fits = len(layout["streams"]) == len(layout["codebook_sizes"])
    return layout if fits and manifest.fields[name].shape in shapes else {}


def _values(column: pa.Array) -> np.ndarray:
    """Return the values of a column, one after the other, without a copy."""
    while pa.types.is_nested(column.type):
        column = column.flatten()
    values: np.ndarray = column.to_numpy()
    return values


def _ranked(histogram: Histogram) -> Histogram:
    """Return it with the most frequent ids first; of equally frequent ones the lowest."""
    order = np.argsort(-histogram.counts, kind="stable")
    return replace(histogram, ids=histogram.ids[order], counts=histogram.counts[order])


def _id_figures(ranked: Histogram, codebook_size: int) -> IdFigures:
    used = round(len(ranked.ids) / ranked.share)
    entropy = _entropy_bits(ranked)
    return IdFigures(
        ids=ranked.total,
        used=used,
        used_share=used / codebook_size,
        entropy_bits=entropy,
        perplexity=None if entropy is None else 2.0**entropy,
        zipf_slope=_zipf_slope(ranked.counts),
        kept_share=ranked.share,
    )


def _entropy_bits(ranked: Histogram) -> float | None:
    if not ranked.total:
        return None
    most = float(np.log2(ranked.total))
    counts = ranked.counts.astype(np.float64)
    # The sum of -(c / N) log2(c / N) is log2(N) minus the mean of log2(c) over all ids.
    mean = float(counts @ np.log2(counts)) / (ranked.total * ranked.share)
    return min(max(most - mean, 0.0), most)


def _zipf_slope(ranked_counts: np.ndarray) -> float | None:
    if len(ranked_counts) < 2:
        return None
    x = np.log(np.arange(1, len(ranked_counts) + 1))
    y = np.log(ranked_counts)
    x -= x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


def _curve(ranked: Histogram) -> list[tuple[int, int]]:
    num = len(ranked.ids)
    if not num:
        return []
    ranks = np.unique(np.geomspace(1, num, CURVE_POINTS).round().astype(np.int64))
    return _pairs((ranks / ranked.share).round().astype(np.int64), ranked.counts[ranks - 1])


def _pairs(first: np.ndarray, second: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(first.tolist(), second.tolist(), strict=True))


def _field_figures(raw: Mapping[str, Any]) -> FieldFigures:
    return FieldFigures(raw["scales"], [_stream_figures(stream) for stream in raw["streams"]])


def _stream_figures(raw: Mapping[str, Any]) -> StreamFigures:
    return StreamFigures(
        **{
            **raw,
            "all": IdFigures(**raw["all"]),
            "scales": [IdFigures(**scale) for scale in raw["scales"]],
            **{name: [tuple(pair) for pair in raw[name]] for name in ("top", "curve")},
        }
    )
