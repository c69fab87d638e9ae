"""The jobs of this repository prepare images as the authors of their tokenizers do."""

from pathlib import Path
from typing import Any

import pytest

from operators import registry
from operators.base import OperatorConfig
from operators.image.crops import CropsConfig
from pipeline.spec import load_job

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))


def options(config: OperatorConfig) -> dict[str, Any]:
    return config.model_dump(exclude={"inputs", "outputs", "max_pixels"})


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_images_are_prepared_as_the_authors_do(path: Path) -> None:
    before: list[OperatorConfig] = []
    for config in load_job(path).operators:
        step = registry.get(config.name)
        if step.__module__.startswith("operators.image."):
            before.append(config)
        authors = getattr(step, "preprocessing", ())
        if isinstance(authors, property):  # read from the checkpoint: test_encoder_jobs.py
            continue
        if authors and not isinstance(before[-1], CropsConfig):
            lists = (authors, *getattr(step, "other_preprocessing", ()))
            wanted = [
                [options(registry.get(each["name"]).Config.model_validate(each)) for each in steps]
                for steps in lists
            ]
            assert any(list(map(options, before[-len(each) :])) == each for each in wanted), (
                config.name
            )
