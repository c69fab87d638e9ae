"""Quarantine files: what is written comes back, whatever stands in keys and reasons."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.protocols import Rejected
from pipeline.quarantine import read_quarantine, write_quarantine
from pipeline.storage import Storage

TEXT = st.text(st.characters(exclude_categories=()), max_size=12)  # with lone surrogates


def rejected(row: int = 0, **fields: object) -> Rejected:
    given = {"key": f"k{row}", "uri": "a.tar", "step": "read", "error": "E", "reason": "r"}
    return Rejected(row=row, **{**given, **fields})  # type: ignore[arg-type]


def test_lines_are_by_row_and_say_everything(tmp_path: Path) -> None:
    items = [rejected(5, payload={"image": b"\xff\x00"}), rejected(2, reason="größer")]
    found = write_quarantine(Storage(), str(tmp_path), 7, items)
    assert found is not None
    data = (tmp_path / "quarantine" / "0000007.jsonl").read_bytes()
    assert (found.path, found.num_samples) == ("quarantine/0000007.jsonl", 2)
    assert (found.num_bytes, found.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    first, second = (json.loads(line) for line in data.splitlines())
    assert first == {
        "partition": 7,
        "row": 2,
        "key": "k2",
        "uri": "a.tar",
        "step": "read",
        "error": "E",
        "reason": "größer",
    }
    assert second["payload"] == {"image": "/wA="}
    assert list(read_quarantine(Storage(), str(tmp_path), found.path)) == [items[1], items[0]]


def test_nothing_rejected_is_no_file(tmp_path: Path) -> None:
    assert write_quarantine(Storage(), str(tmp_path), 0, []) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["a\nb", "a\u2028b", "a\x85b", "a\x1cb", "\udcff", '"\\'])
def test_text_that_breaks_lines_or_is_no_utf8(tmp_path: Path, text: str) -> None:
    item = rejected(key=text, reason=text)
    found = write_quarantine(Storage(), str(tmp_path), 0, [item, rejected(1)])
    assert found is not None
    assert list(read_quarantine(Storage(), str(tmp_path), found.path)) == [item, rejected(1)]
    data = (tmp_path / found.path).read_bytes()
    assert data.count(b"\n") == 2
    data.decode("utf-8")


@settings(max_examples=100, deadline=None)
@given(
    items=st.lists(
        st.tuples(TEXT, TEXT, st.none() | st.dictionaries(TEXT, st.binary(max_size=9), min_size=1)),
        min_size=1,
        max_size=5,
    )
)
def test_anything_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[tuple[str, str, dict[str, bytes] | None]],
) -> None:
    folder = str(tmp_path_factory.mktemp("quarantine"))
    given = [rejected(row, key=k, reason=r, payload=p) for row, (k, r, p) in enumerate(items)]
    found = write_quarantine(Storage(), folder, 0, given[::-1])
    assert found is not None
    assert list(read_quarantine(Storage(), folder, found.path)) == given
