"""An S3 server on a free port, one bucket a test."""

from collections.abc import Iterator
from itertools import count

import pytest

from pipeline.storage import Storage

_buckets = (f"bucket-{i}" for i in count())


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


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
