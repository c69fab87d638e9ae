"""The KubeRay manifests: valid, in step with the project, and as a run on spot nodes needs them."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError

from pipeline.cli import app
from pipeline.spec import JobSpec, load_job
from tests.infra.kuberay import MODELS, Container, RayCluster, RayClusterSpec, RayJob
from tests.infra.project import CONSTRAINTS, IMAGE, INFRA, ROOT, VERSION, documents, marked

FOLDER = INFRA / "kuberay"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


def parse(document: dict[str, Any]) -> Any:
    return MODELS[document["kind"]].model_validate(document)


def the_job() -> RayJob:
    found: RayJob = parse(documents(FOLDER / "rayjob.yaml")[-1])
    return found


def clusters() -> list[RayClusterSpec]:
    cluster: RayCluster = parse(documents(FOLDER / "raycluster.yaml")[-1])
    return [the_job().spec.ray_cluster_spec, cluster.spec]


def containers(spec: RayClusterSpec) -> list[Container]:
    templates = [spec.head_group_spec.template, *(g.template for g in spec.worker_group_specs)]
    return [container for template in templates for container in template.spec.containers]


def words() -> list[str]:
    return shlex.split(the_job().spec.entrypoint)


def job_file() -> JobSpec:
    return load_job(ROOT / words()[2])


def test_both_kinds_of_manifest_are_there() -> None:
    kinds = {path.name: [document["kind"] for document in documents(path)] for path in MANIFESTS}
    assert kinds == {
        "raycluster.yaml": ["ServiceAccount", "RayCluster"],
        "rayjob.yaml": ["ServiceAccount", "RayJob"],
    }


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_hold_what_kuberay_knows(path: Path) -> None:
    for document in documents(path):
        parse(document)


def _misspell(spec: dict[str, Any]) -> None:
    spec["workerGroupSpecs"][0]["minReplica"] = spec["workerGroupSpecs"][0].pop("minReplicas")


def _count_cpus(spec: dict[str, Any]) -> None:
    spec["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _inline_credential(spec: dict[str, Any]) -> None:
    container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "AWS_SECRET_ACCESS_KEY", "value": "secret"}]


def _share_memory(spec: dict[str, Any]) -> None:
    spec["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"] = {
        "memory": "32Gi"
    }


def _too_many(spec: dict[str, Any]) -> None:
    spec["workerGroupSpecs"][0]["replicas"] = 1000


def _twice(spec: dict[str, Any]) -> None:
    spec["workerGroupSpecs"][1]["groupName"] = spec["workerGroupSpecs"][0]["groupName"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_misspell, r"minReplica\b"),
        (_count_cpus, "num-cpus"),
        (_inline_credential, r"env\n"),
        (_share_memory, "request 16Gi is not limit 32Gi"),
        (_too_many, "not between minimum and maximum"),
        (_twice, "worker groups of one name"),
    ],
)
def test_mistakes_are_found(spoil: Callable[[dict[str, Any]], None], says: str) -> None:
    document = documents(FOLDER / "raycluster.yaml")[-1]
    spoil(document["spec"])
    with pytest.raises(ValidationError, match=says):
        parse(document)


def test_the_entrypoint_is_a_command_of_ours() -> None:
    program, name, *args = words()
    assert program == "pipeline"
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, args).params
    assert name == "run"
    assert given["address"] == "auto"
    assert given["output"].startswith("s3://")
    assert not given["fresh"]  # it must go on where a lost driver stopped


def test_the_job_file_is_valid_and_in_the_image() -> None:
    assert job_file().name == the_job().metadata.name.replace("-", "_")
    assert Path(words()[2]).parts[0] == "jobs"  # what the Dockerfile copies to the working folder


def test_a_node_holds_its_workers() -> None:
    """A worker takes a GPU, and a core for each of its decode threads."""
    job = job_file()
    assert "cuda" in [getattr(operator, "device", None) for operator in job.operators]
    for spec in clusters():
        for group in spec.worker_group_specs:
            limits = group.template.spec.containers[0].resources.limits
            assert int(limits["cpu"]) >= int(limits["nvidia.com/gpu"]) * job.run.cpu_threads


def test_the_run_asks_for_all_gpus_that_there_may_be() -> None:
    """Nodes are added only for workers that wait for them."""
    for spec in clusters():
        most = sum(
            group.max_replicas * int(container.resources.limits["nvidia.com/gpu"])
            for group in spec.worker_group_specs
            for container in group.template.spec.containers
        )
        assert words()[words().index("--workers") + 1] == f"1:{most}"
        assert f"--workers 1:{most}" in (FOLDER / "README.md").read_text()


def test_versions_agree() -> None:
    for spec in clusters():
        assert spec.ray_version == CONSTRAINTS["ray"]
        for container in containers(spec):
            found = IMAGE.fullmatch(container.image)
            assert found is not None, container.image
            assert found["version"] == VERSION
            assert found["target"] == "cuda"


def test_the_standing_cluster_is_the_jobs() -> None:
    of_job, standing = clusters()
    assert of_job == standing


def test_a_user_changes_two_lines_and_one() -> None:
    assert [("BUCKET" in line, "registry" in line) for line in marked(FOLDER / "rayjob.yaml")] == [
        (True, False),
        (False, True),
    ]
    assert ["registry" in line for line in marked(FOLDER / "raycluster.yaml")] == [True]
    for path in MANIFESTS:
        text = path.read_text()
        assert text.count("registry.example.com") == 1, "the image is named once"


def test_the_head_stays_and_workers_are_spot() -> None:
    for spec in clusters():
        head = spec.head_group_spec
        assert head.template.spec.node_selector["karpenter.sh/capacity-type"] == "on-demand"
        assert head.template.metadata.annotations["karpenter.sh/do-not-disrupt"] == "true"
        assert head.ray_start_params["num-cpus"] == "0"
        assert "nvidia.com/gpu" not in head.template.spec.containers[0].resources.limits
        models = set()
        for group in spec.worker_group_specs:
            pod = group.template.spec
            assert pod.node_selector["karpenter.sh/capacity-type"] == "spot"
            assert "nvidia.com/gpu" in [toleration.key for toleration in pod.tolerations]
            models.add(pod.node_selector["karpenter.k8s.aws/instance-gpu-name"])
        assert len(models) == 1  # another model of GPU may round to other ids


def test_a_pod_has_the_time_to_let_go_of_its_node() -> None:
    """Ray drains at SIGTERM; EC2 gives a spot node 120 s."""
    from ray._private import ray_constants

    drain_s = ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
    for spec in clusters():
        for group in spec.worker_group_specs:
            assert drain_s < group.template.spec.termination_grace_period_seconds < 120


def test_nobody_without_the_token_gets_in() -> None:
    """Who reaches Ray's ports runs what he likes. The token's secret is named as the cluster."""
    for spec in clusters():
        assert spec.auth_options.mode == "token"
    standing = parse(documents(FOLDER / "raycluster.yaml")[-1])
    secrets = {v.secret_ref.name for c in containers(standing.spec) for v in c.env_from}
    assert secrets == {"tokenmill-env"}
    assert standing.metadata.name not in secrets


def test_a_lost_driver_is_started_again() -> None:
    assert the_job().spec.backoff_limit > 0
    assert the_job().spec.submitter_config.backoff_limit > 0


def test_pods_are_no_root_and_have_an_identity() -> None:
    for path in MANIFESTS:
        account, owner = (parse(document) for document in documents(path))
        spec = owner.spec.ray_cluster_spec if isinstance(owner, RayJob) else owner.spec
        groups = [spec.head_group_spec, *spec.worker_group_specs]
        for pod in (group.template.spec for group in groups):
            assert pod.service_account_name == account.metadata.name
            assert pod.security_context.run_as_non_root
            assert pod.security_context.run_as_user > 0
            assert all(container.env_from for container in pod.containers)
