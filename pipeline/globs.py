"""Which names match a pattern: fsspec's rules, and an error where a folder cannot be listed."""

import re
from collections.abc import Callable, Iterable
from glob import has_magic
from typing import TypeVar

from fsspec.utils import glob_translate

FileT = TypeVar("FileT")


def glob(
    pattern: str,
    children: Callable[[str, str], Iterable[tuple[str, bool, FileT]]],
    below: Callable[[str], Iterable[tuple[str, FileT]]],
) -> list[FileT]:
    """Return the files that match. fsspec's own passes over folders that it cannot list.

    Args:
        pattern: Absolute, without a protocol.
        children: Folder, and how the wanted names in it begin -> what is in it: name, whether it
            is a folder, and what to return for it.
        below: Folder -> name of each file below it, and what to return for it.
    """
    parts = pattern.split("/")
    folders = parts[:1]
    for depth, part in enumerate(parts[1:], start=2):
        is_last = depth == len(parts)
        if "**" in part:
            matches = re.compile(glob_translate(pattern)).match
            return [file for f in folders for name, file in below(f) if matches(name)]
        if not has_magic(part) and not is_last:
            folders = [f"{folder}/{part}" for folder in folders]
            continue
        matches = re.compile(glob_translate("/".join(parts[:depth]))).match
        stem = re.split(r"[*?\[]", part)[0]
        found = [child for f in folders for child in children(f, stem) if matches(child[0])]
        if is_last:
            return [file for _, is_folder, file in found if not is_folder]
        folders = [name for name, is_folder, _ in found if is_folder]
    return []
