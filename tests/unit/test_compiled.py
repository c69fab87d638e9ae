"""compiled: once a machine, anew when any source of the folder changes, and without a folder."""

import os
import subprocess
import sys
from pathlib import Path

INNER = """
import numba
from operators.compiled import compiled_by

def add(x):
    return x + {added}

add = compiled_by(numba, add)
"""
OUTER = """
import numba
from operators.compiled import compiled_by
from inner import add

def twice(x):
    return 2 * add(x)

twice = compiled_by(numba, twice)
"""
PROGRAM = """
{before}
from outer import twice
value = twice(3)
stats = twice.stats
print(value, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""
NO_ROOM = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"


def write(folder: Path, added: int) -> None:
    (folder / "inner.py").write_text(INNER.format(added=added))
    (folder / "outer.py").write_text(OUTER)


def run(folder: Path, before: str = "") -> list[int]:
    """Return, from a process of its own: twice(3), and whether its machine code was on disk."""
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in found.stdout.split()]


def test_a_second_process_compiles_nothing_until_a_source_changes(tmp_path: Path) -> None:
    """Also not the function that is called, whose file is another one."""
    write(tmp_path, added=1)
    assert run(tmp_path) == [8, 0, 1]
    assert run(tmp_path) == [8, 1, 0]
    write(tmp_path, added=5)
    assert run(tmp_path) == [16, 0, 1]


def test_where_nothing_can_be_kept_it_works_all_the_same(tmp_path: Path) -> None:
    write(tmp_path, added=1)
    assert run(tmp_path, NO_ROOM) == [8, 0, 1]
    assert not list(tmp_path.rglob("*.nbi"))
