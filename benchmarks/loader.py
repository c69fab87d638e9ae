r"""Tokens a CPU-second out of finished shards: this project's loader, a raw memory map, and peers.

One stream of tokens, made on the spot: documents of log-normal length, uniform ids of a vocabulary
of 50,257. It is stored as a data set of documents, and, cut to sequences of 2,048 (what most peers
want), as a second one; `pipeline export` writes that one in each peer's own format. So all read
the same sequences, and a digest of everything read says whether they did.

A case lives in a process of its own. It first reads a whole epoch for the digest and the memory;
then it is measured in whole epochs, start of the epoch included, each time right after the raw
memory map doing the same work. The ratio of such a pair is of CPU time, of all threads and worker
processes: it hardly changes when others use the cores. Ratios by the clock are shown as well.

The raw memory map is what a good user would write by hand: see ``raw_*``.

    python -m benchmarks.loader --tokens 128             # millions
    python -m benchmarks.loader --tokens 8 --rounds 2 --only tokenmill

Peers are measured where they are installed and named where not. mosaicml-streaming and litdata ask
for torchvision, which nothing here uses, so they go without their dependencies into an environment
of their own:

    python -m venv PEERS
    PEERS/bin/pip install -e '.[packing]' psutil datasets webdataset loguru humanize dill \
        multiprocess Brotli lightning-utilities obstore boto3 tifffile python-snappy zstd \
        catalogue paramiko xxhash
    PEERS/bin/pip install --no-deps datatrove litdata mosaicml-streaming
"""

import argparse
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.peers import stand_in_torchvision
from operators.base import FieldSpec, Ragged
from pipeline.export import ExportSettings
from pipeline.exporting import export
from pipeline.loader import Packed, RaggedBatch, TokenDataset, Windows
from pipeline.manifest import FORMAT_VERSION, INDEX, MANIFEST, Manifest, index_bytes
from pipeline.protocols import PartitionResult
from pipeline.sinks import ArrowSink
from pipeline.storage import Storage, join

LENGTH, ROWS = 2048, 8  # of a sequence, of a batch
VOCAB_SIZE = 50_257
PARTITIONS = 16
FIELD = "tokens"
EXPORTS = ("nanogpt", "mds", "litdata", "hf-datasets", "webdataset", "datatrove")
WORKERS = 2

Epoch = Callable[[], Iterable[Any]]  # a new iteration over everything
Open = Callable[[Path], Epoch]


@dataclass(frozen=True)
class Case:
    """One way to read everything.

    Attributes:
        name: What the table calls it; a peer's begins with its name.
        open: Makes it, given the folder of the corpus.
        baseline: The raw case that does the same work; none if it is one itself.
        digest: What must be equal to the raw case's: ``order`` of sequences, ``sequences`` in any
            order, or ``ids`` in any order.
        workers: Whether worker processes read.
    """

    name: str
    open: Open
    baseline: str = ""
    digest: str = "sequences"
    workers: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=128, help="size of the corpus, millions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU time of a turn, at least")
    parser.add_argument("--only", default="", help="part of the names of the cases to measure")
    parser.add_argument("--corpus", type=Path, help="where to keep the corpus between runs")
    args = parser.parse_args()
    versions = [f"{name} {version(name)}" for name in ("torch", "numpy", *PEERS.values())]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{time.strftime('%Y-%m-%d')}; {', '.join(versions)}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        corpus = args.corpus or Path(folder)
        if not (corpus / "corpus.json").exists():
            make_corpus(corpus, args.tokens * 1_000_000)
        print(f"corpus: {json.loads((corpus / 'corpus.json').read_text())}", flush=True)
        compare(corpus, args)


def compare(corpus: Path, args: argparse.Namespace) -> None:
    cases = [case for case in CASES if not case.baseline or args.only in case.name]
    running: dict[str, Running] = {}
    try:
        for case in cases:
            started = Running(case, corpus)
            if not started.absent:
                started.check()
            if started.absent:
                print(f"{case.name}: absent ({started.absent})", flush=True)
                started.stop()
                continue
            running[case.name] = started
        wrong = [r.case.name for r in running.values() if not r.agrees(running)]
        print(f"IDS DIFFER: {', '.join(wrong)}" if wrong else "ids are identical everywhere")
        pairs: dict[str, list[tuple[Turn, Turn]]] = {}
        for _ in range(args.rounds):
            for name, one in running.items():
                if one.case.baseline:
                    raw = running[one.case.baseline].turn(args.seconds)
                    pairs.setdefault(name, []).append((one.turn(args.seconds), raw))
        show(running, pairs)
    finally:
        for one in running.values():
            one.stop()


