"""Every fault of ``soak.py`` once, on a cluster of several nodes: the same bytes come out."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.corpus import ROOT
from tests.faults.soak import FAULTS

pytestmark = pytest.mark.timeout(420)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    path = tmp_path_factory.mktemp("soak") / "outcomes.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak", "--times", "1", "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert path.exists(), done.stderr[-3000:]
    found: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_the_data_set_is_as_if_nothing_had_happened(
    fault: str, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    assert [outcome["wrong"] for outcome in outcomes[fault]] == [None]
