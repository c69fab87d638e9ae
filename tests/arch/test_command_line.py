"""What others rely on: the commands and options, and how little a look at a job costs."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[2]

COMMANDS = {
    "export": {
        "output",
        "--allow-random-weights",
        "--field",
        "--file-size",
        "--job",
        "--output",
        "--to",
        "--engine",
        "--address",
        "--workers",
    },
    "import": {"source", "output", "--from", "--vocab-size", "--tokenizer", "--field", "--job"},
    "gc": {"output", "--job", "--dry-run", "--unfinished"},
    "operators": {"name"},
    "plan": {"job_file", "--limit", "--output"},
    "preview": {"output", "--job", "--num", "--to"},
    "report": {"output", "--codebook", "--job"},
    "retry": {"output", "--address", "--drop", "--engine", "--job", "--workers"},
    "run": {
        "job_file",
        "--address",
        "--engine",
        "--fresh",
        "--limit",
        "--output",
        "--workers",
    },
    "sample-data": {"folder"},
    "schema": {"path", "--training"},
    "status": {"output", "--job"},
    "submit": {
        "job_file",
        "--address",
        "--detach",
        "--follow",
        "--fresh",
        "--limit",
        "--output",
        "--workers",
    },
    "tokenizer-report": {
        "targets",
        "--group",
        "--job",
        "--json",
        "--plot",
        "--reference",
        "--sample",
        "--tokenizer",
    },
    "train-tokenizer": {"job_file", "--fresh", "--limit", "--output"},
    "trainers": {"name"},
    "validate": {"job_file"},
    "verify": {"output", "--job", "--golden", "--repair"},
}
"""Scripts use these: take none away and rename none without a new major version."""

HEAVY = (
    "datasets",
    "diffusers",
    "huggingface_hub",
    "pandas",
    "pyarrow.dataset",
    "ray",
    "s3fs",
    "skimage",
    "spdl",
    "tokenizers",
    "torch",
    "transformers",
    "webdataset",
)


def test_commands_and_options_are_frozen() -> None:
    from pipeline.cli import app

    group = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        options = {
            param.opts[0] if param.param_type_name == "option" else param.name
            for param in command.params
        }
        found[name] = options - {"--help"}
    assert found == COMMANDS


@pytest.mark.parametrize(
    "args",
    [["--help"], ["validate", "jobs/quickstart.yaml"], ["operators"], ["operators", "flextok"]],
    ids=" ".join,
)
def test_a_look_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from pipeline.cli import main\n"
        f"sys.argv = ['pipeline', *{args!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as done:\n"
        "    assert not done.code, done.code\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not found, found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
