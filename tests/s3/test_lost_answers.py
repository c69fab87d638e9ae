"""What Storage does when a store fails in the middle of something: nothing half, nothing twice."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest

from pipeline.errors import AlreadyCommittedError, IntegrityError, SetupError, TransientError
from pipeline.storage import S3_OPTIONS, NotFoundError, Storage
from tests.s3.conftest import with_client
from tests.s3.server import (
    App,
    Disturbance,
    Fault,
    S3Server,
    cut_body,
    refuse,
    reset_after,
    reset_before,
    reset_in_body,
    short_body,
    without_conditions,
    without_metadata,
)

pytestmark = pytest.mark.usefixtures("quick")

_numbers = count()
PART = 5 << 20
"""S3's smallest."""


@pytest.fixture
def storage(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Storage with a client of its own, whose retries no other test has used up."""
    monkeypatch.setattr("pipeline.storage.PART_BYTES", PART)
    key = f"AKIALOST{next(_numbers)}"
    return Storage({"s3": {"key": key, "secret": "any", "endpoint_url": s3_endpoint}})


@pytest.fixture
def uploads(s3_endpoint: str, bucket: str) -> Callable[[], list[str]]:
    """Return the keys of uploads that were begun and neither finished nor given up."""

    def keys() -> list[str]:
        found = with_client(s3_endpoint, "list_multipart_uploads", Bucket=bucket[5:])
        return [upload["Key"] for upload in found.get("Uploads", [])]

    return keys


def create(storage: Storage, uri: str, data: bytes) -> bool:
    try:
        storage.create_exclusive(uri, data)
    except AlreadyCommittedError:
        return False
    return True


@pytest.mark.parametrize("lose", [reset_after, without_metadata])
def test_a_lost_answer_is_no_strangers_commit(
    lose: Disturbance, storage: Storage, s3: Storage, bucket: str, s3_server: S3Server
) -> None:
    with s3_server.disturbed(Fault(lose, times=1, methods=["PUT"])) as fault:
        storage.create_exclusive(f"{bucket}/a", b"mine")
    assert fault.hits == 1
    assert s3.read(f"{bucket}/a") == b"mine"


def test_nor_when_every_request_that_botocore_sends_is_answered_so(
    storage: Storage, s3: Storage, bucket: str, s3_server: S3Server
) -> None:
    attempts = S3_OPTIONS["config_kwargs"]["retries"]["total_max_attempts"]
    with s3_server.disturbed(Fault(reset_after, times=attempts, methods=["PUT"])) as fault:
        storage.create_exclusive(f"{bucket}/a", b"mine")
    assert fault.hits == attempts
    assert s3.read(f"{bucket}/a") == b"mine"


def test_a_strangers_commit_behind_a_lost_answer_is_told(
    storage: Storage, s3: Storage, bucket: str, s3_server: S3Server
) -> None:
    s3.write(f"{bucket}/a", b"theirs")
    with s3_server.disturbed(Fault(reset_after, times=1, methods=["PUT"])) as fault:
        assert not create(storage, f"{bucket}/a", b"mine")
    assert fault.hits == 1
    assert s3.read(f"{bucket}/a") == b"theirs"


def test_the_same_bytes_of_another_writer_are_still_anothers(s3: Storage, bucket: str) -> None:
    assert create(s3, f"{bucket}/a", b"same")
    assert not create(s3, f"{bucket}/a", b"same")


def test_of_racers_whose_answers_are_lost_one_wins(
    s3_endpoint: str, s3: Storage, bucket: str, s3_server: S3Server
) -> None:
    names = [b"%d" % i for i in range(6)]
    storages = [
        Storage({"s3": {"key": f"AKIARACE{i}", "secret": "any", "endpoint_url": s3_endpoint}})
        for i in range(len(names))
    ]
    for attempt in range(3):
        winners: list[bytes] = []
        gate = threading.Barrier(len(names))

        def race(storage: Storage, name: bytes) -> None:
            gate.wait()  # noqa: B023 - the threads end within the iteration
            if create(storage, f"{bucket}/{attempt}", name):  # noqa: B023
                winners.append(name)  # noqa: B023

        threads = [
            threading.Thread(target=race, args=pair) for pair in zip(storages, names, strict=True)
        ]
        with s3_server.disturbed(Fault(reset_after, every=2, methods=["PUT"])):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert winners == [s3.read(f"{bucket}/{attempt}")]


def random_bytes(num_bytes: int) -> bytes:
    return np.random.default_rng(0).bytes(num_bytes)


def send(storage: Storage, uri: str, data: bytes, step: int = 1 << 20) -> None:
    with storage.open_write(uri) as file:
        for start in range(0, len(data), step):
            file.write(data[start : start + step])


UPLOAD_FAULTS = {
    "refused parts": Fault(refuse(503, "SlowDown"), every=2, methods=["PUT"]),
    "reset before parts": Fault(reset_before, every=2, methods=["PUT"]),
    "parts whose answer is lost": Fault(reset_after, every=2, methods=["PUT"]),
    "refused to begin and to complete": Fault(
        refuse(500, "InternalError"), every=2, methods=["POST"]
    ),
}


@pytest.mark.parametrize("name", UPLOAD_FAULTS)
def test_a_large_object_gets_through(
    name: str,
    storage: Storage,
    s3: Storage,
    bucket: str,
    s3_server: S3Server,
    uploads: Callable[[], list[str]],
) -> None:
    data = random_bytes(3 * PART + 12345)
    with s3_server.disturbed(replace(UPLOAD_FAULTS[name])) as fault:
        send(storage, f"{bucket}/a", data)
    assert fault.hits > 0
    assert s3.read(f"{bucket}/a") == data
    assert uploads() == []


def test_readers_see_the_old_object_until_the_new_one_is_whole(
    storage: Storage, s3: Storage, bucket: str, uploads: Callable[[], list[str]]
) -> None:
    data = random_bytes(3 * PART)
    s3.write(f"{bucket}/a", b"old")
    with storage.open_write(f"{bucket}/a") as file:
        file.write(data[: 2 * PART])
        file.write(data[2 * PART :])
        assert uploads() == ["a"]
        assert s3.read(f"{bucket}/a") == b"old"
    assert s3.read(f"{bucket}/a") == data


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(refuse(500, "InternalError"), after=1, methods=["PUT"]), TransientError),
        (Fault(reset_before, after=1, methods=["PUT"]), TransientError),
        (Fault(refuse(403, "AccessDenied"), after=2, methods=["PUT"]), SetupError),
        (Fault(refuse(500, "InternalError"), after=1, methods=["POST"]), TransientError),
        (Fault(refuse(400, "ExpiredToken"), after=1, methods=["POST"]), SetupError),
    ],
    ids=["part fails", "part is cut off", "part is forbidden", "end fails", "end is forbidden"],
)
def test_an_upload_that_fails_leaves_nothing(
    fault: Fault,
    error: type[Exception],
    storage: Storage,
    s3: Storage,
    bucket: str,
    s3_server: S3Server,
    uploads: Callable[[], list[str]],
) -> None:
    s3.write(f"{bucket}/a", b"old")
    with s3_server.disturbed(replace(fault)), pytest.raises(error, match=f"{bucket}/a: "):
        send(storage, f"{bucket}/a", random_bytes(3 * PART))
    assert s3.read(f"{bucket}/a") == b"old"
    assert uploads() == []


def test_an_error_of_the_writer_is_its_own_and_leaves_nothing(
    storage: Storage, bucket: str, uploads: Callable[[], list[str]]
) -> None:
    def write() -> None:
        with storage.open_write(f"{bucket}/a") as file:
            file.write(random_bytes(2 * PART))
            raise OSError("of another file")

    with pytest.raises(OSError, match=r"^of another file$"):
        write()
    assert storage.stat(f"{bucket}/a") is None
    assert uploads() == []


def test_a_lost_answer_at_the_end_of_an_upload_is_worth_another_attempt(
    storage: Storage,
    s3: Storage,
    bucket: str,
    s3_server: S3Server,
    uploads: Callable[[], list[str]],
) -> None:
    """The store has done it and knows the upload no more; S3 itself would say that it is done."""
    data = random_bytes(2 * PART)
    ends = count()

    def forget(app: App, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        gone = refuse(404, "NoSuchUpload", "The specified upload does not exist.")
        return (gone if next(ends) else reset_after)(app, environ, start_response)

    with (
        s3_server.disturbed(Fault(forget, methods=["POST", "DELETE"], matching="uploadId=")),
        pytest.raises(TransientError, match=f"{bucket}/a: the upload is gone"),
    ):
        send(storage, f"{bucket}/a", data)
    send(storage, f"{bucket}/a", data)
    assert s3.read(f"{bucket}/a") == data
    assert uploads() == []


def test_what_a_killed_writer_left_is_dropped(
    storage: Storage, s3_endpoint: str, bucket: str, uploads: Callable[[], list[str]]
) -> None:
    for key in ("out/shards/0.arrow", "out/shards/1.arrow", "outer/0.arrow"):
        with_client(s3_endpoint, "create_multipart_upload", Bucket=bucket[5:], Key=key)
    names = [f"{bucket}/out/shards/{number}.arrow" for number in range(2)]
    assert storage.drop_uploads(f"{bucket}/out", dry_run=True) == names
    assert len(uploads()) == 3
    assert storage.drop_uploads(f"{bucket}/out") == names
    assert uploads() == ["outer/0.arrow"]
    assert storage.drop_uploads(f"{bucket}/out") == []


@pytest.fixture(params=[reset_in_body, cut_body, short_body, reset_before])
def breaking(request: pytest.FixtureRequest, s3_server: S3Server) -> Iterator[Fault]:
    with s3_server.disturbed(Fault(request.param, every=2, methods=["GET"])) as fault:
        yield fault
    assert fault.hits > 0


@pytest.mark.parametrize("read_ahead", [True, False])
def test_a_broken_answer_is_asked_for_again(
    storage: Storage, s3: Storage, bucket: str, breaking: Fault, read_ahead: bool
) -> None:
    data = random_bytes(20 << 20)
    s3.write(f"{bucket}/a", data)
    with storage.open_read(f"{bucket}/a", read_ahead=read_ahead) as file:
        assert file.read(5) == data[:5]
        file.seek(3 << 20)
        assert file.read(2 << 20) == data[3 << 20 : 5 << 20]
        assert file.tell() == 5 << 20
        assert file.read() == data[5 << 20 :]
        assert file.read(1) == b""


def test_an_answer_that_always_breaks_off_is_told(
    storage: Storage, s3: Storage, bucket: str, s3_server: S3Server
) -> None:
    s3.write(f"{bucket}/a", bytes(1000))
    with (
        s3_server.disturbed(Fault(cut_body, methods=["GET"])) as fault,
        pytest.raises(TransientError, match=f"{bucket}/a: "),
    ):
        storage.read(f"{bucket}/a")
    assert fault.hits == 4


def test_an_object_replaced_while_it_is_read_is_refused(
    storage: Storage, s3: Storage, bucket: str
) -> None:
    uri = f"{bucket}/a"
    s3.write(uri, bytes(20 << 20))
    with storage.open_read(uri) as file:
        file.read(10)
        s3.write(uri, b"1" * (20 << 20))
        with pytest.raises(IntegrityError, match=f"{uri}: the object changed while it was read"):
            file.read()


def test_an_object_removed_while_it_is_read_is_missed(
    storage: Storage, s3: Storage, bucket: str
) -> None:
    s3.write(f"{bucket}/a", bytes(20 << 20))
    with storage.open_read(f"{bucket}/a") as file:
        file.read(10)
        s3.remove(f"{bucket}/a")
        with pytest.raises(NotFoundError, match=f"{bucket}/a: no such object"):
            file.read()


def test_a_store_that_ignores_conditions_is_refused(
    storage: Storage, s3: Storage, bucket: str, s3_server: S3Server
) -> None:
    storage.check_exclusive(f"{bucket}/out/_job.json")
    with (
        s3_server.disturbed(Fault(without_conditions)),
        pytest.raises(SetupError, match="the store does not support conditional writes"),
    ):
        storage.check_exclusive(f"{bucket}/out/_job.json")
    assert list(s3.walk(bucket)) == []


def test_the_check_holds_when_answers_are_lost(
    storage: Storage, s3: Storage, bucket: str, s3_server: S3Server
) -> None:
    with s3_server.disturbed(Fault(reset_after, every=2)) as fault:
        storage.check_exclusive(f"{bucket}/out/_job.json")
    assert fault.hits > 0
    assert list(s3.walk(bucket)) == []


@pytest.mark.parametrize("pattern", ["*", "*/*", "*/a*", "a*/*/*", "**/*", "**/a"])
def test_a_listing_is_whole_or_an_error(
    pattern: str, storage: Storage, s3: Storage, bucket: str, s3_server: S3Server
) -> None:
    """What a store does not list now is not a folder without objects."""
    for name in ("a", "a0/a", "a0/b/a", "a1/a", "a1/b/a"):
        s3.write(f"{bucket}/{name}", b"x")
    expected = s3.glob(f"{bucket}/{pattern}")
    assert expected
    listing = Fault(refuse(500, "InternalError"), times=8, matching="list-type=2")
    with s3_server.disturbed(listing) as fault:
        assert storage.glob(f"{bucket}/{pattern}") == expected
    assert fault.hits == 8
    for after in range(3):
        broken = Fault(refuse(500, "InternalError"), after=after, matching="list-type=2")
        with s3_server.disturbed(broken) as fault:
            try:
                assert storage.glob(f"{bucket}/{pattern}") == expected
            except TransientError:
                assert fault.hits > 0
            else:
                assert fault.hits == 0
    with (
        s3_server.disturbed(Fault(refuse(500, "InternalError"))),
        pytest.raises(TransientError),
    ):
        list(storage.walk(f"{bucket}/a0"))


def test_a_missing_bucket_is_named(storage: Storage) -> None:
    with pytest.raises(SetupError, match="s3://no-such-bucket-here/a: no such bucket"):
        storage.write("s3://no-such-bucket-here/a", b"")


@pytest.mark.parametrize("call", ["read", "stat", "open_read"])
@pytest.mark.parametrize("status", [400, 403])
def test_why_a_request_is_refused_is_asked_even_after_one_without_text(
    storage: Storage, s3: Storage, bucket: str, s3_server: S3Server, call: str, status: int
) -> None:
    s3.write(f"{bucket}/a", b"x")
    with (
        s3_server.disturbed(Fault(refuse(status, "ExpiredToken", "It has expired."))),
        pytest.raises(SetupError, match=r"have expired \(ExpiredToken: It has expired\.\)"),
    ):
        getattr(storage, call)(f"{bucket}/a")


def test_the_jobs_own_settings_win(
    s3_endpoint: str, bucket: str, s3_server: S3Server, s3: Storage
) -> None:
    """Two attempts of botocore, then ours: not six each."""
    s3.write(f"{bucket}/a", b"x")
    options: dict[str, Any] = {"key": "AKIAOWN", "secret": "any", "endpoint_url": s3_endpoint}
    config = {"retries": {"total_max_attempts": 2, "mode": "standard"}}
    storage = Storage({"s3": {**options, "config_kwargs": config}})
    with (
        s3_server.disturbed(Fault(refuse(500, "InternalError"), methods=["GET"])) as fault,
        pytest.raises(TransientError),
    ):
        storage.read(f"{bucket}/a")
    assert fault.hits == 2 * 4


def test_a_dead_connection_is_noticed(s3_endpoint: str, bucket: str, s3_server: S3Server) -> None:
    """A server that takes the request and never answers, with a short time for the test."""
    options: dict[str, Any] = {"key": "AKIADEAD", "secret": "any", "endpoint_url": s3_endpoint}
    config = {"read_timeout": 0.2, "retries": {"total_max_attempts": 2, "mode": "standard"}}
    storage = Storage({"s3": {**options, "config_kwargs": config}})
    answered = threading.Event()

    def never(app: Any, environ: Any, start_response: Any) -> Any:
        answered.wait(30)
        return app(environ, start_response)

    with s3_server.disturbed(Fault(never)), pytest.raises(TransientError, match="ReadTimeout"):
        storage.read(f"{bucket}/a")
    answered.set()
    assert S3_OPTIONS["config_kwargs"]["read_timeout"] <= 60
    assert S3_OPTIONS["config_kwargs"]["connect_timeout"] <= 60
