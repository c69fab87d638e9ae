"""The command line as users meet it: another process, its exit code and what it printed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIPELINE = (sys.executable, "-c", "from pipeline.cli import main; main()")


def environment(**variables: str) -> dict[str, str]:
    """Return an environment in which ``pipeline`` is this checkout's."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **variables}


def pipeline(*args: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``pipeline ARGS`` in a folder."""
    return subprocess.run(
        [*PIPELINE, *map(str, args)],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
