"""One job, many ways to run it, one data set: engines, workers, threads and chunks change no byte.

The pictures' job is the quick start's. The other one has a filter and bad samples in front of a
real device operator (a tiny FlexTok, on the CPU) that is called with batches of four.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.manifest import open_data_set
from tests.corpus import (
    data_files,
    manifest,
    picture_job,
    run_inline,
    samples,
    write_corpus,
    write_tar,
)
from tests.flextok_checkpoint import write_checkpoint
from tests.ray_runs import run_all

pytestmark = pytest.mark.timeout(240)

JobOf = Callable[..., dict[str, Any]]
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "ray, 1 worker": ({"chunk_size": 4}, 1),
    "ray, 2 workers, more threads than cores": ({"chunk_size": 5, "cpu_threads": 3}, 2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("same_bytes")


@pytest.fixture(scope="module")
def jobs(folder: Path) -> dict[str, JobOf]:
    """Return job name -> a function of (output, run settings) that gives the job."""
    urls = write_corpus(folder / "in")
    spoiled = samples(9, 13)
    spoiled[8] = (spoiled[8][0], spoiled[8][1][:200])
    spoiled[16] = (spoiled[16][0], b"no image")
    write_tar(folder / "in" / "05.tar", spoiled)
    checkpoint = write_checkpoint(folder / "checkpoint")

    def pictures(output: str, **run: Any) -> dict[str, Any]:
        settings = {"max_bad_samples": 2, "chunk_size": 4, **run}
        return picture_job(urls, folder / "pictures" / output, run=settings)

    def device(output: str, **run: Any) -> dict[str, Any]:
        job = pictures(output, **run)
        bytes_of_caption, to_sequence = job["operators"][-2:]
        lengths = {
            "name": "length_filter",
            "inputs": {"tokens": "caption_tokens"},
            "max_length": 30,
        }
        flextok = {
            "name": "flextok",
            "weights": str(checkpoint),
            "device": "cpu",
            "outputs": {"tokens": "image_tokens"},
        }
        return {
            **job,
            "output": str(folder / "device" / output),
            "operators": [
                bytes_of_caption,
                lengths,
                *job["operators"][:3],
                flextok,
                to_sequence,
            ],
            "batch_size": 4,
        }

    return {"pictures": pictures, "device": device}


@pytest.fixture(scope="module")
def ray_runs(folder: Path, jobs: dict[str, JobOf]) -> Path:
    """Run both jobs in every way of Ray, on one cluster."""
    runs = [
        (job(f"ray-{workers}", **settings), workers)
        for job in jobs.values()
        for settings, workers in WAYS.values()
    ]
    outcomes = run_all(folder, runs)
    assert [outcome["exit_code"] for outcome in outcomes] == [0] * len(runs), outcomes
    return folder


@pytest.fixture(scope="module")
def undisturbed(jobs: dict[str, JobOf]) -> dict[str, dict[str, bytes]]:
    """Return job name -> its files, from one plain inline run."""
    found = {}
    for name, job in jobs.items():
        given = job("inline")
        run_inline(given)
        found[name] = data_files(Path(given["output"]))
    return found


def test_the_jobs_do_what_the_comparison_needs(
    jobs: dict[str, JobOf], undisturbed: dict[str, dict[str, bytes]], folder: Path
) -> None:
    pictures = manifest(folder / "pictures" / "inline")["totals"]
    assert (pictures["input_samples"], pictures["quarantined"], pictures["shards"]) == (93, 2, 6)
    device = manifest(folder / "device" / "inline")
    assert device["totals"]["input_samples"] == 93
    assert device["filtered"].keys() == {"length_filter: too_long"}
    assert 5 < device["totals"]["filtered"] < 60
    assert device["quarantined"] == {"decode_image: SampleError": 2}
    for name in jobs:
        data = open_data_set(str(folder / name / "inline"))
        assert data.manifest.totals["samples"] == sum(data.shards["num_samples"].to_pylist())
        assert "manifest.json" in undisturbed[name]


@pytest.mark.parametrize("workers", [workers for _, workers in WAYS.values()])
@pytest.mark.parametrize("name", ["pictures", "device"])
def test_ray_writes_what_inline_writes(
    name: str, workers: int, ray_runs: Path, undisturbed: dict[str, dict[str, bytes]]
) -> None:
    assert_same(data_files(ray_runs / name / f"ray-{workers}"), undisturbed[name])


@pytest.mark.parametrize(
    "settings", [{"cpu_threads": 3}, {"chunk_size": 1}, {"chunk_size": 7, "cpu_threads": 2}]
)
@pytest.mark.parametrize("name", ["pictures", "device"])
def test_threads_and_chunks_change_nothing(
    name: str,
    settings: dict[str, Any],
    jobs: dict[str, JobOf],
    undisturbed: dict[str, dict[str, bytes]],
    tmp_path: Path,
) -> None:
    run_inline({**jobs[name]("unused", **settings), "output": str(tmp_path)})
    assert_same(data_files(tmp_path), undisturbed[name])


@pytest.mark.parametrize("chunk_size", [1, 2, 5])
def test_chunks_of_an_image_folder_change_nothing(tmp_path: Path, chunk_size: int) -> None:
    """Here a chunk spans files of several folders, and shards name where rows come from."""
    for i in range(7):
        picture = samples(0, 7)[2 * i][1]
        path = tmp_path / "in" / "abc"[i // 3] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    job = picture_job(str(tmp_path / "in"), tmp_path / "whole", run={"chunk_size": 32})
    job["source"] = {"type": "image_folder", "urls": str(tmp_path / "in")}
    job["operators"] = [
        {
            "name": "decode_image",
            "inputs": {"image_bytes": "image"},
            "outputs": {"image": "pixels"},
        },
        {
            "name": "resize",
            "size": 64,
            "inputs": {"image": "pixels"},
            "outputs": {"image": "pixels"},
        },
        {
            "name": "center_crop",
            "size": 64,
            "inputs": {"image": "pixels"},
            "outputs": {"image": "pixels"},
        },
        {"name": "dct_fsq", "side": 64, "inputs": {"image": "pixels"}},
    ]
    job["shards"] = {"fields": ["tokens", "label"]}
    run_inline(job)
    run_inline({**job, "output": str(tmp_path / "cut"), "run": {"chunk_size": chunk_size}})
    assert_same(data_files(tmp_path / "cut"), data_files(tmp_path / "whole"))


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Compare file by file: a whole dictionary's difference would be megabytes of bytes."""
    assert sorted(found) == sorted(expected)
    for name, data in expected.items():
        assert found[name] == data, f"{name} differs"
