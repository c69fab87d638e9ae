"""A small finished data set, written with the sink and the manifest alone: no engine, no job."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import FieldSpec, Ragged
from operators.columns import take_batch
from pipeline.manifest import FORMAT_VERSION, INDEX, MANIFEST, Manifest, index_bytes
from pipeline.protocols import PartitionResult
from pipeline.sinks import ArrowSink
from pipeline.storage import Storage, join

FIELDS = {
    "image": FieldSpec("uint16", (6,), 1_000),
    "text": FieldSpec("uint32", (None,), 70_000),
    "codes": FieldSpec("uint8", (4, 2), 256),
    "caption": FieldSpec("string"),
}
FINGERPRINT = "ab" * 32


def rows(num: int, seed: int = 0) -> dict[str, Any]:
    """Return ``num`` rows of ``FIELDS``; row i has key ``i`` and ``image[0] == i``."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 1_000, (num, 6), dtype=np.uint16)
    image[:, 0] = np.arange(num)
    offsets = np.concatenate(([0], np.cumsum(random.integers(0, 9, num))))
    return {
        "key": pa.array([f"{i:05d}" for i in range(num)], pa.large_string()),
        "image": image,
        "text": Ragged(random.integers(0, 70_000, offsets[-1], dtype=np.uint32), offsets),
        "codes": random.integers(0, 256, (num, 4, 2), dtype=np.uint8),
        "caption": pa.array(["é" * (i % 5) for i in range(num)], pa.large_string()),
    }


def write_data_set(
    folder: Path | str,
    columns: Mapping[str, Any],
    fields: Mapping[str, FieldSpec] = FIELDS,
    *,
    partitions: int = 3,
    compression: str = "none",
    shard_bytes: int = 1 << 30,
    fingerprint: str = FINGERPRINT,
    random_weights: bool = False,
    operators: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Write rows as a finished data set, cut evenly into partitions, and return its folder."""
    output, storage = str(folder), Storage()
    metadata = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint}
    parts = np.array_split(np.arange(len(columns["key"])), partitions)
    results = []
    for index, part in enumerate(parts):
        sink = ArrowSink(
            storage,
            output,
            index,
            [f"input-{index}.tar"],
            fields,
            {**metadata, "partition": index},
            compression=compression,
            shard_bytes=shard_bytes,
        )
        if len(part):
            numbers = np.arange(len(part))
            sink.write(take_batch(columns, part), np.zeros(len(part), np.int32), numbers)
        shards = tuple(sink.close())
        results.append(
            PartitionResult(
                index, len(part), len(part), {}, {}, shards, None, None, {}, 0.0, "test"
            )
        )
    token_fields = [name for name, spec in fields.items() if spec.vocab_size is not None]
    index_data = index_bytes(results, token_fields)
    manifest = Manifest(
        name="test",
        fingerprint=fingerprint,
        recipe={"shards": {"fields": list(fields), "compression": compression}},
        operators=operators,
        fields=fields,
        totals={"samples": len(columns["key"])},
        filtered={},
        quarantined={},
        warnings=[],
        random_weights=random_weights,
        golden=[],
        libraries={},
        plan_sha256="0" * 64,
        index_sha256=hashlib.sha256(index_data).hexdigest(),
    )
    storage.write(join(output, INDEX), bytes(index_data))
    storage.write(join(output, MANIFEST), manifest.to_json())
    return output
