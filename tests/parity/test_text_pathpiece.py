"""pathpiece: every case of the authors' code, and what leaving out a token costs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from operators.base import Ragged
from operators.text.algorithms.byte_segments import fewest_tokens, longest_prefixes
from operators.text.algorithms.pathpiece_training import Pieces, omissions
from operators.text.algorithms.trie import build_trie

GOLDEN = Path("tests/golden/text/pathpiece")
SPECIAL = b"<|endoftext|>"
VOCABULARIES = json.loads((GOLDEN / "segment.json").read_text())


@pytest.mark.parametrize("case", VOCABULARIES, ids=lambda case: case["name"])
def test_ids_are_those_of_the_authors(case: dict[str, Any]) -> None:
    lines = [bytes.fromhex(line) for line in case["vocab_hex"]]
    ids = {SPECIAL: 0}
    ids |= {token: i for i, token in enumerate((t for t in lines if t != SPECIAL), start=1)}
    widths = np.zeros(len(lines) + 1, np.int32)
    for token, i in ids.items():
        widths[i] = len(token)
    texts = [np.frombuffer(bytes.fromhex(item["hex"]), np.uint8) for item in case["items"]]
    values, cuts = np.concatenate(texts), np.cumsum([0, *map(len, texts)])
    forwards, backwards = build_trie(ids), build_trie(ids, is_reversed=True)
    found = {
        "longest": fewest_tokens(values, cuts, backwards, widths, "uint32", None),
        "random": fewest_tokens(values, cuts, backwards, widths, "uint32", 42),
        "greedy": longest_prefixes(values, cuts, forwards, forwards.longest, "uint32"),
    }
    for name, segmented in found.items():
        rows = Ragged(segmented.ids, segmented.firsts)
        found_ids = [rows[i].tolist() for i in range(len(rows))]
        assert found_ids == [item[name] for item in case["items"]], name


def test_costs_of_leaving_out_a_token_are_those_of_segmenting_again() -> None:
    golden = json.loads((GOLDEN / "omission.json").read_text())
    counts = Counter(map(bytes.fromhex, golden["pretokens_hex"]))
    keys = sorted(counts)
    pieces = Pieces(
        np.frombuffer(b"".join(keys), np.uint8),
        np.cumsum([0, *map(len, keys)]),
        np.array([counts[key] for key in keys]),
    )
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [t for t in map(bytes.fromhex, golden["vocab_hex"]) if len(t) > 1]
    costs, uses = omissions(pieces, tokens, None)
    assert uses.sum() == golden["base_tokens"]
    want = golden["increase_if_removed"]
    found = {token.hex(): int(costs[i]) for i, token in enumerate(tokens) if len(token) > 1}
    assert found == want
