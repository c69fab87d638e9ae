"""The cluster of Ray's launcher on AWS: the installed Ray takes it, and versions agree."""

import re
from typing import Any

import pytest

from tests.infra.project import IMAGE, INFRA, VERSION, documents, marked

FILE = INFRA / "aws" / "cluster.yaml"


def config() -> dict[str, Any]:
    (found,) = documents(FILE)
    return found


def prepared(raw: dict[str, Any]) -> dict[str, Any]:
    """Return what ``ray up`` makes of a file before it asks AWS; Ray's schema is applied."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled: dict[str, Any] = prepare_config(raw)
    validate_config(filled)
    return filled


def types() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the head's type and the workers'."""
    found = config()
    workers = dict(found["available_node_types"])
    return workers.pop(found["head_node_type"]), workers


def test_ray_takes_it() -> None:
    assert prepared(config())["max_workers"] == config()["max_workers"]


def test_ray_refuses_a_key_it_does_not_know() -> None:
    with pytest.raises(Exception, match="'idle_timeout' was unexpected"):
        prepared({**config(), "idle_timeout": 5})


def test_no_default_of_rays_is_installed_over_the_image() -> None:
    filled = prepared(config())
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert filled[key] == []
    assert "pip" not in str(filled["head_start_ray_commands"] + filled["worker_start_ray_commands"])


def test_the_image_agrees_with_the_project() -> None:
    found = IMAGE.fullmatch(config()["docker"]["image"])
    assert found is not None
    assert (found["version"], found["target"]) == (VERSION, "cuda")


def test_the_head_is_on_demand_and_does_not_work() -> None:
    head, _ = types()
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}


def test_workers_are_spot_gpus_of_one_model() -> None:
    _, workers = types()
    assert len(workers) > 1  # spot has more of two sizes than of one
    for worker in workers.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    families = {w["node_config"]["InstanceType"].split(".")[0] for w in workers.values()}
    assert len(families) == 1  # another model of GPU may round to other ids


def test_the_cluster_grows_to_the_gpus_that_the_run_asks_for() -> None:
    _, workers = types()
    gpus = {"g6e.4xlarge": 1, "g6e.12xlarge": 4}
    most = sum(w["max_workers"] * gpus[w["node_config"]["InstanceType"]] for w in workers.values())
    assert f"--workers 1:{most}" in (FILE.parent / "README.md").read_text()
    assert config()["max_workers"] == sum(worker["max_workers"] for worker in workers.values())
    assert all(worker["min_workers"] < worker["max_workers"] for worker in workers.values())


def test_nodes_have_roles_and_no_credentials() -> None:
    head, workers = types()
    roles = {worker["node_config"]["IamInstanceProfile"]["Name"] for worker in workers.values()}
    assert roles == {"tokenmill-worker"}
    assert head["node_config"]["IamInstanceProfile"]["Name"] == "tokenmill-head"
    assert not re.search(r"AKIA|secret|access_key|password", FILE.read_text(), re.I)


def test_nobody_without_the_token_gets_in() -> None:
    """Who reaches Ray's ports runs what he likes."""
    assert "-e RAY_AUTH_MODE=token" in config()["docker"]["run_options"]
    assert "~/.ray/auth_token" in config()["file_mounts"]


def test_a_user_changes_two_lines() -> None:
    assert [line.split(":")[0].strip() for line in marked(FILE)] == ["region", "image"]
