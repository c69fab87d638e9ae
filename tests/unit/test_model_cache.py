"""Model files: fetched once, never half, never others than the driver found."""

import hashlib
import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import huggingface_hub
import pytest
from huggingface_hub.errors import RemoteEntryNotFoundError

from operators.errors import SetupError
from operators.model_files import DirectFiles, LocalFile, ModelFile
from operators.text.tokenizer_file import read_tokenizer_file
from operators.weights import Checkpoint
from pipeline import model_cache
from pipeline.errors import SpecError, TransientError
from pipeline.model_cache import JobModelFiles, KnownFile, NodeCache
from pipeline.storage import Entry, Storage
from tests.corpus import ROOT, environment

WEIGHTS = b"0123456789" * 1000
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
URL = "store://models/mill"
ON_STORE = ModelFile("url", URL, "model.safetensors")
OTHER_COMMIT, COMMIT = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeCache:
    """The node's cache, in a folder of the test's own."""
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_cache, "CHUNK_BYTES", 4096)
    return NodeCache()


class Store(Storage):
    """An object store in memory that counts what is read."""

    def __init__(self, version: str = "v1") -> None:
        super().__init__()
        self.objects = {f"{URL}/model.safetensors": WEIGHTS}
        self.version = version
        self.reads = 0

    def stat(self, uri: str) -> Entry | None:
        data = self.objects.get(uri)
        return None if data is None else Entry(uri, len(data), self.version)

    def open_read(self, uri: str, *, read_ahead: bool = True) -> BinaryIO:
        self.reads += 1
        return io.BytesIO(self.objects[uri])


class NoStore(Store):
    """What a worker has that cannot reach the store."""

    def stat(self, uri: str) -> Entry | None:
        raise TransientError(f"{uri}: no route to host")


def fetched(files: JobModelFiles, file: ModelFile) -> bytes:
    found = files.fetch(file)
    assert found is not None
    return found.path.read_bytes()


def left_over(tmp_path: Path) -> list[str]:
    """Return what is in the cache and counts, or lies around."""
    folders = [tmp_path / "cache" / name for name in ("files", "urls", "partial")]
    return [path.name for folder in folders for path in folder.rglob("*") if path.is_file()]


# --- on the driver -------------------------------------------------------------------------------


def test_a_url_is_read_once_for_all_jobs_of_a_node() -> None:
    store = Store()
    first = JobModelFiles(store)
    identity = first.identify(ON_STORE)
    assert identity is not None
    assert (identity.sha256, identity.commit) == (DIGEST, None)
    for files in (first, JobModelFiles(store)):
        assert fetched(files, ON_STORE) == WEIGHTS
    assert store.reads == 1


def test_a_new_version_of_an_object_is_read_again() -> None:
    store = Store()
    assert fetched(JobModelFiles(store), ON_STORE) == WEIGHTS
    store.objects[f"{URL}/model.safetensors"] = WEIGHTS[::-1]
    store.version = "v2"
    assert fetched(JobModelFiles(store), ON_STORE) == WEIGHTS[::-1]


def test_an_object_that_has_no_version_is_read_for_every_job() -> None:
    store = Store(version="")
    for expected in (WEIGHTS, WEIGHTS[::-1]):
        store.objects[f"{URL}/model.safetensors"] = expected
        files = JobModelFiles(store)
        assert [fetched(files, ON_STORE) for _ in range(2)] == [expected] * 2
    assert store.reads == 2


def test_an_object_that_changes_while_it_is_read_is_not_kept(tmp_path: Path) -> None:
    class Replaced(Store):
        def open_read(self, uri: str, *, read_ahead: bool = True) -> BinaryIO:
            self.version = "v2"
            return super().open_read(uri)

    class Truncated(Store):
        def open_read(self, uri: str, *, read_ahead: bool = True) -> BinaryIO:
            return io.BytesIO(WEIGHTS[:-1])

    for store in (Replaced(), Truncated()):
        with pytest.raises(TransientError, match=r"mill/model\.safetensors: changed while"):
            JobModelFiles(store).fetch(ON_STORE)
    assert left_over(tmp_path) == []


def test_variables_stand_for_urls_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    files = JobModelFiles(Store())
    with pytest.raises(SpecError, match="environment variable MODEL is not set"):
        files.kind_of("${MODEL}")
    for place, kind in ((URL, "url"), (str(tmp_path), "disk")):
        monkeypatch.setenv("MODEL", place)
        files = JobModelFiles(Store())
        assert files.kind_of("${MODEL}") == kind
        assert fetched(files, ModelFile(kind, "${MODEL}", "model.safetensors")) == WEIGHTS


