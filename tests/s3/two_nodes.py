"""Run a job on a Ray cluster of two nodes, each with a model cache of its own.

``python -m tests.s3.two_nodes FOLDER`` reads the job from ``job.json`` there and puts the caches of
the driver and of the nodes beside it. No worker fits on the driver's node.
"""

import json
import logging
import os
import sys
import time
from pathlib import Path

from pipeline.protocols import PartitionResult
from pipeline.runner import prepare, run
from tests.corpus import parse


class _UntilAllAreReady:
    """Holds the first result back until every node has loaded the weights."""

    def __init__(self, caches: list[Path]) -> None:
        self._caches = caches

    def waiting(self, message: str) -> None:
        pass

    def decided(self, warning: str) -> None:
        pass

    def begin(self, partitions: object, done: object, engine: object) -> None:
        pass

    def committed(self, result: PartitionResult) -> None:
        deadline = time.monotonic() + 90
        while not all(list(cache.glob("files/*/*.safetensors")) for cache in self._caches):
            assert time.monotonic() < deadline, "a node did not fetch the weights"
            time.sleep(0.1)


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    folder = Path(sys.argv[1])
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ["TOKENMILL_CACHE"] = str(folder / "cache-driver")
    cluster = Cluster(
        initialize_head=True,
        connect=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )
    caches = [folder / "cache-a", folder / "cache-b"]
    try:
        for cache in caches:
            os.environ["TOKENMILL_CACHE"] = str(cache)  # workers inherit it from their node
            cluster.add_node(num_cpus=1)
        os.environ["TOKENMILL_CACHE"] = str(folder / "cache-driver")
        run(
            prepare(parse(json.loads((folder / "job.json").read_text()))),
            engine="ray",
            address=cluster.address,
            workers=2,
            listener=_UntilAllAreReady(caches),
        )
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
