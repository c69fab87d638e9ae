"""Listing: braces, globs, names that travel, and partitions."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SetupError
from pipeline.protocols import SourceFile, SourceRange
from pipeline.sources.listing import join_ranges, list_files, whole_files
from pipeline.storage import Storage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ["a/000.tar", "a/001.tar", "a/002.tar", "b/000.tar", "b/deep/er/003.tar", "b/x.txt"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def names(*urls: str) -> list[str]:
    return [file.name for file in list_files(Storage(), urls)]


@pytest.mark.parametrize(
    ("urls", "want"),
    [
        (["a/000.tar"], ["000.tar"]),
        (["a/{000..002}.tar"], ["000.tar", "001.tar", "002.tar"]),
        (["{a,b}/000.tar"], ["a/000.tar", "b/000.tar"]),
        (["{a/{001..002},b/000}.tar"], ["a/001.tar", "a/002.tar", "b/000.tar"]),
        (["a/*.tar"], ["000.tar", "001.tar", "002.tar"]),
        (["a/00?.tar"], ["000.tar", "001.tar", "002.tar"]),
        (["a/00[02].tar"], ["000.tar", "002.tar"]),
        (["*/000.tar"], ["a/000.tar", "b/000.tar"]),
        (["b/**/*.tar"], ["000.tar", "deep/er/003.tar"]),
        (["{b,a}/*.tar"], ["a/000.tar", "a/001.tar", "a/002.tar", "b/000.tar"]),
        (["a/002.tar", "a/000.tar"], ["000.tar", "002.tar"]),
        (["a/*.tar", "a/{000..001}.tar"], ["000.tar", "001.tar", "002.tar"]),
        (["a/000.tar", "b/000.tar"], ["0/000.tar", "1/000.tar"]),
        (["b/*.tar", "a/*.tar"], ["0/000.tar", "1/000.tar", "1/001.tar", "1/002.tar"]),
    ],
    ids=str,
)
def test_patterns_give_sorted_names_below_their_fixed_part(
    folder: Path, urls: list[str], want: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absolute = list_files(Storage(), [f"{folder}/{url}" for url in urls])
    assert [file.name for file in absolute] == want
    assert list_files(Storage(), [f"file://{folder}/{url}" for url in urls]) == absolute
    monkeypatch.chdir(folder)
    assert list_files(Storage(), urls) == absolute


def test_a_file_has_its_size_and_version(folder: Path) -> None:
    path = folder / "a" / "000.tar"
    version = str(path.stat().st_mtime_ns)
    want = [SourceFile(str(path), "000.tar", 9, version)]
    assert list_files(Storage(), [str(path)]) == want
    assert list_files(Storage(), [f"{folder}/a/000*"]) == want


def test_links_to_folders_are_followed_but_not_upwards(folder: Path) -> None:
    (folder / "b" / "link").symlink_to(folder / "a")
    (folder / "a" / "up").symlink_to(folder / "b")
    files = list_files(Storage(), [str(folder / "b")], extensions=[".tar"])
    assert [file.name for file in files] == [
        "000.tar",
        "deep/er/003.tar",
        *(f"link/00{i}.tar" for i in range(3)),
    ]


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("a/{000..003}.tar", r"a/003\.tar: no such object \(from .*\{000\.\.003\}"),
        ("a/9.tar", r"a/9\.tar: no such object .*; check `urls`"),
        ("a", r"a: no such object .*a folder is read as <folder>/\*"),
        ("a/*.parquet", r"a/\*\.parquet: matches nothing"),
        ("{a,c}/*.tar", r"c/\*\.tar: matches nothing"),
        ("a/{0", r"a/\{0: unbalanced braces"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, url: str, match: str) -> None:
    with pytest.raises(SetupError, match=match):
        names(f"{folder}/{url}")


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tar")).write_bytes(b"")
    with pytest.raises(SetupError, match=r"udcff\.tar': the name is not UTF-8; rename"):
        names(f"{tmp_path}/*.tar")


sizes = st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=30)


@given(sizes, st.integers(1, 60))
def test_ranges_are_joined_in_order_up_to_the_size(
    parts: list[tuple[int, bool]], limit: int
) -> None:
    ranges = [
        SourceRange(SourceFile(f"u{i}", f"{i}", size), size, stop=3 if is_cut else None)
        for i, (size, is_cut) in enumerate(parts)
    ]
    partitions = list(join_ranges(ranges, limit))
    assert [found for p in partitions for found in p.ranges] == ranges
    assert [p.index for p in partitions] == list(range(len(partitions)))
    for partition in partitions:
        alone = len(partition.ranges) == 1
        assert alone or partition.num_bytes <= limit
        assert alone or all(found.stop is None for found in partition.ranges)
    for one, two in pairwise(partitions):
        both = (one.ranges[-1], two.ranges[0])
        could_join = all(found.stop is None for found in both)
        assert not could_join or one.num_bytes + two.ranges[0].num_bytes > limit


def test_whole_files_are_whole() -> None:
    file = SourceFile("u", "n", 7)
    assert list(whole_files([file])) == [SourceRange(file, 7, 0, None, 0)]
