"""Shards as maps of files on this machine's disk: local ones where they lie, remote ones cached."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ContractError, IntegrityError, SetupError
from pipeline.loader.bad_shards import BadShards
from pipeline.loader.cache import RemoteShard, ShardCache, check_sha256, check_size, default_folder
from pipeline.manifest import DataSet
from pipeline.storage import NotFoundError

OnBadShard = Literal["raise", "skip"]


class ShardFiles:
    """Finds the file of a shard, checks it against the index and maps it.

    A local shard must have the size that the index says. A remote one is copied whole on first
    use and must have the SHA-256; the copy is named after it, so data sets may share a folder.

    Args:
        data_set: The data set.
        cache_dir: Where copies go; see ``ShardCache``.
        cache_bytes: How much of them is kept; see ``ShardCache``.
        prefetch_shards: How many are copied before they are needed.
        verify: Check the SHA-256 of local shards and of copies made earlier as well.
        on_bad_shard: "skip" keeps account of shards that cannot be used, in ``bad``.

    Attributes:
        bad: The shards that turned out to be missing or damaged; None when they are not skipped.
        num_ahead: How many are copied before they are needed.
        cache_dir: The folder of copies; views keep there what they compute.
    """

    def __init__(
        self,
        data_set: DataSet,
        cache_dir: str | os.PathLike[str] | None,
        *,
        cache_bytes: int | None = None,
        prefetch_shards: int = 16,
        verify: bool = False,
        on_bad_shard: OnBadShard = "raise",
    ) -> None:
        if prefetch_shards < 0:
            raise ContractError(f"prefetch_shards={prefetch_shards}, expected 0 or more")
        if on_bad_shard not in ("raise", "skip"):
            raise ContractError(f"on_bad_shard={on_bad_shard!r}, expected 'raise' or 'skip'")
        self._data_set = data_set
        self._verify = verify
        self.num_ahead = prefetch_shards
        self.bad = BadShards(data_set) if on_bad_shard == "skip" else None
        is_remote = data_set.storage.local_path(data_set.uri) is None
        largest = pc.max(data_set.shards["num_bytes"]).as_py() or 0
        self._cache = ShardCache(cache_dir, cache_bytes, largest) if is_remote else None
        self.cache_dir = default_folder() if cache_dir is None else Path(cache_dir)

    @property
    def num_shards(self) -> int:
        """Shards of the data set."""
        return int(self._data_set.shards.num_rows)

    def uri(self, shard: int) -> str:
        """Return the address of a shard, for messages."""
        return self._data_set.shard_uri(str(self._of(shard, "path")))

    def max_mapped(self, wanted: int) -> int:
        """Return how many shards a reader may keep mapped when it would like to keep some."""
        return wanted if self._cache is None else min(wanted, self._cache.max_mapped())

    @property
    def is_local(self) -> bool:
        """Whether shards are read where they lie: any number of them may be in use at once."""
        return self._cache is None

    @property
    def max_ahead(self) -> int:
        """How many shards may be fetched before they are read; 0 when none is to be."""
        return self._cache.max_ahead if self._cache is not None and self.num_ahead else 0

    def map(self, shard: int) -> pa.Buffer:
        """Return the checked bytes of a shard, mapped; a copy is kept while they are.

        To be called in ``reading``.

        Args:
            shard: Its row in the index.

        Raises:
            NotFoundError: there is no such object.
            IntegrityError: size or SHA-256 differ from the index.
            SetupError: the cache's disk is full, or the system maps no more files.
            TransientError: the store stopped answering.
        """
        if self._cache is None:
            return self._map_local(shard)
        remote = self._remote(shard)
        while True:
            buffer, is_checked = self._cache.map(remote)
            if is_checked or not self._verify or _sha256(buffer) == remote.sha256:
                return buffer
            self._cache.remove(remote)
            del buffer

    def fetch(self, shard: int, stopped: Callable[[], bool]) -> None:
        """Copy a remote shard ahead of its use. See ``ShardCache.fetch``."""
        if self._cache is not None:
            self._cache.fetch(self._remote(shard), stopped)

    @contextmanager
    def reading(self, shard: int) -> Iterator[None]:
        """Tell of everything that is wrong with a shard's bytes in one way, and note it.

        Raises:
            IntegrityError: reading the shard raised one, or what broken bytes make Arrow raise.
        """
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            found = IntegrityError(f"{self.uri(shard)}: not a shard ({error})", hint=CHANGED)
        except IntegrityError as error:
            found = error
        else:
            return
        if self.bad is not None:
            self.bad.add(shard, found)
        raise type(found)(
            f"{found.message} (shard {shard} of {self.num_shards:,}, "
            f"sha256 {self._of(shard, 'sha256')})",
            hint=found.hint,
        ) from None

    def _map_local(self, shard: int) -> pa.Buffer:
        uri = self.uri(shard)
        size = int(self._of(shard, "num_bytes"))
        path = str(self._data_set.storage.local_path(uri))
        try:
            check_size(uri, os.stat(path).st_size, size)
            buffer = pa.py_buffer(b"")  # no file of no bytes can be mapped
            if size:
                # The buffer keeps the map when the file is closed: maps are many, handles few.
                with pa.memory_map(path) as file:
                    buffer = file.read_buffer()
        except FileNotFoundError:
            raise NotFoundError(
                f"{uri}: no such shard, the index says it has {size:,} bytes and is one of "
                f"{self.num_shards:,}",
                hint="copy the whole folder: the manifest promises every shard of its index",
            ) from None
        except OSError as error:
            raise SetupError(
                f"{uri}: {error}", hint="check its permissions, and the limits of the system"
            ) from None
        if self._verify:
            check_sha256(uri, _sha256(buffer), str(self._of(shard, "sha256")))
        return buffer

    def _remote(self, shard: int) -> RemoteShard:
        return RemoteShard(
            self._data_set.storage,
            self.uri(shard),
            int(self._of(shard, "num_bytes")),
            str(self._of(shard, "sha256")),
        )

    def _of(self, shard: int, column: str) -> str | int:
        found: str | int = self._data_set.shards[column][shard].as_py()
        return found


CHANGED = "the bytes changed after the commit; verify=True checks the hash of every shard"


def _sha256(buffer: pa.Buffer) -> str:
    return hashlib.sha256(buffer).hexdigest()
