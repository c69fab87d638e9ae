"""The pages: what they tell one to type is there, and is right."""

import json
import re
from pathlib import Path

import pytest
import typer

from pipeline.cli import app
from tests.infra.project import INFRA, ROOT, VERSION, commands, documents

PAGES = sorted(INFRA.rglob("README.md"))


def test_every_folder_has_a_page() -> None:
    assert {page.parent for page in PAGES} == {
        INFRA,
        *(path for path in INFRA.iterdir() if path.is_dir()),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    for line in commands(page):
        for word in line:
            if word.startswith("file://") or re.fullmatch(r"[\w-]+\.(yaml|json)", word):
                assert (page.parent / word.removeprefix("file://")).exists(), word
        if line[:2] == ["docker", "build"]:
            assert (ROOT / line[line.index("-f") + 1]).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_our_commands_are_right(page: Path) -> None:
    for line in commands(page):
        if "pipeline" in line:
            _, name, *args = line[line.index("pipeline") :]
            command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
            given = command.make_context(name, args).params
            assert (ROOT / given["job_file"]).exists()


def test_images_have_the_projects_version() -> None:
    text = "".join(page.read_text() for page in PAGES) + (INFRA / "Dockerfile").read_text()
    found = re.findall(r"tokenmill:([\d.]+)-(\w+)", text)
    assert {version for version, _ in found} == {VERSION}
    assert {target for _, target in found} == {"cpu", "cuda"}


def test_roles_are_those_of_the_cluster() -> None:
    folder = INFRA / "aws"
    policies = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert set(policies) == {"trust", "bucket", "nodes"}
    (passed,) = [s for s in policies["nodes"]["Statement"] if s["Action"] == "iam:PassRole"]
    types = documents(folder / "cluster.yaml")[0]["available_node_types"]
    worker = types["l40s-x1"]["node_config"]["IamInstanceProfile"]["Name"]
    assert passed["Resource"].endswith(f":role/{worker}")
    page = (folder / "README.md").read_text()
    for node in types.values():
        assert node["node_config"]["IamInstanceProfile"]["Name"] in page