def show(running: Mapping[str, "Running"], pairs: Mapping[str, Sequence[Any]]) -> None:
    print(
        "\n| case | M tokens/CPU-s | of the raw map: median (each pair) | by the clock | memory |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name, turns in pairs.items():
        ratios = [one.per_cpu_s / raw.per_cpu_s for one, raw in turns]
        clock = statistics.median(one.per_second / raw.per_second for one, raw in turns)
        speed = statistics.median(one.per_cpu_s for one, _ in turns) / 1e6
        each = ", ".join(f"{ratio:.3g}" for ratio in ratios)
        print(
            f"| {name} | {speed:,.0f} | **{statistics.median(ratios):.3g}** ({each}) "
            f"| {clock:.3g} | {running[name].memory} |"
        )
    for name, one in running.items():
        if not one.case.baseline and one.turns:
            speed = statistics.median(turn.per_cpu_s for turn in one.turns) / 1e6
            print(f"| {name} | {speed:,.0f} | | | {one.memory} |")


@dataclass(frozen=True)
class Turn:
    """What was read in a few epochs, and how long it took."""

    tokens: int
    cpu_s: float
    wall_s: float

    @property
    def per_cpu_s(self) -> float:
        return self.tokens / self.cpu_s

    @property
    def per_second(self) -> float:
        return self.tokens / self.wall_s


class Running:
    """A case in its process."""

    def __init__(self, case: Case, corpus: Path) -> None:
        self.case = case
        self.turns: list[Turn] = []
        self.memory = ""
        self._found: dict[str, Any] = {}
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, case.name, corpus))
        self._process.start()
        theirs.close()
        self.absent = self._receive()

    def check(self) -> None:
        """Read an epoch; where that fails, a library is not what it should be."""
        try:
            self._found = self._ask("check")
        except EOFError:
            self.absent = "it failed, see above"
            return
        start, peak, end = self._found["memory"]
        if not self.case.workers:
            self.memory = f"{start:.0f}, {peak:.0f}, {end:.0f} MB"
        print(f"{self.case.name}: read {self._found['tokens']:,} tokens", flush=True)

    def agrees(self, running: Mapping[str, "Running"]) -> bool:
        raw = running[self.case.baseline or self.case.name]
        names = ("tokens", self.case.digest)
        return all(self._found[name] == raw._found[name] for name in names)

    def turn(self, seconds: float) -> Turn:
        epochs, cpu_s, wall_s = self._ask(seconds)
        turn = Turn(epochs * self._found["tokens"], cpu_s, wall_s)
        self.turns.append(turn)
        return turn

    def stop(self) -> None:
        self._pipe.close()  # which ends serve()
        self._process.join()

    def _ask(self, what: Any) -> Any:
        self._pipe.send(what)
        return self._receive()

    def _receive(self) -> Any:
        return self._pipe.recv()


