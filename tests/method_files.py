"""Small files for text operators whose methods have formats of their own, from golden data."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from operators.base import Ragged

GOLDEN = Path(__file__).parent / "golden" / "text"
FACTORIZER_FILE = str(GOLDEN / "factorizer" / "tiny.dawg")


@cache
def golden(name: str) -> Any:
    """Return ``tests/golden/text/<name>.json``."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def krbert_file(folder: Path, tokens: list[str] | None = None) -> str:
    path = folder / "vocab.txt"
    found = golden("krbert/tokenize")[0]["vocab"] if tokens is None else tokens
    path.write_text("".join(f"{token}\n" for token in found))
    return str(path)


def hybrid_folder(folder: Path, **tables: dict[str, int]) -> str:
    """Write three dictionaries; ``roots``, ``suffixes`` and ``bpe`` replace the golden ones."""
    names = {"roots": "kokler.json", "suffixes": "ekler.json", "bpe": "bpe_tokenler.json"}
    for table, name in names.items():
        content = tables.get(table, golden("turkish_hybrid/tokenize")["tiny"][table])
        (folder / name).write_text(json.dumps(content))
    return str(folder)


def splinter_file(folder: Path, run: int = 0) -> str:
    """Write the map of a golden run, with the authors' characters."""
    found = golden("splinter/train")[run]
    content = {
        "language": found["language"],
        "reductions": {n: shares for n, shares in found["reductions_map"].items() if n != "1"},
        "codes": found["new_unicode_chars"],
    }
    return _written(folder / "splinter.json", content)


def lib_file(folder: Path, lexicon: list[str] | None = None, spaces: str = "keep") -> str:
    found = golden("lib/train")["runs"][0]["final"] if lexicon is None else lexicon
    return _written(folder / "lib.json", {"spaces": spaces, "lexicon": found})


def texts(rows: list[str]) -> pa.Array:
    return pa.array(rows, pa.large_string())


def undecodable(rows: list[bytes]) -> pa.Array:
    """Return a text column of any bytes."""
    column = pa.array(rows, pa.large_binary())
    return pa.Array.from_buffers(pa.large_string(), len(rows), column.buffers())


def id_rows(tokens: Ragged) -> list[list[Any]]:
    return [tokens[row].tolist() for row in range(len(tokens))]


def _written(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)
