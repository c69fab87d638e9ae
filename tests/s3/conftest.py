"""An S3 server on a free port, one bucket a test."""

from collections.abc import Iterator
from itertools import count

import pytest

from pipeline.storage import Storage
from tests.s3.server import S3Server

_buckets = (f"bucket-{i}" for i in count())


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
    import botocore.session  # type: ignore[import-untyped]

    name = next(_buckets)
    client = botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=s3_endpoint,
        aws_access_key_id="AKIAEXAMPLE",
        aws_secret_access_key="any",
    )
    client.create_bucket(Bucket=name)
    client.close()
    return f"s3://{name}"