def serve(pipe: Connection, name: str, corpus: Path) -> None:
    """Run a case in this process, as the parent asks."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # Linux's own, also for the workers
    case = next(case for case in CASES if case.name == name)
    stand_in_torchvision()
    try:
        epoch = case.open(corpus)
    except ImportError as error:
        pipe.send(str(error))
        return
    pipe.send("")
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        pipe.send(check(epoch) if asked == "check" else read(epoch, asked, case.workers))


def read(epoch: Epoch, seconds: float, workers: bool) -> tuple[int, float, float]:
    """Read whole epochs until so much CPU time is spent."""
    spent = all_cpu_seconds if workers else time.process_time
    epochs, began_cpu_s, began = 0, spent(), time.perf_counter()
    while True:
        for _ in epoch():
            pass
        epochs += 1
        cpu_s = spent() - began_cpu_s
        if cpu_s >= seconds:
            return epochs, cpu_s, time.perf_counter() - began


def all_cpu_seconds() -> float:
    """Return CPU seconds of this process and its workers, which live on between epochs."""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in [me, *me.children(recursive=True)])


def check(epoch: Epoch) -> dict[str, Any]:
    """Read an epoch for its digests, and for the memory that reading takes."""
    random = np.random.default_rng(0)
    weights = random.integers(0, 1 << 63, LENGTH, dtype=np.uint64)
    tokens, ids, sequences, order, row = 0, 0, 0, 0, 0
    memory = []
    for number, batch in enumerate(epoch()):
        if number % 256 == 64:
            memory.append(resident_megabytes())
        values = batch_ids(batch)
        tokens += values.size
        ids += int(mixed(values).sum())
        if values.ndim == 2:
            hashes = (values * weights).sum(axis=1)
            places = np.arange(row, row + len(hashes)).astype(np.uint64)
            row += len(hashes)
            sequences += int(mixed(hashes).sum())
            order += int(mixed(hashes ^ mixed(places)).sum())
    found = {"ids": ids, "sequences": sequences, "order": order}
    digests = {name: f"{number % (1 << 64):016x}" for name, number in found.items()}
    return {"tokens": tokens, **digests, "memory": (memory[0], max(memory), memory[-1])}


def batch_ids(batch: Any) -> np.ndarray:
    """Return the ids of a batch as uint64: [B, LENGTH], or [M] where there are no full rows."""
    if isinstance(batch, torch.Tensor):
        assert batch.dtype == torch.int64, batch.dtype
        ids = batch
    elif isinstance(batch, RaggedBatch):
        ids = batch.values
    else:
        ids = batch[FIELD][batch["document_ids"] >= 0]
    return np.asarray(ids.numpy(), np.uint64)


def mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    folded: np.ndarray = values ^ (values >> np.uint64(29))
    return folded


def resident_megabytes() -> float:
    """Return anonymous memory; pages of a map belong to the system's cache."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


# The raw memory map, as a good user writes it


def raw_tokens(corpus: Path) -> np.ndarray:
    # A plain array over the map: slicing a numpy.memmap makes an object of that class each time.
    return np.asarray(np.memmap(corpus / "nanogpt" / "train.bin", np.uint16, "r"))


def raw_in_order(corpus: Path) -> Epoch:
    tokens = raw_tokens(corpus)
    step = ROWS * LENGTH

    def epoch() -> Iterator[torch.Tensor]:
        for start in range(0, len(tokens), step):
            batch = tokens[start : start + step].astype(np.int64)
            yield torch.from_numpy(batch.reshape(-1, LENGTH))

    return epoch