@pytest.mark.parametrize(
    "url", ["https://me:sesame@host/model", "https://host/model?token=sesame", "s3://a:sesame@b/c"]
)
def test_credentials_in_a_url_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(SetupError, match=r"://\*\*\*: the URL of a model holds") as caught:
        Checkpoint(url, revision=None, files=JobModelFiles(Store()), where="op", extra="x")
    assert "sesame" not in str(caught.value)


def test_without_a_job_urls_say_that_they_need_one() -> None:
    files = DirectFiles()
    expected = "a URL, which only a job can read; run it as part of a job, or copy"
    checkpoint = Checkpoint(URL, revision=None, files=files, where="op", extra="x")
    with pytest.raises(SetupError, match=f"^op: {URL}: {expected}"):
        checkpoint.identity()
    with pytest.raises(SetupError, match=expected):
        read_tokenizer_file(f"{URL}/tokenizer.json", "main", files)


def test_a_checkpoint_has_one_identity_in_a_folder_and_at_a_url(tmp_path: Path) -> None:
    store = Store()
    store.objects[f"{URL}/config.json"] = b'{"dim": 3}'
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(store.objects[f"{URL}/{name}"])
    at_url, in_folder, by_file = (
        Checkpoint(place, revision=None, files=JobModelFiles(store), where="op", extra="x")
        for place in (URL, str(tmp_path), f"{URL}/model.safetensors")
    )
    assert at_url.identity() == in_folder.identity() == by_file.identity()
    assert at_url.config() == in_folder.config() == by_file.config() == {"dim": 3}
    assert at_url.is_pinned
    with pytest.raises(SetupError, match="is a URL, but revision='v1' is given"):
        Checkpoint(URL, revision="v1", files=JobModelFiles(store), where="op", extra="x")


def test_a_cache_that_cannot_be_written_says_which_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "file"))
    expected = r"model cache .*/file: Not a directory; .*another folder in TOKENMILL_CACHE"
    with pytest.raises(SetupError, match=expected):
        JobModelFiles(Store()).fetch(ON_STORE)


