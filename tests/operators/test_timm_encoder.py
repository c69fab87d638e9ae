"""vision_encoder over timm: as timm without fused attention; what is said where it is missing."""

import importlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from operators.errors import SetupError
from tests import timm_checks
from tests.encoder_models import encoder, pixels, spec_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wrong() -> dict[str, str]:
    """What each check found wrong."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed: it needs torchvision, which is built for one torch")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.timm_checks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", timm_checks.CHECKS)
def test_it_is_as_timm(name: str, wrong: dict[str, str]) -> None:
    assert not wrong[name], wrong[name]


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("no timm"), RuntimeError("torchvision::nms")]
)
@pytest.mark.parametrize("given", ["name", "folder"])
def test_without_timm_it_says_what_to_install(
    given: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str, package: str | None = None) -> Any:
        if name == "timm":
            raise error
        return real(name, package)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", without)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_224"}))
    weights = "timm:vit_base_patch16_224.augreg_in21k" if given == "name" else str(tmp_path)
    step = encoder(weights)
    step.bind({"image": spec_of(pixels(1))})
    with pytest.raises(SetupError, match="need timm, which cannot be imported") as raised:
        step.outputs  # noqa: B018
    assert str(error) in str(raised.value)
    hint = raised.value.hint or ""
    assert hint.startswith("pip install timm, and a torchvision that is built for your torch")
    assert "facebook/dinov2" in hint
