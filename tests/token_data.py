"""Small data sets of sequences with a loss mask, cut into shards and record batches at will."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from operators.base import FieldSpec, Ragged
from pipeline.sinks import arrow
from tests.loader_data import write_data_set

VOCAB = 60_000
FIELDS = {"ids": FieldSpec("uint16", (None,), VOCAB), "learn": FieldSpec("uint8", (None,))}


@dataclass(frozen=True)
class Corpus:
    """How many ids each sample has, and how the samples are stored.

    Attributes:
        lengths: Ids per sample.
        partitions: Over which they are spread evenly.
        batch_bytes: A record batch ends with the row that brings it to this size.
        rows_per_shard_at_most: False for one shard per partition, True for one per record batch.
        compression: ``none`` or ``zstd``.
    """

    lengths: Sequence[int]
    partitions: int = 3
    batch_bytes: int = 1 << 20
    shard_per_batch: bool = False
    compression: str = "none"

    @property
    def ids(self) -> np.ndarray:
        """All ids: different from their neighbours, and telling where they stand."""
        ids: np.ndarray = (np.arange(sum(self.lengths)) % VOCAB).astype(np.uint16)
        return ids

    @property
    def learn(self) -> np.ndarray:
        """The loss mask: every third id is not to be learnt."""
        learn: np.ndarray = (np.arange(sum(self.lengths)) % 3 != 0).astype(np.uint8)
        return learn

    def samples(self) -> list[list[int]]:
        """Return for each sample where its ids stand in the stream of all."""
        stops = np.cumsum(self.lengths).tolist()
        return [list(range(stop - n, stop)) for n, stop in zip(self.lengths, stops, strict=True)]

    def write(self, folder: Path | str) -> str:
        """Write the data set and return its folder."""
        offsets = np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))
        columns = {
            "key": pa.array([f"{i:05d}" for i in range(len(self.lengths))], pa.large_string()),
            "ids": Ragged(self.ids, offsets),
            "learn": Ragged(self.learn, offsets),
        }
        with patch.object(arrow, "BATCH_BYTES", self.batch_bytes):
            return write_data_set(
                folder,
                columns,
                FIELDS,
                partitions=self.partitions,
                compression=self.compression,
                shard_bytes=1 if self.shard_per_batch else 1 << 30,
            )

    @contextmanager
    def written(self) -> Iterator[str]:
        """Write the data set for a while."""
        with TemporaryDirectory() as folder:
            yield self.write(folder)


CORPORA = st.builds(
    Corpus,
    lengths=st.lists(st.one_of(st.integers(0, 12), st.just(0), st.integers(0, 70)), max_size=25),
    partitions=st.integers(1, 6),
    batch_bytes=st.sampled_from([1, 60, 1 << 20]),
    shard_per_batch=st.booleans(),
    compression=st.sampled_from(["none", "none", "zstd"]),
)
