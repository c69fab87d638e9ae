"""Write small dictionaries of Factorizer's format, without sharing: a block of 256 per state."""

import struct
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

Record = tuple[float, int, int, int]
HAS_LEAF, IS_LEAF = 1 << 8, 1 << 31
SEPARATOR = 0xFF


def written(path: Path, records: Sequence[tuple[bytes, Record]]) -> str:
    """Write subwords (bytes of text, with the marks) and their records."""
    root: dict[int, dict[int, object]] = {}
    for subword, record in records:
        node = root
        payload = b64encode(struct.pack("<fBBB", *record)) + b"\n"
        for byte in [*_key(subword), SEPARATOR, *payload]:
            node = node.setdefault(byte, {})  # type: ignore[assignment]
    nodes = [root]
    for node in nodes:
        nodes.extend(node[label] for label in sorted(node))  # type: ignore[misc]
    size = 256 * (len(nodes) + 1)
    units = [0xFE] * size  # a label that no key has
    guide = [[0, 0] for _ in range(size)]
    slots = {id(root): 0}
    for block, node in enumerate(nodes):
        slot, base = slots[id(node)], 256 * (block + 1)
        label_here = units[slot] & 0xFF if slot else 0
        units[slot] = ((slot ^ base) << 10) | label_here | (HAS_LEAF if not node else 0)
        if not node:
            units[base] = IS_LEAF
        labels = sorted(node)
        for i, label in enumerate(labels):
            child = base ^ label
            units[child] = label
            slots[id(node[label])] = child
            guide[child][1] = labels[i + 1] if i + 1 < len(labels) else 0
        guide[slot][0] = labels[0] if labels else 0
    data = struct.pack(f"<I{size}I", size, *units)
    data += struct.pack("<I", size) + bytes(byte for pair in guide for byte in pair)
    path.write_bytes(data)
    return str(path)


def _key(subword: bytes) -> bytes:
    return b"".join(
        bytes([byte]) if byte < 0x80 else bytes([0xC0 | byte >> 3, 0x80 | byte & 7])
        for byte in subword
    )
