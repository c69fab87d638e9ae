"""What the rest of the repository says: versions, the project's file, the files of ``infra/``."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION: str = PROJECT["project"]["version"]
CONSTRAINTS = dict(
    line.split("==", 1)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
IMAGE = re.compile(r"registry\.example\.com/tokenmill:(?P<version>[^-\s]+)-(?P<target>cpu|cuda)")


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the YAML documents of a file."""
    return list(YAML(typ="safe", pure=True).load_all(path.read_text(encoding="utf-8")))


def marked(path: Path) -> list[str]:
    """Return the lines that a user is told to change: those with a mark, or below one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines):
        if re.match(r"\s*# CHANGE\b", line):
            found.append(lines[number + 1])
        elif re.search(r"\S.* # CHANGE\b", line) and not line.lstrip().startswith("#"):
            found.append(line)
    return found


def commands(page: Path) -> list[list[str]]:
    """Return the commands in a page's ``sh`` blocks, split into words; continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if shlex.split(line, comments=True)]
