"""The layers of ARCHITECTURE.md hold, and no file of ours names a machine's paths."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("operators", "pipeline", "jobs", "examples", "benchmarks", "infra")
TEXTS = {".py", ".yaml", ".yml", ".json", ".md", ".toml", ".sh", ".txt"}
MACHINE_PATH = re.compile(r"(?<![\w$}.:/-])/(?:home|root|Users|work|workspace|mnt|tmp)/\w")


def test_imports_go_one_way() -> None:
    code = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_engine_and_operators_do_not_meet_at_import() -> None:
    """Import-linter follows names in the code; this follows what really gets loaded."""
    code = (
        "import sys, operators.base, operators.registry, operators.testing\n"
        "assert not {'pipeline', 'ray', 'fsspec', 'torch'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_machine_paths() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    files = [path for path in (*files, *ROOT.glob("*")) if path.suffix in TEXTS and path.is_file()]
    assert len(files) > 50
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []
