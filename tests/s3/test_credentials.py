"""How a job gets its credentials, and that they show nowhere."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SetupError
from pipeline.storage import Storage
from tests.e2e.command_line import CommandLine
from tests.s3 import text_job
from tests.s3.conftest import with_client
from tests.s3.server import Fault, S3Server, refuse

ROLE = "arn:aws:iam::123456789012:role/tokens"
"""Of the account that the test's buckets belong to."""


class Requests:
    """The requests that reached the server: service -> access keys they were signed with."""

    def __init__(self) -> None:
        self.signed_by: dict[str, set[str]] = {}

    def __call__(self, app: Any, environ: dict[str, Any], start_response: Any) -> Any:
        signed = environ.get("HTTP_AUTHORIZATION", "")
        found = re.search(r"Credential=([^/]+)/\d+/[^/]+/(\w+)/", signed)
        key, service = found.groups() if found else ("nobody", "any")
        self.signed_by.setdefault(service, set()).add(key)
        return app(environ, start_response)


@pytest.fixture
def requests(s3_server: S3Server, bucket: str) -> Iterator[Requests]:  # after the bucket is made
    seen = Requests()
    with s3_server.disturbed(Fault(seen)):
        yield seen


@pytest.fixture(autouse=True)
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what this machine's user has, and forget connections of other tests."""
    import os

    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()


def use(storage: Storage, bucket: str) -> None:
    """Write, read, list and commit."""
    storage.write(f"{bucket}/a/b", b"data")
    assert storage.read(f"{bucket}/a/b") == b"data"
    storage.create_exclusive(f"{bucket}/a/c", b"data")
    assert [entry.uri for entry in storage.walk(f"{bucket}/a")] == [
        f"{bucket}/a/b",
        f"{bucket}/a/c",
    ]


def test_keys_of_the_job(s3_endpoint: str, bucket: str, requests: Requests) -> None:
    use(Storage({"s3": {"key": "AKIAJOB", "secret": "x", "endpoint_url": s3_endpoint}}), bucket)
    assert requests.signed_by == {"s3": {"AKIAJOB"}}


def test_keys_and_endpoint_for_the_client(
    s3_endpoint: str, bucket: str, requests: Requests
) -> None:
    client = {"aws_access_key_id": "AKIACLIENT", "aws_secret_access_key": "x"}
    use(Storage({"s3": {"client_kwargs": {**client, "endpoint_url": s3_endpoint}}}), bucket)
    assert requests.signed_by == {"s3": {"AKIACLIENT"}}


