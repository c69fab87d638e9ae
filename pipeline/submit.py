"""Run a job on a cluster from elsewhere: what is sent there, and how its driver is followed.

The driver is ``pipeline run`` on the cluster's head. It goes on when the client ends.
"""

import os
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, Self

from fsspec.core import split_protocol
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

import operators
import pipeline
from pipeline.errors import SpecError, TransientError
from pipeline.protocols import JobState
from pipeline.report.live import FIGURES, FIGURES_MARK, LiveFigures
from pipeline.spec import JobSpec

JOB_FILE = "job.yaml"
PATIENCE_S = 300.0
"""How long a cluster may not answer before the client gives up watching; the job does not."""

STOP_WAIT_S = 30
"""What ``ray job stop`` grants the driver: it ends in an orderly way within 25 s."""


class Jobs(Protocol):
    """The jobs of a cluster; ``engines.ray_jobs.RayJobs`` is the real one."""

    def submit(self, job: str, entrypoint: str, folder: Path, variables: Mapping[str, str]) -> None:
        """Send a job under an id that the caller chose."""
        ...

    def logs(self, job: str) -> Iterator[str]:
        """Yield pieces of its log, from the beginning, until it ends or falls silent."""
        ...

    def state(self, job: str) -> JobState:
        """Return how it stands."""
        ...


def submit(
    jobs: Jobs, job: JobSpec, job_file: Path, options: Sequence[str], *, figures: bool
) -> str:
    """Send a job that was validated here, and return its id on the cluster.

    Sent are this program, the job file, and the environment variables that the job names; of these
    those that are set here: one with a default (``${NAME:-}``) may be left to the cluster. The
    cluster shows them to whoever may look at its jobs, so secrets are better kept there.

    Args:
        jobs: The cluster.
        job: The job.
        job_file: Where it was read.
        options: Further options of ``pipeline run``.
        figures: The driver shall also log figures, from which ``follow`` draws a table.

    Raises:
        SpecError: a variable is not set here, or the job reads or writes a folder relative to the
            current one.
    """
    job.source_urls(), job.storage_options()  # every variable is set, or has a default
    if "--output" not in options:
        job.output_uri()
    _check_places(job, options)
    variables = {name: os.environ[name] for name in job.variables() if name in os.environ}
    variables["RAY_JOB_STOP_WAIT_TIME_S"] = str(STOP_WAIT_S)
    if figures:
        variables[FIGURES] = "1"
    command = ["python", "-m", "pipeline", "run", JOB_FILE, "--address", "auto", *options]
    name = f"{job.name}-{uuid.uuid4().hex[:8]}"
    with _shipped(job_file) as folder:
        jobs.submit(name, shlex.join(command), folder, variables)
    return name


def follow(jobs: Jobs, job: str, console: Console) -> int:
    """Show a job's log, and its live table in a terminal, until it ends; return its exit code.

    Raises:
        SetupError: there is no such job.
        TransientError: the cluster does not answer any more, or the driver was killed.
    """
    shown, tail = 0, ""
    away_since: float | None = None
    with _View(console) as view:
        while True:
            state = None
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
            except TransientError:
                pass  # whether the job goes on is another question
            try:
                state = jobs.state(job)
                away_since = None
            except TransientError as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > PATIENCE_S:
                    raise TransientError(
                        f"{error.message}; the job may go on all the same",
                        hint=f"`pipeline submit --follow {job} --address ...` looks again",
                    ) from None
            if state is not None and state.has_ended:
                break
            time.sleep(1.0)
        if tail:
            view.show(tail)
    if state.exit_code is not None and state.exit_code >= 0:
        return state.exit_code
    if state.status == "SUCCEEDED":
        return 0
    raise TransientError(
        f"job {job} ended as {state.status.lower()}: {state.why:.300}",
        hint="submit it again: it goes on where it stopped",
    )


class _View:
    """Prints lines of a driver's log; its figures become a table where there is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._figures: LiveFigures | None = None
        self._live = Live(get_renderable=self._table, console=console, transient=True)

    def show(self, line: str) -> None:
        if line.startswith(FIGURES_MARK):
            self._figures = LiveFigures.from_line(line) or self._figures
        else:
            self._console.print(Text(line), soft_wrap=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

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
