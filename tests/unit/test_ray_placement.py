"""How many workers fit where, and what is said when none does. Ray itself is not started."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.ray import RayEngine
from pipeline.errors import SetupError
from pipeline.runner import _resources, prepare
from pipeline.spec import WorkerRange
from tests.corpus import parse, text_job, write_texts


def engine(
    folder: Path,
    *nodes: dict[str, float],
    workers: int | WorkerRange | None = None,
    address: str | None = "auto",
    **run: Any,
) -> RayEngine:
    """Return an engine that sees a cluster of nodes with the given resources."""
    prepared = prepare(parse(text_job(write_texts(folder / "in"), folder / "out", run=run)))
    needs = _resources(prepared.chain.resources, prepared.job.run)
    made = RayEngine(prepared.task("test"), needs, workers, address)
    made._nodes = [{"Resources": resources} for resources in nodes]
    return made


@pytest.mark.parametrize(
    ("nodes", "run", "most"),
    [
        pytest.param([{"CPU": 8}, {"CPU": 3}], {}, 11, id="one a core"),
        pytest.param([{"CPU": 8}, {"CPU": 3}], {"cpu_threads": 2}, 5, id="decode threads count"),
        pytest.param([{"CPU": 0}, {"CPU": 4}], {}, 4, id="a head without workers"),
        pytest.param([{"CPU": 16, "GPU": 2}], {"num_gpus": 1}, 2, id="one a GPU"),
        pytest.param([{"CPU": 16, "GPU": 2}], {"num_gpus": 0.25}, 8, id="four a GPU"),
        pytest.param([{"CPU": 16, "GPU": 1}, {"CPU": 9}], {"num_gpus": 0.1}, 10, id="ten a GPU"),
        pytest.param([{"CPU": 4, "GPU": 8}], {"num_gpus": 1}, 4, id="too few cores for the GPUs"),
        pytest.param(
            [{"CPU": 8, "rig": 3}, {"CPU": 8}], {"resources": {"rig": 1.5}}, 2, id="custom"
        ),
        pytest.param(
            [{"CPU": 8, "accelerator_type:H100": 1.0}, {"CPU": 8, "accelerator_type:L4": 1.0}],
            {"accelerator_type": "H100"},
            8,
            id="kind of accelerator",
        ),
        pytest.param(
            [{"CPU": 8, "memory": 5e9}], {"worker_memory_bytes": 2_000_000_000}, 2, id="memory"
        ),
    ],
)
def test_as_many_as_fit(
    nodes: list[dict[str, float]], run: dict[str, Any], most: int, tmp_path: Path
) -> None:
    assert engine(tmp_path, *nodes, **run)._bounds() == (1, most)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ({"num_gpus": 1}, "a worker needs 1 GPU, the cluster's nodes have 0"),
        ({"resources": {"rig": 2}}, "a worker needs 2 rig, the cluster's nodes have 0"),
        ({"accelerator_type": "H100"}, "accelerator_type:H100, the cluster's nodes have 0"),
    ],
)
def test_what_no_node_has_is_named(run: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=says) as found:
        engine(tmp_path, {"CPU": 8}, **run)._bounds()
    assert "workers: {min: 1, max: N}" in str(found.value.hint)


def test_two_gpus_on_different_nodes_are_not_two_on_one(tmp_path: Path) -> None:
    node = {"CPU": 4.0, "GPU": 1.0}
    with pytest.raises(SetupError, match="a worker needs 2 GPU, the cluster's nodes have 1"):
        engine(tmp_path, node, node, num_gpus=2)._bounds()


def test_a_range_waits_for_nodes_to_come(tmp_path: Path) -> None:
    made = engine(tmp_path, workers=WorkerRange(min=2, max=64), num_gpus=1)
    assert made._bounds() == (2, 64)


def test_a_number_is_a_number(tmp_path: Path) -> None:
    assert engine(tmp_path, {"CPU": 2}, workers=5)._bounds() == (1, 5)


def test_workers_share_the_cores_of_a_private_cluster(tmp_path: Path) -> None:
    assert engine(tmp_path, {"CPU": 2}, workers=4, address=None)._cpus_each() == 0.5
    assert engine(tmp_path, {"CPU": 2}, workers=4)._cpus_each() == 1
    assert engine(tmp_path, {"CPU": 2}, cpu_threads=8)._cpus_each() == 2  # or it would never start
