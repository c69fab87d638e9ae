"""Ray's job API, as ``pipeline submit`` uses it. With ``ray.py`` the only file that imports ray."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pipeline.errors import SetupError, TransientError
from pipeline.protocols import JobState

AGENT_PATIENCE_S = 60.0
"""A head that has just started answers for some seconds that it has no agent."""

SILENCE_S = 60.0
"""A log that says nothing for so long is asked for anew: its connection may be dead."""

_NO_AGENT = "No available agent"

_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that tell of every upload and every closed socket."""


class RayJobs:
    """The jobs of one cluster.

    Args:
        address: Of its dashboard, ``http://head:8265``. A token is taken from Ray's own variables.

    Raises:
        SetupError: nobody answers there, or ``ray[default]`` is not installed here.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            import aiohttp

            with _without_addresses():
                self._client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise SetupError(
                f"{address} does not let you in: {str(error).strip().splitlines()[0]}",
                hint="set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the "
                "cluster's token",
            ) from None
        except ImportError as error:
            raise SetupError(
                f"submit: {error.name} is not installed", hint="pip install 'tokenmill[cluster]'"
            ) from None
        except (OSError, RuntimeError, ValueError) as error:
            raise SetupError(
                f"no jobs can be sent to {address}: {' '.join(str(error).split())}",
                hint="give the address of the head's dashboard, as http://head:8265; "
                "pip install 'tokenmill[cluster]'",
            ) from None
        self._away = (RuntimeError, OSError, aiohttp.ClientError)

    def submit(self, job: str, entrypoint: str, folder: Path, variables: Mapping[str, str]) -> None:
        """Send a job under an id that the caller chose, so that it is there once.

        Args:
            job: The id.
            entrypoint: The driver's command line.
            folder: The driver's current folder; it is copied to the cluster.
            variables: The driver's and the workers' environment, beside the cluster's own.

        Raises:
            SetupError: the cluster refused it, or does not answer.
        """
        environment = {"working_dir": str(folder), "env_vars": dict(variables)}
        until = time.monotonic() + AGENT_PATIENCE_S
        was_asked = False
        while True:
            try:
                self._client.submit_job(
                    entrypoint=entrypoint, runtime_env=environment, submission_id=job
                )
            except (RuntimeError, OSError) as error:
                text = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
                if was_asked and "already exists" in str(error):
                    return  # the answer to an earlier request was lost
                was_asked = was_asked or isinstance(error, OSError)
                if (isinstance(error, OSError) or _NO_AGENT in text) and time.monotonic() < until:
                    time.sleep(1.0)
                    continue
                # Not the whole text: it may repeat the environment.
                raise SetupError(
                    f"{self._address} did not take the job: {text:.200}",
                    hint="look at the cluster's dashboard",
                ) from None
            return

    def logs(self, job: str) -> Iterator[str]:
        """Yield pieces of a job's log, from its beginning, until it ends or falls silent.

        Raises:
            TransientError: the connection ended before the job.
        """
        pieces = self._client.tail_job_logs(job)
        # A runner lets go of the connection when Ctrl-C comes while it waits.
        with asyncio.Runner() as runner:
            try:
                while (piece := runner.run(_next(pieces))) is not None:
                    yield piece
            except TimeoutError:
                return
            except self._away as error:
                raise TransientError(f"{self._address}: {error}") from None

    def state(self, job: str) -> JobState:
        """Return how a job stands.

        Raises:
            SetupError: there is no such job.
            TransientError: the cluster does not answer.
        """
        try:
            info = self._client.get_job_info(job)
        except self._away as error:
            if "does not exist" in str(error) or "404" in str(error):
                raise SetupError(
                    f"{self._address}: there is no job {job}",
                    hint=f"`ray job list --address {self._address}` shows those that there are",
                ) from None
            raise TransientError(f"{self._address}: {error}") from None
        why = " ".join((info.message or "").split())
        return JobState(str(info.status.value), why, info.driver_exit_code)


@contextmanager
def _without_addresses() -> Iterator[None]:
    """Hide the variables that Ray would put in the place of the address that was given."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


async def _next(pieces: AsyncIterator[str]) -> str | None:
    async with asyncio.timeout(SILENCE_S):
        return await anext(pieces, None)
