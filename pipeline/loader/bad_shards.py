"""Which shards turned out to be missing or damaged, when a data set is read without them."""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pipeline.errors import IntegrityError
from pipeline.manifest import DataSet
from pipeline.storage import NotFoundError

_log = logging.getLogger(__name__)
_REASONS: tuple[Literal["missing", "damaged"], ...] = ("missing", "damaged")


@dataclass(frozen=True, slots=True)
class BadShard:
    """A shard that cannot be used.

    Attributes:
        uri: Its address.
        sha256: What its bytes should have.
        samples: Its samples by the index.
        reason: There is none, or its bytes are not what index and manifest say.
    """

    uri: str
    sha256: str
    samples: int
    reason: Literal["missing", "damaged"]


class BadShards:
    """Marks, a byte a shard, in memory that DataLoader workers share with the process they are of.

    Args:
        data_set: The data set.
    """

    def __init__(self, data_set: DataSet) -> None:
        self._data_set = data_set
        self._marks = torch.zeros(data_set.shards.num_rows, dtype=torch.uint8).share_memory_()

    def add(self, shard: int, error: IntegrityError) -> None:
        """Mark a shard, and log it when it is the first time."""
        if not self._marks[shard]:
            self._marks[shard] = 1 if isinstance(error, NotFoundError) else 2
            bad = self._described(shard)
            _log.warning("%d samples are skipped (sha256 %s): %s", bad.samples, bad.sha256, error)

    def among(self, shards: np.ndarray) -> bool:
        """Say whether one of some shards is marked."""
        return bool(self._marks.numpy()[shards].any())

    def found(self) -> tuple[BadShard, ...]:
        """Return all that are marked, in the order of the index."""
        return tuple(self._described(int(shard)) for shard in np.flatnonzero(self._marks.numpy()))

    def __bool__(self) -> bool:
        return bool(self._marks.any())

    def _described(self, shard: int) -> BadShard:
        [row] = self._data_set.shards.slice(shard, 1).to_pylist()
        return BadShard(
            self._data_set.shard_uri(row["path"]),
            row["sha256"],
            row["num_samples"],
            _REASONS[int(self._marks[shard]) - 1],
        )
