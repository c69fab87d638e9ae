"""Turn URL patterns into a sorted list of objects, and that list into partitions."""

import posixpath
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from braceexpand import braceexpand

from pipeline.errors import SetupError
from pipeline.protocols import Partition, SourceFile, SourceRange
from pipeline.storage import Entry, Storage, shown

NUM_THREADS = 16
"""Requests at a time to a remote store, whose latency is the limit."""

MAX_RANGES = 10_000
"""Most files in one partition, so that its commit record stays readable."""


def list_files(
    storage: Storage, urls: Sequence[str], *, extensions: Collection[str] | None = None
) -> list[SourceFile]:
    """Return the objects that the URLs name, sorted by name, each once.

    A URL may hold braces (``{000..007}``, ``{a,b}``) and globs (``*``, ``**``, ``?``, ``[]``). A
    file's name is its path below the directory part that comes before the first of these, so that
    the same data gives the same names wherever it lies. If two URLs would give one name to two
    objects, every name starts with its URL's position: ``0/a.tar``, ``1/a.tar``.

    Args:
        storage: Where to look.
        urls: Patterns, or plain URLs of objects.
        extensions: Keep only these suffixes (lower case, with the dot); a plain URL may then be a
            folder, which is walked.

    Raises:
        SetupError: a glob matches nothing, an object is missing, or a name is not UTF-8.
    """
    by_url = [_list_url(storage, url, extensions) for url in urls]
    uri_of: dict[str, str] = {}
    clash = any(
        uri_of.setdefault(file.name, file.uri) != file.uri for files in by_url for file in files
    )
    found: dict[str, SourceFile] = {}
    for position, files in enumerate(by_url):
        for file in files:
            name = f"{position}/{file.name}" if clash else file.name
            found.setdefault(file.uri, replace(file, name=name))
    return sorted(found.values(), key=lambda file: file.name)


def join_ranges(ranges: Iterable[SourceRange], partition_bytes: int) -> Iterator[Partition]:
    """Join consecutive whole files into partitions of at most ``partition_bytes``.

    A larger file is a partition of its own, and so is every part of a file that was cut (its
    ``stop`` is set).
    """
    index, joined, num_bytes = 0, list[SourceRange](), 0
    for found in ranges:
        alone = found.stop is not None or (bool(joined) and joined[-1].stop is not None)
        full = num_bytes + found.num_bytes > partition_bytes or len(joined) == MAX_RANGES
        if joined and (alone or full):
            yield Partition(index, tuple(joined))
            index, joined, num_bytes = index + 1, [], 0
        joined.append(found)
        num_bytes += found.num_bytes
    if joined:
        yield Partition(index, tuple(joined))


def whole_files(files: Iterable[SourceFile]) -> Iterator[SourceRange]:
    """Yield each file as one range."""
    for file in files:
        yield SourceRange(file, file.num_bytes)


def _list_url(storage: Storage, url: str, extensions: Collection[str] | None) -> list[SourceFile]:
    entries = _find(storage, url, walk=extensions is not None)
    base = _fixed_prefix(storage, url, entries)
    if extensions is not None:
        entries = [e for e in entries if posixpath.splitext(e.uri)[1].lower() in extensions]
        if not entries:
            raise SetupError(
                f"{shown(url)}: holds no file that ends in {', '.join(sorted(extensions))}",
                hint="check `urls` and `extensions`",
            )
    return [SourceFile(e.uri, _below(base, e.uri), e.num_bytes, e.version) for e in entries]


def _find(storage: Storage, url: str, *, walk: bool) -> list[Entry]:
    try:
        patterns = list(braceexpand(url)) if "{" in url else [url]
    except ValueError:
        raise SetupError(
            f"{shown(url)}: unbalanced braces", hint="write a range as {000000..000007}"
        ) from None
    plain = [pattern for pattern in patterns if not _has_glob(pattern)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        stats = dict(zip(plain, pool.map(storage.stat, plain), strict=True))
    found: dict[str, Entry] = {}
    for pattern in patterns:
        entry = stats.get(pattern)
        if entry is not None:
            entries = [replace(entry, uri=storage.resolve(pattern))]
        elif pattern not in stats:
            entries = storage.glob(pattern)
        else:
            entries = list(storage.walk(storage.resolve(pattern))) if walk else []
        if not entries and pattern in stats:
            what = "object or folder" if walk else "object"
            raise SetupError(
                f"{shown(pattern)}: no such {what} (from {shown(url)!r})",
                hint="check `urls`" if walk else "check `urls`; a folder is read as <folder>/*",
            )
        if not entries:
            raise SetupError(f"{shown(pattern)}: matches nothing", hint="check `urls`")
        found.update({entry.uri: entry for entry in entries})
    return list(found.values())


def _fixed_prefix(storage: Storage, url: str, entries: Sequence[Entry]) -> str:
    first = min((i for i, char in enumerate(url) if char in "{" + _globs(url)), default=None)
    if first is None:
        plain = storage.resolve(url)
        is_folder = [entry.uri for entry in entries] != [plain]
        return plain if is_folder else posixpath.dirname(plain)
    folder = url[:first].rpartition("/")[0]
    return storage.resolve(folder or ("/" if url.startswith("/") else "."))


def _below(base: str, uri: str) -> str:
    prefix = base.rstrip("/") + "/"
    if not uri.startswith(prefix):
        raise SetupError(f"{shown(uri)}: the store lists it outside of {shown(base)}")
    name = uri[len(prefix) :]
    if uri.startswith(_HTTP):
        name = name.partition("?")[0]  # a query may be a signature: not for shards to keep
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SetupError(f"{uri!a}: the name is not UTF-8", hint="rename the object") from None
    return name


_HTTP = ("http://", "https://")


def _globs(url: str) -> str:
    return "*[" if url.startswith(_HTTP) else "*?["


def _has_glob(url: str) -> bool:
    return any(char in url for char in _globs(url))