def test_keys_of_the_environment(
    s3_endpoint: str, bucket: str, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
    use(Storage(), bucket)
    assert requests.signed_by == {"s3": {"AKIAENVIRONMENT"}}


def test_a_profile(s3_endpoint: str, bucket: str, requests: Requests, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = x\n"
        "[tokens]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = x\n"
    )
    (tmp_path / "config").write_text(f"[profile tokens]\nendpoint_url = {s3_endpoint}\n")
    use(Storage({"s3": {"profile": "tokens"}}), bucket)
    assert requests.signed_by == {"s3": {"AKIAPROFILE"}}


def test_a_role_of_a_profile(
    s3_endpoint: str, bucket: str, requests: Requests, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(
        f"[profile base]\naws_access_key_id = AKIABASE\naws_secret_access_key = x\n"
        f"[profile tokens]\nrole_arn = {ROLE}\nsource_profile = base\n"
        f"endpoint_url = {s3_endpoint}\n"
    )
    use(Storage({"s3": {"profile": "tokens"}}), bucket)
    assert requests.signed_by["sts"] == {"AKIABASE"}
    (of_role,) = requests.signed_by["s3"]
    assert of_role.startswith("ASIA")


def test_a_role_by_web_identity(
    s3_endpoint: str,
    bucket: str,
    requests: Requests,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a pod on Kubernetes gets it."""
    (tmp_path / "token").write_text("a.web.token")
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    use(Storage(), bucket)
    assert requests.signed_by["any"] == {"nobody"}  # that request is not signed
    (of_role,) = requests.signed_by["s3"]
    assert of_role.startswith("ASIA")


def test_nobody(s3_endpoint: str, bucket: str, s3: Storage, requests: Requests) -> None:
    with_client(s3_endpoint, "put_bucket_acl", Bucket=bucket[5:], ACL="public-read")
    s3.write(f"{bucket}/a", b"public")
    with_client(s3_endpoint, "put_object_acl", Bucket=bucket[5:], Key="a", ACL="public-read")
    requests.signed_by.clear()
    anonymous = Storage({"s3": {"anon": True, "endpoint_url": s3_endpoint}})
    assert anonymous.read(f"{bucket}/a") == b"public"
    assert requests.signed_by == {"any": {"nobody"}}


def test_what_is_missing_is_named(s3_endpoint: str, bucket: str) -> None:
    with pytest.raises(SetupError, match="no credentials were found; set them in"):
        Storage({"s3": {"endpoint_url": s3_endpoint}}).read(f"{bucket}/a")
    with pytest.raises(SetupError, match=r"profile \(absent\) could not be found; check the job's"):
        Storage({"s3": {"profile": "absent", "endpoint_url": s3_endpoint}}).read(f"{bucket}/a")
    with pytest.raises(SetupError, match="Invalid endpoint: nonsense; check the URL"):
        Storage({"s3": {"key": "AKIA", "secret": "x", "endpoint_url": "nonsense"}}).read("s3://b/a")
    with pytest.raises(SetupError, match="unexpected keyword argument 'endpoint'"):
        Storage({"s3": {"endpoint": s3_endpoint}}).read(f"{bucket}/a")


SECRETS = {
    "key": "AKIASESAMEKEY",
    "secret": "sesame-secret",
    "token": "sesame/session+token==",
    "password": "sesame-password",
    "number": "918273645",
    "signature": "sesamesignature",
}


@pytest.fixture
def pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    monkeypatch.setenv("SESAME", SECRETS["secret"])
    return CommandLine(tmp_path, capsys, monkeypatch)


NESTED = {
    "client_kwargs": {
        "aws_access_key_id": SECRETS["key"],
        "aws_secret_access_key": "${SESAME}",
        "aws_session_token": SECRETS["token"],
    }
}


def run(pipeline: CommandLine, job: dict[str, Any]) -> tuple[int, str]:
    (pipeline.folder / "job.yaml").write_text(json.dumps(job))
    code = pipeline("run", "job.yaml", "--engine", "inline")
    said = pipeline.out + pipeline.err
    assert "Traceback" not in said
    assert [secret for secret in SECRETS.values() if secret in said] == []
    return code, said


def test_no_credential_is_written(
    s3: Storage,
    s3_endpoint: str,
    bucket: str,
    pipeline: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text_job.upload(s3, f"{bucket}/in")
    monkeypatch.setenv("CORPUS", f"{bucket}/in")
    job = text_job.settings(f"{bucket}/out", {**NESTED, "endpoint_url": s3_endpoint})
    code, _ = run(pipeline, {**job, "run": {"max_bad_samples": 1, "keep_bad_bytes": True}})
    assert code == 0
    written = {entry.uri.removeprefix(f"{bucket}/out/"): entry.uri for entry in s3.walk(bucket)}
    for name in ("manifest.json", "report.json", "_job.json", "_plan.jsonl"):
        assert name in written
    assert any(name.startswith("_ledger/") for name in written)
    assert any(name.startswith("quarantine/") for name in written)
    for uri in written.values():
        content = s3.read(uri)
        assert [secret for secret in SECRETS.values() if secret.encode() in content] == []


FAILING: dict[str, tuple[dict[str, Any], Fault | None, int]] = {
    "a store that is away, with a password in its URL": (
        {**NESTED, "endpoint_url": f"http://me:{SECRETS['password']}@127.0.0.1:9"},
        None,
        6,
    ),
    "a store that echoes what it was given": (
        NESTED,
        Fault(refuse(403, "InvalidAccessKeyId", " ".join([*SECRETS.values()][:3]))),
        3,
    ),
    "a store that does so for now": (
        {"key": SECRETS["key"], "secret": "${SESAME}", "token": SECRETS["token"]},
        Fault(refuse(500, "InternalError", "http://me:sesame-password@h " + SECRETS["token"])),
        6,
    ),
    "an option that is not one": ({**NESTED, "secret_": SECRETS["secret"]}, None, 3),
    "a password that is a number": (
        {"key": SECRETS["key"], "secret": int(SECRETS["number"])},
        Fault(refuse(403, "SignatureDoesNotMatch", SECRETS["number"])),
        3,
    ),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", FAILING)
def test_no_credential_is_in_an_error(
    name: str,
    s3: Storage,
    s3_server: S3Server,
    bucket: str,
    pipeline: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options, fault, exit_code = FAILING[name]
    text_job.upload(s3, f"{bucket}/in")
    monkeypatch.setenv("CORPUS", f"{bucket}/in")
    job = text_job.settings(f"{bucket}/out", {"endpoint_url": s3_server.endpoint, **options})
    with s3_server.disturbed(fault or Fault(refuse(500, "Unused"), times=0)):
        code, said = run(pipeline, job)
    assert code == exit_code, said


@pytest.mark.usefixtures("quick")
def test_a_signature_in_a_url_shows_nowhere(
    bucket: str,
    s3_endpoint: str,
    pipeline: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not in the error of a refused request, whose text holds the URL."""
    monkeypatch.setenv("SIGNATURE", SECRETS["signature"])
    query = "X-Amz-Signature=${SIGNATURE}&X-Amz-Security-Token=${SESAME}"
    urls = f"{s3_endpoint}/{bucket[5:]}/absent.parquet?{query}".replace(
        "http://", "http://me:${SESAME}@"
    )
    job = text_job.settings(str(tmp_path / "out"))
    job["source"]["urls"] = urls
    code, said = run(pipeline, job)
    assert code != 0
    assert "absent.parquet" in said
