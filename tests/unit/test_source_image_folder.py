"""Image folders: labels, keys and the cut into partitions."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.errors import SetupError
from pipeline.sources import listing
from pipeline.sources.image_folder import ImageFolderConfig, ImageFolderSource
from pipeline.storage import Storage


def write(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def read(*urls: str, block_rows: int = 100, **settings: Any) -> list[dict[str, Any]]:
    source = ImageFolderSource(ImageFolderConfig(urls=list(urls), **settings), Storage(), urls)
    rows = []
    for partition in source.list_partitions():
        for block in source.read(partition, block_rows):
            columns = {name: column.to_pylist() for name, column in block.columns.items()}
            rows += [
                {"file_name": block.file_name, **dict(zip(columns, row, strict=True))}
                for row in zip(*columns.values(), strict=True)
            ]
    return rows


def test_one_file_is_one_sample(tmp_path: Path) -> None:
    write(tmp_path, ["cat/b.png", "cat/a.JPG", "dog/x/c.webp", "top.gif", "cat/notes.txt"])
    rows = read(str(tmp_path))
    assert [(row["key"], row["label"]) for row in rows] == [
        ("cat/a.JPG", "cat"),
        ("cat/b.png", "cat"),
        ("dog/x/c.webp", "x"),
        ("top.gif", ""),
    ]
    assert all(row["path"] == row["key"] and row["image"] == row["key"].encode() for row in rows)


@pytest.mark.parametrize("block_rows", [1, 2, 3, 9])
def test_blocks_name_the_folder_of_all_files_wherever_they_are_cut(
    tmp_path: Path, block_rows: int
) -> None:
    """The name stands in shards, which may not depend on the size of a block."""
    write(tmp_path, ["a/b/1.png", "a/b/2.png", "a/c/3.png"])
    found = [row["file_name"] for row in read(str(tmp_path), block_rows=block_rows)]
    assert found == ["a"] * 3
    write(tmp_path, ["d/4.png"])
    found = [row["file_name"] for row in read(str(tmp_path), block_rows=block_rows)]
    assert found == [""] * 4


def test_globs_and_several_folders(tmp_path: Path) -> None:
    write(tmp_path, ["train/cat/1.png", "train/dog/1.png", "val/cat/1.png"])
    rows = read(f"{tmp_path}/train/*/*.png")
    assert [(row["key"], row["label"]) for row in rows] == [
        ("cat/1.png", "cat"),
        ("dog/1.png", "dog"),
    ]
    rows = read(f"{tmp_path}/train/cat", f"{tmp_path}/val/cat")
    assert [(row["key"], row["label"]) for row in rows] == [("0/1.png", ""), ("1/1.png", "")]
    assert [row["key"] for row in read(f"{tmp_path}/val/cat/1.png")] == ["1.png"]


def test_extensions_choose_the_files(tmp_path: Path) -> None:
    write(tmp_path, ["a.png", "b.heic"])
    assert [row["key"] for row in read(str(tmp_path), extensions=["heic"])] == ["b.heic"]
    with pytest.raises(SetupError, match=r"holds no file that ends in \.bmp"):
        read(str(tmp_path), extensions=["bmp"])
    with pytest.raises(ValidationError, match="should match pattern"):
        ImageFolderConfig(urls="x", extensions=(".png",))


def test_partitions_hold_so_many_bytes_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [f"{i}.png" for i in range(9)])  # 5 bytes each
    config = ImageFolderConfig(urls="x", partition_bytes=20)
    source = ImageFolderSource(config, Storage(), [str(tmp_path)])
    assert [len(p.ranges) for p in source.list_partitions()] == [4, 4, 1]
    monkeypatch.setattr(listing, "MAX_RANGES", 2)
    assert [len(p.ranges) for p in source.list_partitions()] == [2, 2, 2, 2, 1]


def test_a_folder_without_anything_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="absent: no such object or folder"):
        read(f"{tmp_path}/absent")
