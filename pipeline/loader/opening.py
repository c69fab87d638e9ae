"""Opens the data sets of a training loop: manifest, index, and where their shards lie."""

import os
from collections.abc import Mapping
from typing import Any

from pipeline.errors import SetupError
from pipeline.loader.files import OnBadShard, ShardFiles
from pipeline.manifest import DataSet, open_data_set
from pipeline.storage import Storage


class Opener:
    """Opens data sets in one way; see ``TokenDataset`` for what the arguments mean."""

    def __init__(
        self,
        *,
        storage_options: Mapping[str, Mapping[str, Any]] | None,
        cache_dir: str | os.PathLike[str] | None,
        cache_bytes: int | None,
        prefetch_shards: int,
        on_bad_shard: OnBadShard,
        verify: bool,
        allow_random_weights: bool,
    ) -> None:
        self._storage = Storage(storage_options)
        self._cache_dir, self._cache_bytes = cache_dir, cache_bytes
        self._prefetch_shards, self._on_bad_shard = prefetch_shards, on_bad_shard
        self._verify, self._allow_random_weights = verify, allow_random_weights

    def open(self, url: str | os.PathLike[str]) -> tuple[DataSet, ShardFiles]:
        """Return a data set, and its shards as files on this machine.

        Raises:
            NotFoundError: there is no manifest.
            IntegrityError: manifest and index do not belong together.
            SetupError: its tokens were made with random weights.
        """
        data_set = open_data_set(os.fspath(url), self._storage)
        if data_set.manifest.random_weights and not self._allow_random_weights:
            raise SetupError(
                f"{data_set.uri}: its tokens were made with random weights and mean nothing",
                hint="make them again with real weights, or pass allow_random_weights=True",
            )
        files = ShardFiles(
            data_set,
            self._cache_dir,
            cache_bytes=self._cache_bytes,
            prefetch_shards=self._prefetch_shards,
            verify=self._verify,
            on_bad_shard=self._on_bad_shard,
        )
        return data_set, files
