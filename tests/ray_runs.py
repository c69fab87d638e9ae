"""Run several jobs on one private Ray cluster: ``python -m tests.ray_runs RUNS.json``.

The file holds ``[[job, workers], ...]``; ``outcomes.json`` beside it then says how each ended.
Starting Ray costs more than these runs.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import ray

from pipeline.errors import TokenmillError
from pipeline.runner import prepare, run
from tests.corpus import parse


def main() -> None:
    runs = Path(sys.argv[1])
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    outcomes = [_outcome(job, workers) for job, workers in json.loads(runs.read_text())]
    assert ray.is_initialized(), "an engine closed a connection that it did not open"
    ray.shutdown()
    (runs.parent / "outcomes.json").write_text(json.dumps(outcomes))


def _outcome(job: dict[str, Any], workers: int) -> dict[str, Any]:
    try:
        summary = run(prepare(parse(job)), engine="ray", workers=workers)
    except TokenmillError as error:
        return {
            "exit_code": error.exit_code,
            "error": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
        }
    return {"exit_code": 0, "workers": summary.num_workers, "samples": summary.samples}


if __name__ == "__main__":
    main()
