"""The command line as users meet it: another process, its exit code and what it printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


class CommandLine:
    """``pipeline`` in this process, in a folder of its own: quick, and open to monkeypatching.

    Attributes:
        folder: The current directory of the commands.
        out, err: What the last command printed.
    """

    def __init__(
        self, folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
    ) -> None:
        self.folder, self._capsys, self._patch = folder, capsys, patch
        self.out = self.err = ""

    def __call__(self, *args: str | Path) -> int:
        """Run ``pipeline ARGS`` and return its exit code."""
        from pipeline.cli import main

        code: int | str | None = 0
        self._capsys.readouterr()
        with self._patch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["pipeline", *map(str, args)])
            try:
                main()
            except SystemExit as done:
                code = done.code
        self.out, self.err = self._capsys.readouterr()
        assert isinstance(code, int)
        return code