class Hub:
    """A hub whose default branch moves to another commit after the first question."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commit = COMMIT
        self.root = root
        self.digest = DIGEST
        for commit, dim in ((COMMIT, 1), (OTHER_COMMIT, 2)):
            folder = root / "snapshots" / commit
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(f'{{"dim": {dim}}}')
            (folder / "model.safetensors").write_bytes(WEIGHTS if dim == 1 else WEIGHTS[::-1])
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", self.head)

    def download(self, repo: str, name: str, *, revision: str | None) -> str:
        path = self.root / "snapshots" / (revision or self.commit) / name
        self.commit = OTHER_COMMIT
        if not path.exists():
            response = SimpleNamespace(headers={}, request=None)
            raise RemoteEntryNotFoundError("404", response=response)
        return str(path)

    def head(self, url: str) -> SimpleNamespace:
        commit = next((c for c in (COMMIT, OTHER_COMMIT) if c in url), self.commit)
        self.commit = OTHER_COMMIT
        return SimpleNamespace(commit_hash=commit, etag=self.digest)


@pytest.mark.parametrize("first", ["config", "identity"])
def test_all_files_of_a_repository_are_of_one_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    Hub(tmp_path, monkeypatch)
    files = JobModelFiles(Store())
    checkpoint = Checkpoint("mill/grain", revision=None, files=files, where="op", extra="x")
    getattr(checkpoint, first)()
    assert checkpoint.config() == {"dim": 1}
    assert checkpoint.identity()["revision"] == COMMIT
    assert checkpoint.weight_path().read_bytes() == WEIGHTS


def test_a_download_must_have_the_digest_that_the_hub_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path, monkeypatch)
    hub.digest = "cd" * 32
    files = JobModelFiles(Store())
    file = ModelFile("hub", "mill/grain", "model.safetensors")
    assert files.identify(file) is not None
    with pytest.raises(SetupError, match=f"has sha256 {DIGEST[:12]} now, .* cdcdcdcdcdcd"):
        files.fetch_all()


# --- from the driver to the workers ---------------------------------------------------------------


def in_pieces(data: bytes) -> Iterator[bytes]:
    yield from (data[at : at + 999] for at in range(0, len(data), 999))


class Driver:
    """Gives files as an engine does, and counts."""

    def __init__(self, data: bytes = WEIGHTS) -> None:
        self.data = data
        self.asked: list[str] = []

    def pull(self, sha256: str) -> Iterator[bytes]:
        self.asked.append(sha256)
        return in_pieces(self.data)


@pytest.fixture
def on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another node's cache folder, and another current folder."""
    folder = tmp_path / "another"
    folder.mkdir()
    monkeypatch.setenv("TOKENMILL_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    return folder


def test_workers_take_what_the_driver_found_and_ask_no_store(
    request: pytest.FixtureRequest,
) -> None:
    files = JobModelFiles(Store())
    absent = replace(ON_STORE, name="config.json")
    assert files.fetch(absent) is None
    files.identify(ON_STORE)
    files.fetch_all()
    request.getfixturevalue("on_another_machine")
    driver = Driver()
    for _ in range(2):  # the second worker of the node finds what the first received
        worker = JobModelFiles(NoStore(), files.known(), driver.pull)
        assert worker.kind_of(URL) == "url"
        assert worker.identify(ON_STORE) == files.identify(ON_STORE)
        assert worker.fetch(absent) is None
        assert fetched(worker, ON_STORE) == WEIGHTS
    assert driver.asked == [DIGEST]


def test_a_folder_of_the_driver_alone_reaches_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(WEIGHTS)
    monkeypatch.chdir(tmp_path)
    files = JobModelFiles(Store())
    file = ModelFile(files.kind_of("weights"), "weights", "model.safetensors")
    files.identify(file)
    request.getfixturevalue("on_another_machine")

    beside = JobModelFiles(Store(), files.known(), Driver().pull)
    assert beside.fetch(file) == LocalFile(tmp_path / "weights" / "model.safetensors")

    # Elsewhere something else lies at that path.
    (tmp_path / "weights" / "model.safetensors").write_bytes(WEIGHTS[::-1])
    driver = Driver()
    elsewhere = JobModelFiles(Store(), files.known(), driver.pull)
    assert elsewhere.kind_of("weights") == "disk"
    assert fetched(elsewhere, file) == WEIGHTS
    assert driver.asked == [DIGEST]


def test_other_bytes_than_the_driver_found_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    file = ModelFile("disk", str(tmp_path), "model.safetensors")
    known = {file: KnownFile(DIGEST, path=path)}
    for data in (b"other", WEIGHTS[:-1]):
        path.write_bytes(data)
        found = hashlib.sha256(data).hexdigest()[:12]
        with pytest.raises(
            SetupError, match=f"sha256 {found} now, the run began with {DIGEST[:12]}"
        ):
            JobModelFiles(Store(), known).fetch(file)
        with pytest.raises(SetupError, match=f"sha256 {found} was received, .*{DIGEST[:12]}"):
            JobModelFiles(Store(), known, Driver(data).pull).fetch(file)
        assert left_over(tmp_path) == []
    path.unlink()
    with pytest.raises(SetupError, match=f"is gone, the run began with {DIGEST[:12]}"):
        JobModelFiles(Store(), known).fetch(file)
    assert fetched(JobModelFiles(Store(), known, Driver().pull), file) == WEIGHTS


# --- several processes ----------------------------------------------------------------------------

DOWNLOAD = """
import sys, time
from pathlib import Path
from pipeline.model_cache import NodeCache
from pipeline.storage import Entry

name, folder = sys.argv[1], Path(sys.argv[2])

def read():
    (folder / f"reads-{name}").touch()
    yield b"0123456789" * 500
    while not (folder / "go").exists():
        time.sleep(0.01)
    yield b"0123456789" * 500

(folder / f"asks-{name}").touch()
entry = Entry("store://models/mill/model.safetensors", 10_000, "v1")
sha256, path = NodeCache().download(entry, read)
print(sha256, path.read_bytes() == b"0123456789" * 1000)
"""


def start(name: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, name, str(folder)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.01)


def test_of_two_processes_one_downloads(tmp_path: Path) -> None:
    with start("a", tmp_path) as a, start("b", tmp_path) as b:
        wait_for(tmp_path / "asks-a")
        wait_for(tmp_path / "asks-b")
        time.sleep(0.5)  # for the second to do what it should not
        reading = [path.name for path in tmp_path.glob("reads-*")]
        (tmp_path / "go").touch()
        said = [process.communicate(timeout=60)[0] for process in (a, b)]
    assert said == [f"{DIGEST} True\n"] * 2
    assert len(reading) == 1
    assert [path.name for path in tmp_path.glob("reads-*")] == reading


def test_a_download_that_was_killed_leaves_nothing_that_counts(
    tmp_path: Path, cache: NodeCache
) -> None:
    with start("a", tmp_path) as process:
        wait_for(tmp_path / "reads-a")
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert cache.find(DIGEST, "model.safetensors") is None
    assert (tmp_path / "cache" / "partial").is_dir()
    store = Store()
    assert fetched(JobModelFiles(store), ON_STORE) == WEIGHTS
    assert store.reads == 1
    assert not list((tmp_path / "cache" / "partial").iterdir())


def test_of_many_threads_that_receive_one_pulls(cache: NodeCache) -> None:
    driver = Driver()
    paths: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: paths.append(cache.receive(DIGEST, "w", lambda: driver.pull(DIGEST)))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert len(paths) == 8
    assert driver.asked == [DIGEST]
