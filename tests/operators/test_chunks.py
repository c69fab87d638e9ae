"""Chunks of text: what is cut comes together again, and what is remembered stays bounded."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from operators.text import chunks as module
from operators.text.chunks import ChunkEncoder, bytes_of_ids, cut_after, ids_of_bytes
from tests.method_files import id_rows, texts

TEXTS = st.lists(st.text(st.sampled_from("aé語 \n."), max_size=8), max_size=6)


def slow_cut(text: str) -> list[str]:
    found = [""]
    for char in text:
        found[-1] += char
        if char in " .":
            found.append("")
    return [chunk for chunk in found if chunk]


@settings(max_examples=200, deadline=None)
@example(rows=["", ""], before=1, after=0)
@example(rows=[], before=0, after=2)
@given(rows=TEXTS, before=st.integers(0, 2), after=st.integers(0, 2))
def test_any_slice_is_cut_after_separators(rows: list[str], before: int, after: int) -> None:
    column = texts(["x. y"] * before + rows + ["z z"] * after).slice(before, len(rows))
    chunks, firsts = cut_after(column, b" .")
    chunks.validate(full=True)
    found = chunks.to_pylist()
    pairs = pairwise(firsts)
    assert [found[a:b] for a, b in pairs] == [slow_cut(row) for row in rows]


@settings(max_examples=100, deadline=None)
@given(rows=TEXTS)
def test_results_of_chunks_are_joined(rows: list[str]) -> None:
    encoder = ChunkEncoder(lambda chunk: bytes_of_ids([ord(c) for c in chunk], "uint16"), b" .")
    for _ in range(2):  # the second time from memory
        found = ids_of_bytes(encoder(texts(rows)), "uint16")
        assert id_rows(found) == [[ord(char) for char in row] for row in rows]


def test_few_and_short_chunks_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED_CHUNKS", 4)
    asked: list[str] = []

    def encode(chunk: str) -> bytes:
        asked.append(chunk)
        return b""

    encoder = ChunkEncoder(encode, b" ")
    long = "x" * 65
    encoder(texts(["a a b", long]))
    encoder(texts(["a b", long]))
    assert asked == ["a ", "b", long, long]
    encoder(texts([f"{i} " for i in range(9)]))
    assert len(encoder._remembered) <= 4
