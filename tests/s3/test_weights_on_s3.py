"""Weights on S3: the ids of the same weights in a folder, and one download whatever the nodes."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from operators import registry
from operators.errors import SetupError
from operators.image_tokenizers.flextok import FlexTok, FlexTokConfig
from operators.model_files import ModelFile
from operators.text.text_tokenizer import TextTokenizer, TextTokenizerConfig
from pipeline.model_cache import CHUNK_BYTES, JobModelFiles
from pipeline.storage import Storage
from pipeline.verify import verify
from tests.corpus import (
    ROOT,
    data_files,
    environment,
    manifest,
    picture_job,
    run_inline,
    write_corpus,
)
from tests.flextok_checkpoint import GOLDEN, golden, golden_weights, write_checkpoint
from tests.s3.server import (
    Disturbance,
    Fault,
    S3Server,
    cut_body,
    reset_in_body,
    short_body,
)

TOKENIZER = GOLDEN.parent / "text" / "bytelevel_bpe.json"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The golden model, padded by a tensor of training to more than two pieces."""
    padding = {"flow_matching_noise_module.x": torch.arange(2.2 * CHUNK_BYTES / 4)}
    return write_checkpoint(tmp_path_factory.mktemp("flextok"), weights=golden_weights() | padding)


def upload(folder: str, url: str, s3: Storage) -> str:
    for path in Path(folder).iterdir():
        s3.write(f"{url}/{path.name}", path.read_bytes())
    return url


def build(weights: str, storage: Storage) -> FlexTok:
    config = FlexTokConfig(weights=weights, device="cpu")
    op = registry.build(config, JobModelFiles(storage))
    assert isinstance(op, FlexTok)
    return op


def job(weights: str, endpoint: str, folder: Path, output: str) -> dict[str, Any]:
    operators = [
        {"name": "decode_image"},
        {"name": "resize", "size": 64},
        {"name": "center_crop", "size": 64},
        {"name": "flextok", "weights": weights, "device": "cpu"},
    ]
    options = {"key": "AKIAEXAMPLE", "secret": "sesame", "endpoint_url": endpoint}
    return picture_job(
        write_corpus(folder / "in", tars=3, per_tar=4),
        folder / output,
        operators=operators,
        batch_size=4,
        shards={"fields": ["tokens"]},
        storage={"s3": options},
    )


def bytes_read(reads: Sequence[tuple[str, str]]) -> Counter[str]:
    """Return how many bytes of each object were asked for."""
    total = Counter[str]()
    for path, asked in reads:
        first, last = asked.removeprefix("bytes=").split("-")
        total[path] += int(last) + 1 - int(first)
    return total


def test_ids_of_weights_on_s3(folder: str, s3: Storage, bucket: str) -> None:
    op = build(upload(folder, f"{bucket}/flextok", s3), s3)
    op.setup("cpu")
    assert torch.equal(op.encode(golden("inputs")["images"]), golden("outputs")["tokens"])
    assert op.identity() == build(folder, s3).identity()


@pytest.mark.parametrize("disturb", [reset_in_body, cut_body, short_body])
def test_a_download_that_breaks_off(
    disturb: Disturbance, s3: Storage, bucket: str, s3_server: S3Server
) -> None:
    """It is gone on with, or begun anew; what is kept is whole."""
    data = b"".join(b"%08d" % n for n in range(CHUNK_BYTES // 4))
    s3.write(f"{bucket}/flextok/model.safetensors", data)
    file = ModelFile("url", f"{bucket}/flextok", "model.safetensors")
    with s3_server.disturbed(Fault(disturb, methods=["GET"], after=1, times=1)) as fault:
        for files in (JobModelFiles(s3), JobModelFiles(s3)):
            found = files.fetch(file)
            assert found is not None
            assert found.path.read_bytes() == data
    assert fault.hits == 1


def test_what_is_not_there_is_named(s3: Storage, bucket: str) -> None:
    with pytest.raises(SetupError, match=rf"flextok: {bucket}/none has no model\.safetensors"):
        build(f"{bucket}/none", s3).identity()
    tokenizer = f"{bucket}/none/tokenizer.json"
    op = registry.build(TextTokenizerConfig(tokenizer=tokenizer), JobModelFiles(s3))
    with pytest.raises(SetupError, match=f"tokenizer '{tokenizer}': no such file"):
        op.identity()


def test_a_tokenizer_on_s3(s3: Storage, bucket: str) -> None:
    s3.write(f"{bucket}/tokenizer.json", TOKENIZER.read_bytes())
    config = TextTokenizerConfig(tokenizer=f"{bucket}/tokenizer.json")
    op = registry.build(config, JobModelFiles(s3))
    assert op.identity() == TextTokenizer(TextTokenizerConfig(tokenizer=str(TOKENIZER))).identity()


def test_a_data_set_differs_in_the_name_of_its_weights_alone(
    folder: str, s3: Storage, bucket: str, s3_endpoint: str, tmp_path: Path
) -> None:
    url = upload(folder, f"{bucket}/flextok", s3)
    run_inline(job(folder, s3_endpoint, tmp_path, "local"))
    run_inline(job(url, s3_endpoint, tmp_path, "remote"))
    local, remote = (manifest(tmp_path / name) for name in ("local", "remote"))
    assert local.pop("fingerprint") != remote.pop("fingerprint")
    assert local.pop("index_sha256") != remote.pop("index_sha256")  # shards hold the fingerprint
    assert json.loads(json.dumps(local).replace(folder, url)) == remote
    assert remote["golden"]
    assert b"sesame" not in b"".join(data_files(tmp_path / "remote").values())
    findings = list(verify(str(tmp_path / "remote"), s3))
    assert [found for found in findings if found.problem or found.skipped] == []
    assert any(found.check.startswith("golden sample") for found in findings)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_cluster_downloads_once(
    folder: str, s3: Storage, bucket: str, s3_server: S3Server, tmp_path: Path
) -> None:
    """Two nodes, each with a cache of its own, beside the driver's."""
    url = upload(folder, f"{bucket}/flextok", s3)
    on_cluster = job(url, s3_server.endpoint, tmp_path, "cluster")
    before = len(s3_server.reads)
    (tmp_path / "job.json").write_text(json.dumps(on_cluster))
    done = subprocess.run(
        [sys.executable, "-m", "tests.s3.two_nodes", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    read = bytes_read(s3_server.reads[before:])
    for path in Path(folder).iterdir():
        assert read.pop(f"/{bucket.removeprefix('s3://')}/flextok/{path.name}") == len(
            path.read_bytes()
        )
        copies = list(tmp_path.glob(f"cache-*/files/*/{path.name}"))
        assert len(copies) == 3
        assert {copy.read_bytes() for copy in copies} == {path.read_bytes()}
    assert not read
    run_inline({**on_cluster, "output": str(tmp_path / "inline")})
    assert data_files(tmp_path / "cluster") == data_files(tmp_path / "inline")
