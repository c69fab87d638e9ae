"""An S3 server on a free port, one bucket a test."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from pipeline.storage import Storage
from tests.s3.server import S3Server

_numbers = count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3_endpoint(s3_server: S3Server) -> str:
    return s3_server.endpoint


@pytest.fixture
def s3(s3_endpoint: str) -> Storage:
    """Storage that reaches the server with credentials of its own."""
    return Storage({"s3": {"key": "AKIAEXAMPLE", "secret": "any", "endpoint_url": s3_endpoint}})


@pytest.fixture
def bucket(s3_endpoint: str) -> str:
    """The URL of an empty bucket."""
    name = f"bucket-{next(_numbers)}"
    with_client(s3_endpoint, "create_bucket", Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait hardly at all between attempts of any kind."""
    monkeypatch.setattr("pipeline.storage.WAITS_S", (0.01,) * 3)
    monkeypatch.setattr("pipeline.engines.attempts.FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(
        "botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01
    )


def with_client(
    endpoint: str,
    operation: str,
    *,
    key: str = "AKIAEXAMPLE",
    secret: str = "any",
    **arguments: Any,
) -> Any:
    """Ask the server something directly."""
    import botocore.session  # type: ignore[import-untyped]

    client = botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )
    try:
        return getattr(client, operation)(**arguments)
    finally:
        client.close()
