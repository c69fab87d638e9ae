"""The Dockerfile, as far as one can tell without building it."""

import fnmatch
import re
from dataclasses import dataclass, field

import pytest

from tests.infra.project import CONSTRAINTS, INFRA, PROJECT, ROOT

FILE = INFRA / "Dockerfile"
TARGETS = ("cpu", "cuda")
Instruction = tuple[str, str]


@dataclass(slots=True)
class Stage:
    """From one FROM to the next."""

    name: str
    parent: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, kind: str) -> list[str]:
        return [text for name, text in self.instructions if name == kind]


def instructions() -> list[Instruction]:
    """Split the file into instructions: comments left out, continued lines joined."""
    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name.upper(), " ".join(rest.split())) for name, rest in found]


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    for name, text in instructions():
        if name == "FROM":
            parent, _, stage = text.partition(" AS ")
            found[stage] = Stage(stage, parent)
        elif found:
            list(found.values())[-1].instructions.append((name, text))
    return found


def arguments() -> dict[str, str]:
    """Return the arguments before the first stage."""
    before = [text for name, text in instructions()[: [n for n, _ in instructions()].index("FROM")]]
    return dict(text.split("=", 1) for text in before)


def taken(stage: Stage) -> list[str]:
    """Return the paths that a stage takes from the repository, by COPY or mount."""
    paths = []
    for text in stage.all("COPY"):
        *sources, _ = text.split()
        assert not sources[0].startswith("--from")  # bind mounts serve: layers stay small
        paths += sources
    return paths


def test_both_targets_are_there_and_stages_follow_what_they_need() -> None:
    found = stages()
    assert list(found) == ["wheel", "base", *TARGETS]
    for index, stage in enumerate(found.values()):
        earlier = list(found)[:index]
        assert stage.parent in earlier or stage.parent.startswith("python:${PYTHON_VERSION}-slim")
        for run in stage.all("RUN"):
            assert set(re.findall(r"from=([\w-]+)", run)) <= set(earlier)


def test_targets_differ_in_torch_and_driver_only() -> None:
    cpu, cuda = (stages()[name] for name in TARGETS)
    own = [item for item in cuda.instructions if item not in cpu.instructions]
    assert [name for name, _ in own] == ["ARG", "ENV"]
    assert [item for item in cpu.instructions if item not in cuda.instructions] == [
        ("ARG", "TORCH_BUILD=cpu")
    ]
    assert re.fullmatch(r"TORCH_BUILD=cu\d{3}", own[0][1])
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in own[1][1]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(line for line in ignored if not line.startswith("#")) == "*"
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = {path for stage in stages().values() for path in taken(stage)}
    assert copied == kept
    for path in copied:
        assert (ROOT / path).exists(), path
    assert any(fnmatch.fnmatch("operators/__pycache__", line) for line in ignored)


def test_the_package_is_whole() -> None:
    """What setuptools packs is what the stage has."""
    packed = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packed} < set(taken(stages()["wheel"]))


def test_python_is_the_oldest_that_the_project_allows() -> None:
    """So types and tests are checked on what the image runs."""
    assert PROJECT["project"]["requires-python"] == f">={arguments()['PYTHON_VERSION']}"
    assert PROJECT["tool"]["mypy"]["python_version"] == arguments()["PYTHON_VERSION"]


def test_versions_come_from_the_constraints_alone() -> None:
    assert not re.search(r"==\s*\d", FILE.read_text())
    assert {"torch", "ray"} <= set(CONSTRAINTS)
    for name in TARGETS:
        installs = [run for run in stages()[name].all("RUN") if "pip install" in run]
        assert len(installs) == 3
        for run in installs:
            assert "--constraint constraints.txt" in run or "--no-deps" in run


@pytest.mark.parametrize("name", TARGETS)
def test_the_torch_of_the_target_is_asked_for_by_name(name: str) -> None:
    """Two indexes are looked at: only the local version says which build is meant."""
    run = stages()[name].all("RUN")[0]
    assert "https://download.pytorch.org/whl/${TORCH_BUILD}" in run
    assert "\"$(grep '^torch==' constraints.txt)+${TORCH_BUILD}\"" in run
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len([line for line in lines if line.startswith("torch==")]) == 1


@pytest.mark.parametrize("name", TARGETS)
def test_all_extras_and_what_clusters_need_are_installed(name: str) -> None:
    (run,) = (run for run in stages()[name].all("RUN") if "[all]" in run)
    assert "'.[all]' 'ray[default]' boto3" in run
    listed = PROJECT["project"]["optional-dependencies"]
    (everything,) = listed["all"]
    named = set(re.search(r"\[(.*)\]", everything)[1].split(","))  # type: ignore[index]
    assert named == set(listed) - {"all", "dev"}


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_runs_as_root(name: str) -> None:
    kinds = [kind for kind, _ in stages()[name].instructions]
    assert stages()[name].all("USER") == ["ray"]
    assert "RUN" not in kinds[kinds.index("USER") :]
    assert (
        "useradd --create-home --uid 1000 --shell /bin/bash ray" in stages()["base"].all("RUN")[0]
    )
    assert stages()[name].all("WORKDIR") == ["/home/ray"]


def test_our_code_is_in_the_last_layers() -> None:
    """A change of it leaves the gigabytes below as they are."""
    for name in TARGETS:
        runs = stages()[name].all("RUN")
        assert ["from=wheel" in run for run in runs] == [False, False, True]
        assert taken(stages()["base"]) == ["pyproject.toml", "constraints.txt"]
