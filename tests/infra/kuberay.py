"""The part of KubeRay's API that ``infra/kuberay`` uses, written from its reference (v1.7).

KubeRay's own schema is 2 MB of Kubernetes in YAML, so it is not kept here. As API servers do, these
models refuse keys and types that they do not know. A key that KubeRay has and these lack is added
here when a manifest needs it. The rules of KubeRay's controller that a schema cannot say are here
too.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$")]
LabelKey = Annotated[
    str, Field(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")
]
Count = Annotated[int, Field(ge=0, lt=2**31)]


class Strict(BaseModel):
    """Refuses unknown keys, and a number where a string is due."""

    model_config = ConfigDict(
        extra="forbid", strict=True, alias_generator=to_camel, validate_by_name=False
    )


class Metadata(Strict):
    name: Name | None = None
    labels: dict[LabelKey, str] = {}
    annotations: dict[LabelKey, str] = {}


class SecretReference(Strict):
    """The only way for variables to come in: a credential cannot stand in a manifest."""

    name: Name
    optional: bool = False


class VariablesFrom(Strict):
    secret_ref: SecretReference


class Resources(Strict):
    requests: dict[LabelKey, Quantity] = {}
    limits: dict[LabelKey, Quantity] = {}

    @model_validator(mode="after")
    def _fit(self) -> Self:
        for name, limit in self.limits.items():
            # Extended resources cannot be overcommitted; memory beyond its request is killed first.
            if (name == "memory" or "/" in name) and self.requests.get(name) != limit:
                raise ValueError(f"{name}: request {self.requests.get(name)} is not limit {limit}")
        return self


class Container(Strict):
    name: Name
    image: str
    env_from: list[VariablesFrom] = []
    resources: Resources


class Toleration(Strict):
    key: LabelKey
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class PodSecurity(Strict):
    run_as_non_root: bool
    run_as_user: Count


class PodSpec(Strict):
    service_account_name: Name
    termination_grace_period_seconds: Count
    node_selector: dict[LabelKey, str]
    tolerations: list[Toleration] = []
    security_context: PodSecurity
    containers: Annotated[list[Container], Field(min_length=1)]


class PodTemplate(Strict):
    metadata: Metadata = Metadata()
    spec: PodSpec


class HeadGroup(Strict):
    ray_start_params: dict[str, str]
    template: PodTemplate


class WorkerGroup(Strict):
    group_name: Name
    replicas: Count
    min_replicas: Count
    max_replicas: Count
    ray_start_params: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError(f"{self.group_name}: replicas are not between minimum and maximum")
        return self


class Autoscaler(Strict):
    idle_timeout_seconds: Count


class Auth(Strict):
    mode: Literal["token", "disabled"]


class RayClusterSpec(Strict):
    ray_version: str
    auth_options: Auth
    enable_in_tree_autoscaling: bool
    autoscaler_options: Autoscaler
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup]

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        names = [group.group_name for group in self.worker_group_specs]
        if len(set(names)) < len(names):
            raise ValueError(f"worker groups of one name: {names}")
        if not self.enable_in_tree_autoscaling:
            raise ValueError("autoscalerOptions without enableInTreeAutoscaling do nothing")
        return self


class Submitter(Strict):
    backoff_limit: Count


class RayJobSpec(Strict):
    entrypoint: str
    submitter_config: Submitter
    backoff_limit: Count
    shutdown_after_job_finishes: bool = False
    ttl_seconds_after_finished: Count = 0
    ray_cluster_spec: RayClusterSpec

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.ttl_seconds_after_finished and not self.shutdown_after_job_finishes:
            raise ValueError("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
        return self


class NamedMetadata(Metadata):
    name: Annotated[Name, Field(max_length=47)]


class ServiceAccount(Strict):
    api_version: Literal["v1"]
    kind: Literal["ServiceAccount"]
    metadata: NamedMetadata


class RayCluster(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: NamedMetadata
    spec: RayClusterSpec


class RayJob(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: NamedMetadata
    spec: RayJobSpec


MODELS: dict[str, type[ServiceAccount | RayCluster | RayJob]] = {
    "ServiceAccount": ServiceAccount,
    "RayCluster": RayCluster,
    "RayJob": RayJob,
}
