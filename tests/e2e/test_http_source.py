"""A source behind http: brace expansion, sizes, ranges, and a missing file."""

import base64
import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SetupError
from pipeline.sources import ParquetConfig, build_source
from pipeline.storage import Storage
from tests.corpus import data_files, run_inline, text_job


class WithoutRanges(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Keep the test's output clean."""


class WithRanges(WithoutRanges):
    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(content[first : last + 1])


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    for i in range(3):
        texts = [f"document {i}.{n}" for n in range(50)]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"part-{i}.parquet")
    handler = functools.partial(getattr(request, "param", WithRanges), directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def source(urls: list[str]) -> Any:
    config = ParquetConfig.model_validate({"urls": urls, "fields": {"text": "text"}})
    return build_source(config, Storage(), urls)


def read_texts(site: str) -> list[str]:
    found = source([f"{site}/part-{{0..2}}.parquet"])
    return [
        text
        for partition in found.list_partitions()
        for block in found.read(partition, 16)
        for text in block.columns["text"].to_pylist()
    ]


def test_reads_over_http(site: str) -> None:
    assert read_texts(site) == [f"document {i}.{n}" for i in range(3) for n in range(50)]


def test_missing_file_is_named(site: str) -> None:
    with pytest.raises(SetupError, match=r"part-3\.parquet"):
        list(source([f"{site}/part-{{0..3}}.parquet"]).list_partitions())


class WithPassword(WithRanges):
    """Answers only who knows user, password and signature."""

    def do_HEAD(self) -> None:
        if self._is_known():
            super().do_HEAD()

    def do_GET(self) -> None:
        if self._is_known():
            super().do_GET()

    def _is_known(self) -> bool:
        user = base64.b64encode(b"me:sesame").decode()
        known = self.headers.get("Authorization") == f"Basic {user}" and "sig=sesame" in self.path
        if not known:
            self.send_error(403)
        return known


@pytest.mark.parametrize("site", [WithPassword], indirect=True)
def test_a_password_in_a_url_is_used_and_written_nowhere(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SITE", site.replace("http://", "http://me:sesame@"))
    monkeypatch.setenv("SIGNATURE", "sesame")
    urls = [f"${{SITE}}/part-{i}.parquet?sig=${{SIGNATURE}}" for i in range(3)]
    output = tmp_path / "out"
    parquet = {"type": "parquet", "urls": urls, "fields": ["text"], "partition_bytes": 1}
    job = text_job("", output, source=parquet)
    assert run_inline(job).samples == 150
    before = data_files(output)
    (output / "manifest.json").unlink()
    for segment in (output / "_ledger").iterdir():
        segment.unlink()
    assert run_inline(job).num_resumed == 0  # what the plan left out came from the job
    assert data_files(output) == before
    for path in output.rglob("*"):
        assert path.is_dir() or b"sesame" not in path.read_bytes(), path


@pytest.mark.parametrize("site", [WithoutRanges], indirect=True)
def test_a_server_without_ranges_is_named_as_the_cause(site: str) -> None:
    with pytest.raises(SetupError, match=r"part-0\.parquet: .* does not answer range requests"):
        read_texts(site)
