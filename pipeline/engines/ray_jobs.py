"""Ray's job API, as ``pipeline submit`` uses it. With ``ray.py`` the only file that imports ray."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pipeline.errors import SetupError, TransientError

AGENT_PATIENCE_S = 60.0
"""A head that has just started answers for some seconds that it has no agent."""

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
            self._client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise SetupError(
                f"{address} does not let you in: {str(error).strip().splitlines()[0]}",
                hint="set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the "
                "cluster's token",
            ) from None
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SetupError(
                f"no jobs can be sent to {address}: {' '.join(str(error).split())}",
                hint="give the address of the head's dashboard, as http://head:8265; "
                "pip install 'tokenmill[cluster]'",
            ) from None

    def submit(self, entrypoint: str, folder: Path, variables: Mapping[str, str]) -> str:
        """Send a job and return its id.

        Args:
            entrypoint: The driver's command line.
            folder: The driver's current folder; it is copied to the cluster.
            variables: The driver's and the workers' environment, beside the cluster's own.

        Raises:
            SetupError: the cluster refused it.
        """
        environment = {"working_dir": str(folder), "env_vars": dict(variables)}
        until = time.monotonic() + AGENT_PATIENCE_S
        while True:
            try:
                found: str = self._client.submit_job(entrypoint=entrypoint, runtime_env=environment)
            except RuntimeError as error:
                if _NO_AGENT in str(error) and time.monotonic() < until:
                    time.sleep(1.0)
                    continue
                # Not the whole text: it may repeat the environment.
                raise SetupError(
                    f"{self._address} refused the job: {str(error).strip().splitlines()[0]:.200}",
                    hint="look at the cluster's dashboard",
                ) from None
            return found

    def logs(self, job: str) -> Iterator[str]:
        """Yield pieces of a job's log, from its beginning, until it ends.

        Raises:
            TransientError: the connection ended before the job.
        """
        pieces = self._client.tail_job_logs(job)
        # A runner lets go of the connection when Ctrl-C comes while it waits.
        with asyncio.Runner() as runner:
            try:
                while (piece := runner.run(_next(pieces))) is not None:
                    yield piece
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                raise TransientError(f"{self._address}: {error}") from None

    def status(self, job: str) -> tuple[str, str]:
        """Return ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``, and why.

        Raises:
            SetupError: there is no such job.
            TransientError: the cluster does not answer.
        """
        try:
            info: Any = self._client.get_job_info(job)
        except RuntimeError as error:
            if "does not exist" in str(error) or "404" in str(error):
                raise SetupError(
                    f"{self._address}: there is no job {job}",
                    hint=f"`ray job list --address {self._address}` shows those that there are",
                ) from None
            raise TransientError(f"{self._address}: {error}") from None
        except (ConnectionError, OSError) as error:
            raise TransientError(f"{self._address}: {error}") from None
        return str(info.status.value), " ".join((info.message or "").split())


async def _next(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)
