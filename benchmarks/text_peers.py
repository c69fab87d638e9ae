r"""Tokens a second from text to shards: this project, a plain loop, and what else writes tokens.

One corpus, made on the spot of the Python sources and documentation that are installed (each file
once, cut into documents of 1 to 16 kB), and one byte-level BPE of 32,000 ids, trained on a part of
it. Every case runs in a fresh process on two cores and its ids are compared with those of all
others, document by document. Start-up (imports, workers, loading the tokenizer) is left out where
the case says when it begins to work, and shown.

The plain loop is what a careful user would write for two processes with the fast library of
``text_tokenizer`` and nothing else. Peers use ``tokenizers``, as their own documentation does;
being hundreds of times slower, they are given the first files of the corpus. CPU seconds are those
of all processes of a case while it works: where others use the cores too, they say more.

    python -m benchmarks.text_peers --peers-python PEERS/bin/python
    python -m benchmarks.text_peers --rounds 3                 # without peers

Peers want an environment of their own. mosaicml-streaming and litdata ask for torchvision, whose
wheel fails at import beside a CPU torch and which nothing here uses:

    python -m venv PEERS
    PEERS/bin/pip install torch tokenizers pyarrow datasets 'ray[data]' psutil pandas \
        loguru humanize tqdm dill multiprocess lightning-utilities obstore boto3 tifffile \
        Brotli python-snappy zstd catalogue paramiko transformers xxhash
    PEERS/bin/pip install --no-deps datatrove litdata mosaicml-streaming

A peer that is not there is reported as absent.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.peers import stand_in_torchvision

PROCESSES = 2
NUM_FILES = 16
PEERS = ("datatrove", "datasets", "litdata", "mds", "ray_data")
FORMATS = ("parquet", "jsonl", "webdataset")
Figures = dict[str, Any]

JOB = """
name: text_peers
source:
  type: {type}
  urls: {corpus}/{type}/*
  fields: {{text: {field}}}
  partition_bytes: 8000000
operators:
  - name: text_tokenizer
    tokenizer: {corpus}/tokenizer.json
shards:
  fields: [tokens]
output: {output}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=400, help="size of the corpus")
    parser.add_argument("--peer-files", type=int, default=2, help=f"of {NUM_FILES}, for peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers-python", help="the interpreter of the peers' environment")
    parser.add_argument("--corpus", type=Path, help="where to keep the corpus between runs")
    parser.add_argument("--child", nargs=3, metavar=("CASE", "CORPUS", "FILES"))
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child[0], Path(args.child[1]), int(args.child[2]))))
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )
    with tempfile.TemporaryDirectory() as folder:
        corpus = args.corpus or Path(folder)
        if not (corpus / "tokenizer.json").exists():
            make_corpus(corpus, args.megabytes * 1_000_000)
        show(corpus, args)


def show(corpus: Path, args: argparse.Namespace) -> None:
    found: dict[str, list[Figures]] = {}
    for number in range(args.rounds):
        for case in [f"{who}:{kind}" for kind in FORMATS for who in ("loop", "tokenmill")]:
            figures = child(sys.executable, case, corpus, NUM_FILES)
            found.setdefault(case, []).append(figures)
            report(f"round {number + 1}: {case}", figures)
    best = statistics.median(speed(f) for f in found["tokenmill:parquet"])
    print("\nmedian of the ratio to the plain loop that reads the same format:")
    for kind in FORMATS:
        pairs = list(zip(found[f"tokenmill:{kind}"], found[f"loop:{kind}"], strict=True))
        wall = statistics.median(speed(a) / speed(b) for a, b in pairs)
        cpu = statistics.median(b["cpu_s"] / a["cpu_s"] for a, b in pairs)
        print(f"  {kind:>10}: {wall:.2f} by time, {cpu:.2f} by CPU time")
    peers = {}
    for peer in PEERS if args.peers_python else ():
        figures = child(args.peers_python, peer, corpus, args.peer_files)
        if "absent" in figures:
            print(f"{peer}: absent ({figures['absent']})", flush=True)
            continue
        peers[peer] = figures
        report(peer, figures)
        print(f"  this project, from Parquet, is {best / speed(figures):.0f} times as fast")
    check_digests([runs[0] for runs in found.values()], list(peers.values()), corpus)


def speed(figures: Figures) -> float:
    return float(figures["tokens"] / figures["work_s"])


def report(case: str, figures: Figures) -> None:
    print(
        f"{case:>30}: {speed(figures) / 1e6:8.3f} M tokens/s, "
        f"{figures['bytes'] / figures['work_s'] / 1e6:7.1f} MB/s, work {figures['work_s']:6.1f} s, "
        f"{figures['cpu_s']:6.1f} CPU-s, start {figures['start_s']:5.1f} s{shown_stages(figures)}",
        flush=True,
    )


def shown_stages(figures: Figures) -> str:
    shares = [f"{name} {share:.0%}" for name, share in figures.get("busy", {}).items()]
    return f"; busy: {', '.join(shares)}" if shares else ""


def check_digests(whole: Sequence[Figures], parts: Sequence[Figures], corpus: Path) -> None:
    """Compare the ids of all cases, documents in any order."""
    wanted = {figures["digest"] for figures in whole}
    if parts:
        by_hand = child(sys.executable, "loop:parquet", corpus, parts[0]["files"])
        wanted_of_part = {by_hand["digest"], *(figures["digest"] for figures in parts)}
    else:
        wanted_of_part = {"none"}
    same = len(wanted) == 1 and len(wanted_of_part) == 1
    print("ids are identical everywhere" if same else f"IDS DIFFER: {wanted} {wanted_of_part}")


def child(python: str, case: str, corpus: Path, files: int) -> Figures:
    """Measure in a fresh process, so that nothing is warm that should not be."""
    module = "benchmarks.text_peers"
    command = [python, "-m", module, "--child", case, str(corpus.resolve()), str(files)]
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=root
    )
    if done.returncode:
        sys.exit(f"{case}: {done.stderr}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(case: str, corpus: Path, files: int) -> Figures:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        if case in PEERS:
            run = globals()[f"run_{case}"]
            try:
                figures: Figures = run(corpus, corpus_files(corpus, "parquet", files), output)
            except ImportError as error:
                return {"absent": str(error)}
        else:
            who, kind = case.split(":")
            paths = corpus_files(corpus, kind, files)
            figures = (run_loops if who == "loop" else run_project)(corpus, paths, output)
        figures["start_s"] = time.perf_counter() - began - figures["work_s"]
        count, digest = digest_of(figures.pop("documents"))
        sizes = json.loads((corpus / "sizes.json").read_text())
        return {
            **figures,
            "tokens": count,
            "digest": digest,
            "files": files,
            "bytes": sum(sizes[:files]),
        }


def corpus_files(corpus: Path, kind: str, files: int) -> list[Path]:
    return sorted((corpus / kind).iterdir())[:files]


def digest_of(documents: Iterator[np.ndarray]) -> tuple[int, str]:
    """Return the number of ids, and a digest of all documents that knows no order."""
    total, count = 0, 0
    for ids in documents:
        count += len(ids)
        data = np.ascontiguousarray(ids, "<u2").tobytes()
        total += int.from_bytes(hashlib.blake2b(data, digest_size=16).digest())
    return count, f"{total % (1 << 128):032x}"


# This project and the plain loop


def run_project(corpus: Path, paths: Sequence[Path], output: Path) -> Figures:
    from pipeline import runner
    from pipeline.protocols import Engine
    from pipeline.spec import parse_job

    class Clock:
        """Starts when all workers are ready, stops at the last commit."""

        def waiting(self, message: str) -> None:
            print(message)

        def decided(self, warning: str) -> None:
            print(warning)

        def begin(self, partitions: Sequence[Any], done: object, engine: Engine) -> None:
            self.left = len(partitions)
            self.ready, self.ready_cpu_s = time.perf_counter(), cpu_seconds()
            threading.Thread(target=self.wait, args=(engine,), daemon=True).start()

        def wait(self, engine: Engine) -> None:
            while engine.num_workers < PROCESSES:
                time.sleep(0.002)
            self.ready, self.ready_cpu_s = time.perf_counter(), cpu_seconds()

        def committed(self, result: object) -> None:
            self.left -= 1
            if not self.left:
                self.last, self.last_cpu_s = time.perf_counter(), cpu_seconds()

    kind = paths[0].parent.name
    field = "txt" if kind == "webdataset" else "text"
    text = JOB.format(type=kind, field=field, corpus=corpus, output=output / "out")
    clock = Clock()
    prepared = runner.prepare(parse_job(text, "text_peers"))
    summary = runner.run(prepared, engine="ray", workers=PROCESSES, listener=clock)
    return {
        "work_s": clock.last - clock.ready,
        "cpu_s": clock.last_cpu_s - clock.ready_cpu_s,
        "busy": {stage.name: stage.busy for stage in summary.stages},
        "documents": arrow_documents(output / "out" / "shards"),
    }


def run_loops(corpus: Path, paths: Sequence[Path], output: Path) -> Figures:
    parts = [paths[i::PROCESSES] for i in range(PROCESSES)]
    with multiprocessing.get_context("spawn").Pool(PROCESSES, load, (corpus,)) as pool:
        pool.map(warm_up, range(PROCESSES), chunksize=1)
        with Work() as work:
            pool.starmap(plain_loop, [(part, output) for part in parts], chunksize=1)
        pool.close()
        pool.join()
    return work.figures(arrow_documents(output))


LOADED: dict[str, Any] = {}


def load(corpus: Path) -> None:
    from operators.text.backends.base import Policy
    from operators.text.backends.fast import Fast
    from operators.text.backends.reference import HuggingFace

    data = (corpus / "tokenizer.json").read_bytes()
    LOADED["fast"] = Fast(HuggingFace(data, Policy(), "tokenizer.json"))


def warm_up(_: int) -> None:
    LOADED["fast"].encode(pa.array(["warm up"], pa.large_string()))
    time.sleep(0.5)  # so that each process gets one


def plain_loop(paths: Sequence[Path], output: Path) -> None:
    """What a careful user would write by hand for one process."""
    for path in paths:
        with pa.OSFile(str(output / f"{path.stem}.arrow"), "wb") as file:
            writer = None
            for keys, texts in READERS[path.parent.name](path):
                ids = LOADED["fast"].encode(texts)
                flat = pa.array(ids.values.astype(np.uint16))
                tokens = pa.LargeListArray.from_arrays(pa.array(ids.offsets), flat)
                batch = pa.record_batch({"key": keys, "tokens": tokens})
                writer = writer or pa.ipc.new_file(file, batch.schema)
                writer.write_batch(batch)
            if writer is not None:
                writer.close()


def read_parquet(path: Path) -> Iterator[tuple[pa.Array, pa.Array]]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(1024, columns=["id", "text"]):
        yield batch["id"], batch["text"].cast(pa.large_string())


def read_jsonl(path: Path) -> Iterator[tuple[pa.Array, pa.Array]]:
    import pyarrow.json as pj

    options = pj.ReadOptions(use_threads=False, block_size=4 << 20)
    for batch in pj.open_json(str(path), read_options=options):
        yield batch["id"], batch["text"].cast(pa.large_string())


def read_webdataset(path: Path) -> Iterator[tuple[pa.Array, pa.Array]]:
    keys: list[str] = []
    texts: list[bytes] = []
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            keys.append(member.name.removesuffix(".txt"))
            texts.append(file.read())
            if len(keys) == 1024:
                yield pa.array(keys), pa.array(texts, pa.large_binary()).cast(pa.large_string())
                keys, texts = [], []
    if keys:
        yield pa.array(keys), pa.array(texts, pa.large_binary()).cast(pa.large_string())


READERS = {"parquet": read_parquet, "jsonl": read_jsonl, "webdataset": read_webdataset}


class Work:
    """Seconds and CPU seconds of what is done in a ``with``."""

    def __enter__(self) -> "Work":
        self.began, self.began_cpu_s = time.perf_counter(), cpu_seconds()
        return self

    def __exit__(self, *error: object) -> None:
        self.work_s = time.perf_counter() - self.began
        self.cpu_s = cpu_seconds() - self.began_cpu_s

    def figures(self, documents: Iterator[np.ndarray]) -> Figures:
        return {"work_s": self.work_s, "cpu_s": self.cpu_s, "documents": documents}


def cpu_seconds() -> float:
    """Return CPU seconds of this process and all below it, also of those that have ended."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def arrow_documents(folder: Path) -> Iterator[np.ndarray]:
    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as file:
            for chunk in pa.ipc.open_file(file).read_all()["tokens"].chunks:
                offsets, values = chunk.offsets.to_numpy(), chunk.values.to_numpy()
                yield from np.split(values, offsets[1:-1])


# Peers, each as its documentation shows


def hugging_face(corpus: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(corpus / "tokenizer.json"))


def run_datatrove(corpus: Path, paths: Sequence[Path], output: Path) -> Figures:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    lists = output / "paths.txt"
    lists.write_text("\n".join(path.name for path in paths))
    steps = [
        ParquetReader(str(paths[0].parent), paths_file=str(lists)),
        DocumentTokenizer(
            str(output / "tokens"), str(corpus / "tokenizer.json"), shuffle_documents=False
        ),
    ]
    executor = LocalPipelineExecutor(
        pipeline=steps, tasks=len(paths), workers=PROCESSES, logging_dir=str(output / "logs")
    )
    with Work() as work:
        executor.run()

    def documents() -> Iterator[np.ndarray]:
        for path in sorted((output / "tokens").glob("*.ds")):
            ids = np.fromfile(path, "<u2")
            ends = np.fromfile(f"{path}.index", "<u8").astype(np.int64)
            yield from np.split(ids, ends[:-1])

    return work.figures(documents())


def run_datasets(corpus: Path, paths: Sequence[Path], output: Path) -> Figures:
    import datasets

    source = datasets.load_dataset(
        "parquet", data_files=[str(p) for p in paths], cache_dir=str(output), split="train"
    )
    tokenizer = hugging_face(corpus)

    def tokenize(batch: Any) -> Any:
        encodings = tokenizer.encode_batch(batch["text"], add_special_tokens=False)
        return {"tokens": [encoding.ids for encoding in encodings]}

    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint16"))})
    with Work() as work:
        done = source.map(
            tokenize,
            batched=True,
            num_proc=PROCESSES,
            remove_columns=source.column_names,
            features=features,
        )
    rows = done.with_format("numpy")["tokens"]
    return work.figures(np.asarray(row, np.uint16) for row in rows)


def litdata_tokenize(path: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    tokenizer = LOADED.setdefault(path, hugging_face(Path(path).parents[1]))
    for batch in pq.ParquetFile(path).iter_batches(1024, columns=["text"]):
        for text in batch["text"].to_pylist():
            yield np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.uint16)


def run_litdata(corpus: Path, paths: Sequence[Path], output: Path) -> Figures:
    stand_in_torchvision()
    import litdata

    with Work() as work:
        litdata.optimize(
            fn=litdata_tokenize,
            inputs=[str(path) for path in paths],
            output_dir=str(output / "tokens"),
            num_workers=PROCESSES,
            chunk_bytes="64MB",
            verbose=False,
        )
    rows = litdata.StreamingDataset(str(output / "tokens"))
    return work.figures(np.asarray(rows[i]) for i in range(len(rows)))


def mds_write(corpus: Path, paths: Sequence[Path], output: Path) -> None:
    stand_in_torchvision()
    import pyarrow.parquet as pq
    from streaming import MDSWriter

    tokenizer = hugging_face(corpus)
    with MDSWriter(out=str(output), columns={"tokens": "ndarray:uint16"}) as writer:
        for path in paths:
            for batch in pq.ParquetFile(path).iter_batches(1024, columns=["text"]):
                texts = batch["text"].to_pylist()
                for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
                    writer.write({"tokens": np.asarray(encoding.ids, np.uint16)})


def run_mds(corpus: Path, paths: Sequence[Path], output: Path) -> Figures:
    stand_in_torchvision()
    from streaming import LocalDataset

    parts = [(corpus, paths[i::PROCESSES], output / f"part{i}") for i in range(PROCESSES)]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool, Work() as work:
        pool.starmap(mds_write, parts, chunksize=1)

    def documents() -> Iterator[np.ndarray]:
        for _, _, part in parts:
            rows = LocalDataset(str(part))
            yield from (rows[i]["tokens"] for i in range(len(rows)))

    return work.figures(documents())


def run_ray_data(corpus: Path, paths: Sequence[Path], output: Path) -> Figures:
    import pyarrow.parquet as pq
    import ray

    # Two cores for the tokenizers, and a share for the tasks that read and write.
    ray.init(num_cpus=2 * PROCESSES, include_dashboard=False, log_to_driver=False)

    class Tokenize:
        def __init__(self) -> None:
            self.tokenizer = hugging_face(corpus)

        def __call__(self, batch: pa.Table) -> pa.Table:
            texts = batch["text"].to_pylist()
            encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
            rows = [encoding.ids for encoding in encodings]
            return pa.table({"tokens": pa.array(rows, pa.list_(pa.uint16()))})

    with Work() as work:
        source = ray.data.read_parquet(
            [str(path) for path in paths], columns=["text"], override_num_blocks=4 * PROCESSES
        )
        done = source.map_batches(
            Tokenize, batch_format="pyarrow", batch_size=1024, concurrency=PROCESSES
        )
        done.write_parquet(str(output / "tokens"))
    ray.shutdown()

    def documents() -> Iterator[np.ndarray]:
        for path in sorted((output / "tokens").glob("*.parquet")):
            for row in pq.read_table(path)["tokens"].to_pylist():
                yield np.asarray(row, np.uint16)

    return work.figures(documents())


# The corpus


def make_corpus(folder: Path, num_bytes: int) -> None:
    """Write the corpus in three formats, and train its tokenizer."""
    documents = list(installed_documents(num_bytes))
    parts = [documents[i::NUM_FILES] for i in range(NUM_FILES)]
    for number, part in enumerate(parts):
        write_part(folder, number, part)
    sizes = [sum(len(text.encode()) for text in part) for part in parts]
    print(f"corpus: {len(documents):,} documents, {sum(sizes):,} bytes", flush=True)
    train(folder / "tokenizer.json", documents[:: max(1, num_bytes // 20_000_000)])
    (folder / "sizes.json").write_text(json.dumps(sizes))


def installed_documents(num_bytes: int) -> Iterator[str]:
    """Yield pieces of installed text files, each file once, in an order that is shuffled."""
    rng = random.Random(0)
    roots = [sysconfig.get_paths()["purelib"], sysconfig.get_paths()["stdlib"], "/usr/share/doc"]
    endings = {".py", ".pyi", ".md", ".rst", ".txt", ".html"}
    paths = sorted({p for root in roots for p in Path(root).rglob("*") if p.suffix in endings})
    rng.shuffle(paths)
    seen: set[bytes] = set()
    left = num_bytes
    for path in paths:
        if not path.is_file() or path.stat().st_size > 2_000_000:
            continue
        data = path.read_bytes()
        digest = hashlib.blake2b(data).digest()
        if digest in seen or b"<|endoftext|>" in data:
            continue
        seen.add(digest)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue
        while text:
            size = rng.randrange(1_000, 16_000)
            piece, text = text[:size], text[size:]
            yield piece
            left -= len(piece.encode())
            if left <= 0:
                return
    raise SystemExit(f"only {num_bytes - left:,} bytes of text are installed, give --megabytes")


def write_part(folder: Path, number: int, texts: Sequence[str]) -> None:
    import io

    import pyarrow.parquet as pq

    for kind in FORMATS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    keys = [f"{number:02d}-{i:06d}" for i in range(len(texts))]
    table = pa.table({"id": keys, "text": pa.array(texts, pa.string())})
    pq.write_table(table, folder / "parquet" / f"{number:02d}.parquet", row_group_size=1024)
    with (folder / "jsonl" / f"{number:02d}.jsonl").open("w") as lines:
        for key, text in zip(keys, texts, strict=True):
            lines.write(json.dumps({"id": key, "text": text}, ensure_ascii=False) + "\n")
    with tarfile.open(folder / "webdataset" / f"{number:02d}.tar", "w") as tar:
        for key, text in zip(keys, texts, strict=True):
            data = text.encode()
            info = tarfile.TarInfo(f"{key}.txt")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def train(path: Path, texts: Sequence[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    tokenizer.save(str(path))


if __name__ == "__main__":
    main()
