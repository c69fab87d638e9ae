"""Input on S3 that changes after the plan: refused, and a resume once it is back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import runner
from pipeline.errors import IntegrityError, TokenmillError
from pipeline.storage import NotFoundError, Storage
from tests.corpus import AtBegin
from tests.s3 import text_job


def other_size(storage: Storage, uri: str) -> None:
    storage.write(uri, storage.read(uri) + b"\n")


def other_bytes(storage: Storage, uri: str) -> None:
    data = storage.read(uri)
    storage.write(uri, data.replace(b"text", b"TEXT"))
    assert len(storage.read(uri)) == len(data)


def vanished(storage: Storage, uri: str) -> None:
    storage.remove(uri)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (other_size, IntegrityError, "the object is not the one that was planned"),
        (other_bytes, IntegrityError, "the object is not the one that was planned"),
        (vanished, NotFoundError, "no such object, the plan has one of"),
    ],
)
def test_input_that_changes_after_the_plan(
    change: Callable[[Storage, str], None],
    error: type[TokenmillError],
    says: str,
    s3: Storage,
    s3_endpoint: str,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CORPUS", str(tmp_path / "in"))
    expected = text_job.undisturbed(tmp_path)
    text_job.upload(s3, f"{bucket}/in")
    monkeypatch.setenv("CORPUS", f"{bucket}/in")
    options = {"key": "AKIAEXAMPLE", "secret": "any", "endpoint_url": s3_endpoint}
    job = text_job.job(f"{bucket}/out", options)
    victim = f"{bucket}/in/part-1.parquet"
    was = s3.read(victim)

    with pytest.raises(error, match=f"{victim}: {says}") as found:
        runner.run(
            runner.prepare(job), engine="inline", listener=AtBegin(lambda: change(s3, victim))
        )
    assert found.value.exit_code == 5
    left = text_job.data_of(f"{bucket}/out", s3)
    assert "manifest.json" not in left
    assert {name: expected[name] for name in left} == left

    s3.write(victim, was)
    text_job.run(job)
    assert text_job.data_of(f"{bucket}/out", s3) == expected
