"""Which pieces of samples each pack holds: computed from lengths alone, kept on disk.

The file has a name that follows from the data set and the options, and these parts, all integers
little-endian: the pieces, int64 [M, 2] (first token in the stream of all, number of tokens); where
the pieces of each pack begin, int64 [P + 1]; a JSON object; its length, int64; the SHA-256 of all
before. It is written under another name and renamed, so it is whole or damaged, which its hash
tells: then it is computed again.
"""

import fcntl
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.errors import SetupError
from pipeline.loader.packing import Method, cut, pack
from pipeline.loader.token_stream import TokenStream
from pipeline.manifest import Manifest

VERSION = 1
"""Of the file and of the packing: another version computes all packs anew."""

_HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class PackOptions:
    """All that decides, beside the data set, what a pack holds.

    Attributes:
        field: Ids.
        length: The most that a pack holds.
        method: How packs are filled.
        skip_long: Leave out samples that are longer, instead of cutting them.
        group_samples: Shards are packed in groups of at least so many samples.
    """

    field: str
    length: int
    method: Method
    skip_long: bool
    group_samples: int


class PackIndex:
    """The packs of a data set, mapped into memory; picklable, mapped again on the other side.

    Attributes:
        sha256: Of the file: equal when all packs are.
        stops: int64 [P + 1], where the pieces of each pack begin.
        pieces: int64 [M, 2], first token and number of tokens.
        group_stops: int64 [G], one past the last pack of each group of shards.
        num_tokens: Tokens in packs.
        skipped_samples: Samples left out because they are long.
        skipped_tokens: Their tokens.
    """

    def __init__(self, path: Path) -> None:
        """Map a file.

        Raises:
            ValueError: it is damaged.
            OSError: it cannot be read.
        """
        self._path = path
        data = np.asarray(np.memmap(path, np.uint8, mode="r"))
        body, digest = data[:-_HASH_BYTES], data[-_HASH_BYTES:].tobytes()
        if hashlib.sha256(body.data).digest() != digest:
            raise ValueError(f"{path}: its SHA-256 is not that of its bytes")
        self.sha256 = digest.hex()
        about_bytes = int(body[-8:].view(np.int64)[0])
        about = json.loads(body[-8 - about_bytes : -8].tobytes())
        pieces_end = about["pieces"] * 16
        self.pieces = body[:pieces_end].view(np.int64).reshape(-1, 2)
        self.stops = body[pieces_end : pieces_end + (about["packs"] + 1) * 8].view(np.int64)
        self.group_stops = np.cumsum(about["group_packs"], dtype=np.int64)
        self.num_tokens: int = about["tokens"]
        self.skipped_samples: int = about["skipped_samples"]
        self.skipped_tokens: int = about["skipped_tokens"]

    def __reduce__(self) -> tuple[Any, ...]:
        return PackIndex, (self._path,)


def open_pack_index(
    manifest: Manifest, stream: TokenStream, options: PackOptions, cache_dir: Path
) -> PackIndex:
    """Return the packs of a data set, computing them unless the folder has them.

    Of several processes that ask at once, one computes and the others wait.

    Raises:
        SetupError: the folder cannot be written.
        IntegrityError: a shard is not what the index says.
    """
    key = {
        "version": VERSION,
        "fingerprint": manifest.fingerprint,
        "index_sha256": manifest.index_sha256,
        **asdict(options),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache_dir / "packs" / f"{name}.packs"
    found = _opened(path)
    if found is not None:
        return found
    with _folder_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = _opened(path)
            if found is None:
                temporary = path.with_suffix(".tmp")  # ours alone while we have the lock
                try:
                    with temporary.open("wb") as file:
                        _write(file, stream, options)
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)
                found = PackIndex(path)
    return found


def _opened(path: Path) -> PackIndex | None:
    try:
        return PackIndex(path)
    except (OSError, ValueError):  # absent or damaged
        return None


@contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"{path.parent}: {error.strerror} while packs are computed",
            hint="make room, or choose another cache_dir",
        ) from None


@dataclass(frozen=True, slots=True)
class _Group:
    """The packs of neighbouring shards."""

    pieces: np.ndarray
    stops: np.ndarray
    skipped: np.ndarray  # tokens of each sample that is left out


def _write(file: IO[bytes], stream: TokenStream, options: PackOptions) -> None:
    """Compute all packs, the groups in parallel, and write them in order."""
    digest = hashlib.sha256()

    def put(data: bytes | memoryview) -> None:
        digest.update(data)
        file.write(data)

    sizes, group_packs = [np.zeros(1, np.int64)], []
    tokens = pieces = skipped_samples = skipped_tokens = 0
    for group in _groups(stream, options):
        put(group.pieces.data)
        sizes.append(np.diff(group.stops))
        group_packs.append(len(group.stops) - 1)
        pieces += len(group.pieces)
        tokens += int(group.pieces[:, 1].sum())
        skipped_samples += len(group.skipped)
        skipped_tokens += int(group.skipped.sum())
    put(np.cumsum(np.concatenate(sizes)).data)
    about: Mapping[str, Any] = {
        "pieces": pieces,
        "packs": sum(group_packs),
        "group_packs": group_packs,
        "tokens": tokens,
        "skipped_samples": skipped_samples,
        "skipped_tokens": skipped_tokens,
    }
    text = json.dumps(about).encode()
    put(text)
    put(len(text).to_bytes(8, "little"))
    file.write(digest.digest())


def _groups(stream: TokenStream, options: PackOptions) -> Iterator[_Group]:
    """Yield the groups in order; as many are in memory as there are processors, and one more."""
    num_threads = os.cpu_count() or 1
    running: deque[Future[_Group]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for first, stop in _shard_ranges(stream.maps.stops, options.group_samples):
            running.append(pool.submit(_packed, stream, options, first, stop))
            if len(running) > num_threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _shard_ranges(stops: np.ndarray, group_samples: int) -> Iterator[tuple[int, int]]:
    """Yield first shard and stop of each group: the fewest shards with so many samples."""
    first, done = 0, 0
    while first < len(stops):
        stop = min(int(np.searchsorted(stops, done + group_samples)) + 1, len(stops))
        yield first, stop
        first, done = stop, int(stops[stop - 1])


def _packed(stream: TokenStream, options: PackOptions, first: int, stop: int) -> _Group:
    lengths = np.concatenate([stream.lengths(shard) for shard in range(first, stop)])
    starts, counts = cut(lengths, options.length, skip_long=options.skip_long)
    stops, order = pack(counts, options.length, options.method)
    pieces = np.empty((len(order), 2), np.int64)
    pieces[:, 0] = starts[order] + (stream.stops[first - 1] if first else 0)
    pieces[:, 1] = counts[order]
    skipped = lengths[lengths > options.length] if options.skip_long else lengths[:0]
    return _Group(pieces, stops, skipped)
