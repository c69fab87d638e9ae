"""Run a job on a cluster from elsewhere: what is sent there, and how its driver is followed.

The driver is ``pipeline run`` on the cluster's head. It goes on when the client ends.
"""

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from fsspec.core import split_protocol
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

import operators
import pipeline
from pipeline.errors import SpecError, TransientError
from pipeline.report.live import EXIT_MARK, FIGURES, FIGURES_MARK, LiveFigures
from pipeline.spec import JobSpec

JOB_FILE = "job.yaml"
PATIENCE_S = 300.0
"""How long a cluster may not answer before the client gives up watching; the job does not."""

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Jobs(Protocol):
    """The jobs of a cluster; ``engines.ray_jobs.RayJobs`` is the real one."""

    def submit(self, entrypoint: str, folder: Path, variables: Mapping[str, str]) -> str:
        """Send a job and return its id."""
        ...

    def logs(self, job: str) -> Iterator[str]:
        """Yield pieces of its log, from the beginning, until it ends."""
        ...

    def status(self, job: str) -> tuple[str, str]:
        """Return its state and why."""
        ...


def submit(jobs: Jobs, job: JobSpec, job_file: Path, options: Sequence[str]) -> str:
    """Send a job that was validated here, and return its id on the cluster.

    Sent are this program, the job file, and the environment variables that the job names; of these
    those that are set here. The cluster shows them to whoever may look at its jobs, so secrets are
    better kept there (a role, a mounted secret).

    Args:
        jobs: The cluster.
        job: The job.
        job_file: Where it was read.
        options: Further options of ``pipeline run``.

    Raises:
        SpecError: it reads or writes a folder relative to the current one.
    """
    _check_places(job, options)
    variables = {name: os.environ[name] for name in job.variables() if name in os.environ}
    command = ["python", "-m", "pipeline", "run", JOB_FILE, "--address", "auto", *options]
    with _shipped(job_file) as folder:
        return jobs.submit(shlex.join(command), folder, {**variables, FIGURES: "1"})


def follow(jobs: Jobs, job: str, console: Console) -> int:
    """Show a job's log, and its live table in a terminal, until it ends; return its exit code.

    Raises:
        TransientError: the cluster does not answer any more, or the driver was killed.
    """
    shown = 0
    tail = ""
    view = _View(console)
    away_since: float | None = None
    with view:
        while True:
            try:
                seen = 0
                for piece in jobs.logs(job):
                    seen += len(piece)
                    if seen > shown:  # a new connection begins with the first line
                        new = piece[len(piece) - (seen - shown) :]
                        shown = seen
                        *lines, tail = (tail + new).split("\n")
                        for line in lines:
                            view.show(line)
                state, why = jobs.status(job)
                away_since = None
                if state in ENDED:
                    break
            except TransientError as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > PATIENCE_S:
                    raise TransientError(
                        f"{error.message}; the job may go on all the same",
                        hint=f"`pipeline submit --follow {job} --address ...` looks again",
                    ) from None
            time.sleep(1.0)
        if tail:
            view.show(tail)
    if view.exit_code is not None:
        return view.exit_code
    if state == "SUCCEEDED":
        return 0
    raise TransientError(
        f"job {job} ended as {state.lower()}, without a word of its driver: {why:.300}",
        hint="submit it again: it goes on where it stopped",
    )


class _View:
    """Prints lines of a driver's log; its figures become a table where there is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.exit_code: int | None = None
        self._figures: LiveFigures | None = None
        self._live = Live(get_renderable=self._table, console=console, transient=True)

    def show(self, line: str) -> None:
        if line.startswith(FIGURES_MARK):
            self._figures = LiveFigures.from_line(line) or self._figures
        elif line.startswith(EXIT_MARK):
            self.exit_code = int(line.removeprefix(EXIT_MARK))
            self._figures = None
        else:
            self._console.print(Text(line), soft_wrap=True)

    def __enter__(self) -> None:
        if self._console.is_terminal:
            self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _table(self) -> RenderableType:
        return self._figures.table(self._console.width) if self._figures else Group()


def _check_places(job: JobSpec, options: Sequence[str]) -> None:
    output = options[options.index("--output") + 1] if "--output" in options else job.output
    urls = [job.source.urls] if isinstance(job.source.urls, str) else job.source.urls
    for place, uri in ((("output",), output), *((("source", "urls"), url) for url in urls)):
        if split_protocol(uri)[0] is None and not uri.startswith(("/", "${")):
            raise SpecError(
                f"{job.place(*place)}: {uri!r} is relative to a current folder, which "
                "is another one on the cluster",
                hint="give a URL, or an absolute path that all its nodes share",
            )


@contextmanager
def _shipped(job_file: Path) -> Iterator[Path]:
    """Give a folder with what the cluster needs: this program as it is here, and the job."""
    with tempfile.TemporaryDirectory(prefix="tokenmill-") as name:
        folder = Path(name)
        for package in (pipeline, operators):
            source = Path(next(iter(package.__path__)))
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(source, folder / source.name, ignore=ignored)
        shutil.copyfile(job_file, folder / JOB_FILE)
        yield folder
