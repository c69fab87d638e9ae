"""The quarantine: the samples that could not be used, each with where, what and why."""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.errors import PoisonSampleError
from pipeline.protocols import Partition, QuarantineFile, Rejected
from pipeline.storage import NotFoundError, Storage, join


def write_quarantine(
    storage: Storage, output: str, partition: int, rejected: Sequence[Rejected]
) -> QuarantineFile | None:
    """Write a partition's rejected samples as JSON lines, by row; nothing when there are none."""
    if not rejected:
        return None
    lines = []
    for item in sorted(rejected, key=lambda item: item.row):
        line = {
            "partition": partition,
            "row": item.row,
            "key": item.key,
            "uri": item.uri,
            "step": item.step,
            "error": item.error,
            "reason": item.reason,
        }
        if item.file_row is not None:
            line["file_row"] = item.file_row
        if item.payload is not None:
            line["payload"] = {
                name: base64.b64encode(value).decode() for name, value in item.payload.items()
            }
        lines.append(json.dumps(line, ensure_ascii=False))
    # A lone surrogate (a broken name in a reason) becomes \udcff, which JSON reads back.
    data = ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")
    path = _path(partition)
    storage.write(join(output, path), data)
    return QuarantineFile(path, len(data), hashlib.sha256(data).hexdigest(), len(lines))


def mask_poison(storage: Storage, output: str, partition: Partition) -> Partition:
    """Return a partition with the rows masked that ended a worker when the data set was made.

    Whoever reads the partition again must do so, or ends the same way.
    """
    try:
        rejected = list(read_quarantine(storage, output, _path(partition.index)))
    except NotFoundError:
        return partition
    rows = tuple(item.row for item in rejected if item.error == PoisonSampleError.__name__)
    return replace(partition, masked=rows)


def read_quarantine(storage: Storage, output: str, path: str) -> Iterator[Rejected]:
    """Yield the rejected samples of one quarantine file, given its path in the folder."""
    # Not splitlines(): it also breaks at U+0085, U+2028 and others that stand in keys.
    for line in storage.read(join(output, path)).decode().rstrip("\n").split("\n"):
        item = json.loads(line)
        payload = item.pop("payload", None)
        del item["partition"]
        if payload is not None:
            payload = {name: base64.b64decode(value) for name, value in payload.items()}
        yield Rejected(**item, payload=payload)


def _path(partition: int) -> str:
    return f"quarantine/{partition:07d}.jsonl"