def raw_shuffled(corpus: Path, rows: int = ROWS) -> Epoch:
    tokens = raw_tokens(corpus)
    random = np.random.default_rng(0)

    def epoch() -> Iterator[torch.Tensor]:
        starts = (random.permutation(len(tokens) // LENGTH) * LENGTH).tolist()
        for first in range(0, len(starts), rows):
            taken = starts[first : first + rows]
            batch = np.empty((len(taken), LENGTH), np.int64)
            for row, start in enumerate(taken):
                batch[row] = tokens[start : start + LENGTH]
            yield torch.from_numpy(batch)

    return epoch


def plain_in_order(corpus: Path) -> Epoch:
    tokens = np.memmap(corpus / "nanogpt" / "train.bin", np.uint16, "r")
    step = ROWS * LENGTH

    def epoch() -> Iterator[torch.Tensor]:
        for start in range(0, len(tokens), step):
            batch = tokens[start : start + step].astype(np.int64)
            yield torch.from_numpy(batch.reshape(-1, LENGTH))

    return epoch


def nanogpt_shuffled(corpus: Path) -> Epoch:
    tokens = np.memmap(corpus / "nanogpt" / "train.bin", np.uint16, "r")
    random = np.random.default_rng(0)

    def epoch() -> Iterator[torch.Tensor]:
        starts = (random.permutation(len(tokens) // LENGTH) * LENGTH).tolist()
        for first in range(0, len(starts), ROWS):
            rows = [tokens[i : i + LENGTH].astype(np.int64) for i in starts[first : first + ROWS]]
            yield torch.stack([torch.from_numpy(row) for row in rows])

    return epoch


def raw_single(corpus: Path, tokens: np.ndarray | None = None) -> Epoch:
    tokens = raw_tokens(corpus) if tokens is None else tokens
    random = np.random.default_rng(0)

    def epoch() -> Iterator[torch.Tensor]:
        for start in (random.permutation(len(tokens) // LENGTH) * LENGTH).tolist():
            yield torch.from_numpy(tokens[start : start + LENGTH].astype(np.int64)[None])

    return epoch


def plain_single(corpus: Path) -> Epoch:
    return raw_single(corpus, np.memmap(corpus / "nanogpt" / "train.bin", np.uint16, "r"))


def plain_documents(corpus: Path) -> Epoch:
    return raw_documents(corpus, np.memmap(corpus / "nanogpt" / "train.bin", np.uint16, "r"))


def raw_documents(corpus: Path, tokens: np.ndarray | None = None) -> Epoch:
    tokens = raw_tokens(corpus) if tokens is None else tokens
    bounds = np.load(corpus / "bounds.npy")
    random = np.random.default_rng(0)

    def epoch() -> Iterator[RaggedBatch]:
        order = random.permutation(len(bounds) - 1)
        for first in range(0, len(order), ROWS):
            taken = order[first : first + ROWS]
            starts, stops = bounds[taken], bounds[taken + 1]
            pairs = zip(starts.tolist(), stops.tolist(), strict=True)
            values = np.concatenate([tokens[start:stop] for start, stop in pairs])
            offsets = np.concatenate(([0], np.cumsum(stops - starts)))
            yield RaggedBatch(torch.from_numpy(values), torch.from_numpy(offsets))

    return epoch


class RawWorkers(IterableDataset):  # type: ignore[misc]
    """Batches of the raw map for a ``DataLoader``, whose workers take them in turn."""

    def __init__(self, corpus: Path) -> None:
        super().__init__()
        self._corpus = corpus

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        tokens = raw_tokens(self._corpus)
        step = ROWS * LENGTH
        for start in range(info.id * step, len(tokens), info.num_workers * step):
            batch = tokens[start : start + step].astype(np.int64)
            yield torch.from_numpy(batch.reshape(-1, LENGTH))


# This project


def ours(*, workers: int = 0, pick: str = FIELD, **settings: Any) -> Open:
    def opened(corpus: Path) -> Epoch:
        data = TokenDataset(corpus / "documents", cache_dir=corpus / "cache", **settings)
        batches = with_workers(data, workers) if workers else data
        number = 0

        def epoch() -> Iterator[Any]:
            nonlocal number
            data.set_epoch(number)
            number += 1
            for batch in batches:
                yield batch[pick] if pick else batch

        return epoch

    return opened


# Peers, each as its documentation shows; without workers, rows are stacked by hand


def litdata(*, shuffle: bool = False, workers: int = 0, single: bool = False) -> Open:
    def opened(corpus: Path) -> Epoch:
        from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

        data = StreamingDataset(
            str(corpus / "litdata"), item_loader=TokensLoader(block_size=LENGTH), shuffle=shuffle
        )
        if single:
            return one_by_one(data, lambda ids: ids.long()[None])
        if workers:
            loader = StreamingDataLoader(
                data, batch_size=ROWS, num_workers=workers, persistent_workers=True
            )
            return lambda: (batch.long() for batch in loader)
        return lambda: (torch.stack(rows).long() for rows in groups(data))

    return opened


def mds(*, shuffle: bool = False, workers: int = 0, single: bool = False) -> Open:
    def opened(corpus: Path) -> Epoch:
        from streaming import StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        # One canonical node, as there is one: the default of 64 for shuffling is for elasticity.
        data = StreamingDataset(
            local=str(corpus / "mds"), batch_size=ROWS, shuffle=shuffle, num_canonical_nodes=1
        )
        if single:
            return one_by_one(data, lambda row: as_batch([row[FIELD]]))
        if workers:
            loader = DataLoader(data, batch_size=ROWS, num_workers=workers, persistent_workers=True)
            return lambda: (batch[FIELD].long() for batch in loader)
        return lambda: (as_batch([row[FIELD] for row in rows]) for rows in groups(data))

    return opened


def hugging_face(*, shuffle: bool = False, workers: int = 0, single: bool = False) -> Open:
    def opened(corpus: Path) -> Epoch:
        from datasets import load_from_disk

        stored = load_from_disk(str(corpus / "hf-datasets")).with_format("numpy")
        if single:
            return one_by_one(stored, lambda row: as_batch([row[FIELD]]))
        if workers:
            loader = DataLoader(
                stored.with_format("torch"),
                batch_size=ROWS,
                num_workers=workers,
                persistent_workers=True,
            )
            return lambda: (batch[FIELD].long() for batch in loader)
        seeds = iter(range(1 << 30))

        def epoch() -> Iterator[torch.Tensor]:
            data = stored.shuffle(seed=next(seeds)) if shuffle else stored
            for batch in data.iter(batch_size=ROWS):
                yield as_batch(batch[FIELD])

        return epoch

    return opened


def webdataset(*, shuffle: bool = False, workers: int = 0) -> Open:
    def opened(corpus: Path) -> Epoch:
        import webdataset as wds

        urls = [str(path) for path in sorted((corpus / "webdataset").glob("*.tar"))]
        data = wds.WebDataset(urls, shardshuffle=100 if shuffle else False)
        if shuffle:
            data = data.shuffle(1000)
        data = data.decode().to_tuple(f"{FIELD}.npy").batched(ROWS)
        batches = with_workers(data, workers) if workers else data
        return lambda: (as_batch(rows) for (rows,) in batches)

    return opened


def datatrove(*, shuffle: bool = False, workers: int = 0, single: bool = False) -> Open:
    def opened(corpus: Path) -> Epoch:
        from datatrove.utils.dataset import DatatroveFolderDataset

        # It reads one token more than it is asked for.
        data = DatatroveFolderDataset(str(corpus / "datatrove"), seq_len=LENGTH - 1)
        if single:
            return one_by_one(data, lambda row: row["input_ids"][None])
        if workers:
            loader = DataLoader(data, batch_size=ROWS, num_workers=workers, persistent_workers=True)
            return lambda: (batch["input_ids"] for batch in loader)
        seeds = iter(range(1 << 30))

        def epoch() -> Iterator[torch.Tensor]:
            numbers = np.arange(len(data))
            if shuffle:
                np.random.default_rng(next(seeds)).shuffle(numbers)
            for rows in groups(data[number] for number in numbers.tolist()):
                yield torch.stack([row["input_ids"] for row in rows])

        return epoch

    return opened


def one_by_one(data: Any, as_one: Callable[[Any], torch.Tensor]) -> Epoch:
    """Read every sequence by its number, in an order drawn anew each time."""
    random = np.random.default_rng(0)
    return lambda: (as_one(data[number]) for number in random.permutation(len(data)).tolist())


def groups(samples: Iterable[Any]) -> Iterator[Sequence[Any]]:
    # A generator: iter() of litdata's own iterator, which islice calls, begins anew.
    iterator = (sample for sample in samples)
    while rows := tuple(islice(iterator, ROWS)):
        yield rows


def as_batch(rows: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(rows).astype(np.int64))


def with_workers(batches: Any, workers: int) -> DataLoader:
    """Let worker processes make whole batches."""
    return DataLoader(batches, batch_size=None, num_workers=workers, persistent_workers=True)


# The corpus


def make_corpus(folder: Path, num_tokens: int) -> None:
    """Write the documents, the same tokens as sequences, and the sequences for each peer."""
    num_tokens -= num_tokens % (ROWS * LENGTH)
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(6.4, 1.1, num_tokens // 200), 8, 1 << 16).astype(np.int64)
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    bounds = np.append(bounds[bounds < num_tokens], num_tokens)
    ids = random.integers(0, VOCAB_SIZE, num_tokens, dtype=np.uint16)
    np.save(folder / "bounds.npy", bounds)
    write_data_set(
        folder / "documents", Ragged(ids, bounds), FieldSpec("uint16", (None,), VOCAB_SIZE)
    )
    rows = ids.reshape(-1, LENGTH)
    write_data_set(folder / "sequences", rows, FieldSpec("uint16", (LENGTH,), VOCAB_SIZE))
    for name in EXPORTS:
        # nanoGPT wants one file, the others several: workers of webdataset share out its files.
        part_bytes = 0 if name == "nanogpt" else 1 << 26
        settings = ExportSettings(name, fields=[FIELD], part_bytes=part_bytes)
        export(str(folder / "sequences"), str(folder / name), settings)
    facts = {"tokens": num_tokens, "documents": len(bounds) - 1}
    (folder / "corpus.json").write_text(json.dumps(facts))


def write_data_set(folder: Path, values: np.ndarray | Ragged, spec: FieldSpec) -> None:
    """Write a finished data set, cut evenly into partitions of one shard."""
    storage, fingerprint = Storage(), hashlib.sha256(str(spec).encode()).hexdigest()
    parts = np.array_split(np.arange(len(values)), PARTITIONS)
    results = []
    for number, part in enumerate(parts):
        first, stop = int(part[0]), int(part[-1]) + 1
        sink = ArrowSink(
            storage,
            str(folder),
            number,
            [f"input-{number}"],
            {FIELD: spec},
            {"format_version": FORMAT_VERSION, "fingerprint": fingerprint, "partition": number},
        )
        keys = pa.array([f"{i:010d}" for i in range(first, stop)], pa.large_string())
        taken: np.ndarray | Ragged
        if isinstance(values, Ragged):
            bounds = values.offsets[first : stop + 1]
            taken = Ragged(values.values[bounds[0] : bounds[-1]], bounds - bounds[0])
        else:
            taken = values[first:stop]
        rows = np.arange(stop - first)
        sink.write({"key": keys, FIELD: taken}, np.zeros(len(rows), np.int32), rows)
        shards = tuple(sink.close())
        results.append(
            PartitionResult(
                number, len(rows), len(rows), {}, {}, shards, None, None, {}, 0.0, "benchmark"
            )
        )
    index = index_bytes(results, [FIELD])
    manifest = Manifest(
        name="loader",
        fingerprint=fingerprint,
        recipe={"shards": {"fields": [FIELD], "compression": "none"}},
        operators=[],
        fields={FIELD: spec},
        totals={"samples": len(values)},
        filtered={},
        quarantined={},
        warnings=[],
        random_weights=False,
        golden=[],
        libraries={},
        plan_sha256="0" * 64,
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    storage.write(join(str(folder), INDEX), bytes(index))
    storage.write(join(str(folder), MANIFEST), manifest.to_json())


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


PEERS = {
    "litdata": "litdata",
    "mds": "mosaicml-streaming",
    "hf": "datasets",
    "webdataset": "webdataset",
    "datatrove": "datatrove",
}

IN_ORDER, SHUFFLED, SINGLE = "raw, in order", "raw, shuffled", "raw, one at a time"
DOCUMENTS = "raw, documents"
PLAIN, PLAIN_SHUFFLED = "numpy.memmap, in order", "nanoGPT's loop"
WINDOWS = Windows(FIELD, LENGTH, last="drop")  # the corpus is a whole number of windows

READERS: tuple[tuple[str, Callable[..., Open]], ...] = (
    ("litdata", litdata),
    ("mds", mds),
    ("datasets", hugging_face),
    ("webdataset", webdataset),
    ("datatrove", datatrove),
)
CASES = [
    Case(IN_ORDER, raw_in_order, digest="order"),
    Case(SHUFFLED, raw_shuffled),
    Case(SINGLE, raw_single),
    Case(DOCUMENTS, raw_documents),
    Case(PLAIN, plain_in_order, IN_ORDER, "order"),
    Case(PLAIN_SHUFFLED, nanogpt_shuffled, SHUFFLED),
    Case("numpy.memmap, one at a time", plain_single, SINGLE),
    Case("numpy.memmap, documents", plain_documents, DOCUMENTS, "ids"),
    Case(
        "tokenmill windows, in order",
        ours(view=WINDOWS, batch_size=ROWS, shuffle=False),
        IN_ORDER,
        "order",
    ),
    Case("tokenmill windows, shuffled", ours(view=WINDOWS, batch_size=ROWS), SHUFFLED),
    Case("tokenmill windows, one at a time", ours(view=WINDOWS, batch_size=1), SINGLE),
    Case("tokenmill documents, shuffled", ours(fields=[FIELD], batch_size=ROWS), DOCUMENTS, "ids"),
    Case(
        "tokenmill packed, shuffled",
        ours(view=Packed(FIELD, LENGTH, method="best_fit"), batch_size=ROWS, pick=""),
        SHUFFLED,
        "ids",
    ),
    *(Case(f"{name} in order", opened(), IN_ORDER, "order") for name, opened in READERS),
    *(Case(f"{name} shuffled", opened(shuffle=True), SHUFFLED) for name, opened in READERS),
    *(
        Case(f"{name} one at a time", opened(single=True), SINGLE)
        for name, opened in READERS
        if name != "webdataset"  # a tar is read from front to back
    ),
    Case(
        "raw, two workers",
        lambda corpus: lambda: with_workers(RawWorkers(corpus), WORKERS),
        IN_ORDER,
        "order",
        workers=True,
    ),
    Case(
        "tokenmill windows in order, two workers",
        ours(view=WINDOWS, batch_size=ROWS, shuffle=False, workers=WORKERS),
        IN_ORDER,
        "order",
        workers=True,
    ),
    *(
        Case(f"{name} in order, two workers", opened(workers=WORKERS), IN_ORDER, workers=True)
        for name, opened in READERS
    ),
]

if __name__ == "__main__":
    main()
