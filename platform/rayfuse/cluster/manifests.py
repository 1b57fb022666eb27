"""Render the Kubernetes manifests of a submission bundle; pure functions without a client or a cluster.

A job or sweep becomes a RayJob with a cluster of the size that it needs, a service a RayService, and the spec's files a
ConfigMap. The ConfigMap's name has a digest of its content, so that KubeRay starts a new cluster for a changed service
and switches to it without downtime.
"""

import math
import secrets
from typing import Any

import yaml

from rayfuse.cluster import sizing
from rayfuse.cluster.submission import COMMANDS, SubmissionBundle
from rayfuse.errors import SpecError
from rayfuse.formatting import truncated_repr
from rayfuse.ray_patches import SERVE_ENV
from rayfuse.spec.cluster import Cluster, PodTemplate, WorkerGroup
from rayfuse.spec.job import Job
from rayfuse.spec.kubernetes import is_dns1035
from rayfuse.spec.pods import SPEC_FOLDER
from rayfuse.spec.ray_start import to_parameters
from rayfuse.spec.service import Service

API_VERSION = "ray.io/v1"
IMPORT_PATH = "rayfuse.serving.endpoint:from_spec"
KIND_LABEL = "rayfuse/kind"
NAME_LABEL = "rayfuse/name"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
MANAGED_BY_LABELS = {"app.kubernetes.io/managed-by": "rayfuse"}
SUBMITTER_CONTAINER = "ray-job-submitter"
"""KubeRay's name of the container that submits a job and prints its log."""

SPEC_VOLUME = "rayfuse-spec"
"""Name of the volume with the submitted spec."""

MAX_NAME_LENGTH = 47
"""Maximum length of the name of a RayJob or RayService, to which KubeRay appends."""

_MAX_CONFIG_MAP_BYTES = 1024**2
_GIVEN_NAME = "name"
_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # as Kubernetes' own, without vowels
_ACCELERATOR_LABEL = "ray.io/accelerator-type"
_USER, _GROUP = 1000, 100  # of the images of Ray, and of ours

Manifest = dict[str, Any]


def render(
    bundle: SubmissionBundle, cluster: Cluster, cluster_file: str, name: str | None = None
) -> list[Manifest]:
    """Render the ConfigMap and the RayJob or RayService of a bundle, in the order in which to apply them.

    `name` overrides the object's name. Raises SpecError where the name is invalid or the spec does not fit into the
    cluster.
    """
    chosen = object_name(bundle, name)
    _check_size(bundle)
    spec_map = f"{chosen}-spec-{bundle.digest}"
    if bundle.service is not None:
        body = _ray_service(bundle, bundle.service, cluster, cluster_file, spec_map)
    else:
        assert bundle.job is not None
        body = _ray_job(bundle, bundle.job, cluster, cluster_file, spec_map)
    labels = {**_labels(bundle), **({QUEUE_LABEL: cluster.kueue_queue} if cluster.kueue_queue else {})}
    kind = "RayJob" if bundle.service is None else "RayService"
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": spec_map, "namespace": cluster.namespace, "labels": _labels(bundle)},
            "immutable": True,
            "data": bundle.files,
        },
        {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": chosen, "namespace": cluster.namespace, "labels": labels},
            "spec": body,
        },
    ]


def _check_size(bundle: SubmissionBundle) -> None:
    size = sum(len(text.encode()) for text in bundle.files.values())
    if size > _MAX_CONFIG_MAP_BYTES:
        raise SpecError(
            f"{bundle.source_file}: {size} bytes, and Kubernetes stores at most 1 MiB in a ConfigMap; move long lists into "
            "the rows or into files of a job at a URL"
        )


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that writes multi-line strings as blocks, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def to_yaml(manifests: list[Manifest]) -> str:
    """Dump manifests as the documents of one YAML file, for `kubectl apply`."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def object_name(bundle: SubmissionBundle, given: str | None) -> str:
    """Return `given`, else the name of a service or a new unique name for a job or sweep.

    Raises SpecError where the name is not valid for KubeRay; the rule is the same on a Ray cluster.
    """
    if given is not None:
        return _validate_name(given, _GIVEN_NAME)
    if bundle.service is not None:
        return _validate_name(bundle.name, f"{bundle.source_file}: name")
    return job_name(bundle)


def job_name(bundle: SubmissionBundle) -> str:
    """Generate a unique name from the name of a spec and a random suffix."""
    suffix = "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(5))
    plain = "".join(letter if letter.isalnum() else "-" for letter in bundle.name.lower())
    stem = plain if plain[0].isalpha() else f"{bundle.kind}-{plain}"
    return f"{stem[: MAX_NAME_LENGTH - len(suffix) - 1].rstrip('-')}-{suffix}"


def _validate_name(name: str, path: str) -> str:
    if not is_dns1035(name, MAX_NAME_LENGTH):
        raise SpecError(
            f"{path}: {truncated_repr(name)} is not a name on a cluster; use at most {MAX_NAME_LENGTH} of a-z, 0-9 and -, starting "
            "with a letter" + ("" if path == _GIVEN_NAME else ", or pass such a name (`--name`)")
        )
    return name


def _ray_job(
    bundle: SubmissionBundle, job: Job, cluster: Cluster, cluster_file: str, config_map_name: str
) -> Manifest:
    submission = cluster.submission
    path = "compute.workers" if bundle.kind == "job" else "compute.workers of a trial"
    workers = sizing.WorkerRequirements.of_job(job, bundle.concurrent_trials, path)
    counts = sizing.allocate_pods(workers, cluster, bundle.source_file, cluster_file)
    groups = [
        _worker_group(name, group, cluster, bundle, config_map_name, (counts[name],) * 3)
        for name, group in cluster.workers.items()
        if counts[name]
    ]
    submitter = _submitter_template(bundle, cluster) if submission.mode == "K8sJobMode" else None
    return _drop_none(
        entrypoint=f"rayfuse {COMMANDS[bundle.kind]} {SPEC_FOLDER}/{bundle.spec_file}",
        metadata={KIND_LABEL: bundle.kind, NAME_LABEL: bundle.name},
        submissionMode=submission.mode,
        submitterPodTemplate=submitter,
        shutdownAfterJobFinishes=submission.shutdown,
        ttlSecondsAfterFinished=_ceil_seconds(submission.ttl),
        activeDeadlineSeconds=_ceil_seconds(submission.active_deadline),
        backoffLimit=submission.backoff_limit,
        rayClusterSpec=_ray_cluster(bundle, cluster, config_map_name, groups),
    )


def _ray_service(
    bundle: SubmissionBundle, service: Service, cluster: Cluster, cluster_file: str, config_map_name: str
) -> Manifest:
    replicas = service.replicas

    def pods(count: int, path: str) -> dict[str, int]:
        workers = sizing.WorkerRequirements(count, count, replicas.num_cpus, replicas.num_gpus, path)
        return sizing.allocate_pods(workers, cluster, bundle.source_file, cluster_file)

    pods(replicas.max, "replicas.max")
    first = pods(replicas.min, "replicas.min")
    groups = [
        _worker_group(name, group, cluster, bundle, config_map_name, (group.min, first[name], group.max))
        for name, group in cluster.workers.items()
    ]
    config = {
        "http_options": {"host": "0.0.0.0", "port": service.port},  # noqa: S104 - of a pod
        "applications": [
            {
                "name": service.name,
                "route_prefix": service.route_prefix,
                "import_path": IMPORT_PATH,
                "args": {"spec": f"{SPEC_FOLDER}/{bundle.spec_file}", "digest": bundle.digest},
            }
        ],
    }
    ray_cluster = _ray_cluster(bundle, cluster, config_map_name, groups, service.port)
    if any(group.min < group.max for group in cluster.workers.values()):
        ray_cluster["enableInTreeAutoscaling"] = True
    return {"serveConfigV2": yaml.safe_dump(config, sort_keys=False), "rayClusterConfig": ray_cluster}


def _ray_cluster(
    bundle: SubmissionBundle,
    cluster: Cluster,
    config_map_name: str,
    groups: list[Manifest],
    serve_port: int | None = None,
) -> Manifest:
    """Render a RayCluster's spec; its head has no CPUs for work where there are worker groups."""
    head = _container("ray-head", cluster.head, cluster, bundle)
    if serve_port is not None:
        ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": serve_port}
        head["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    defaults = {"num-cpus": "0"} if cluster.workers else {}
    return {
        "rayVersion": cluster.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": _drop_none(
            rayStartParams={**defaults, **to_parameters(cluster.head.ray)},
            labels=_ray_labels(cluster.head),
            template=_ray_pod_template(head, cluster.head, bundle, cluster, config_map_name),
        ),
        **({"workerGroupSpecs": groups} if groups else {}),
    }


def _worker_group(
    name: str,
    group: WorkerGroup,
    cluster: Cluster,
    bundle: SubmissionBundle,
    config_map_name: str,
    counts: tuple[int, int, int],
) -> Manifest:
    """Render a worker group; `counts` are its minimum, initial and maximum number of pods."""
    minimum, initial, maximum = counts
    return _drop_none(
        groupName=name,
        minReplicas=minimum,
        replicas=initial,
        maxReplicas=maximum,
        rayStartParams=to_parameters(group.ray),
        labels=_ray_labels(group),
        template=_ray_pod_template(
            _container("ray-worker", group, cluster, bundle), group, bundle, cluster, config_map_name
        ),
    )


def _ray_pod_template(
    container: Manifest,
    machine: PodTemplate,
    bundle: SubmissionBundle,
    cluster: Cluster,
    config_map_name: str,
) -> Manifest:
    """Render a Ray pod with the spec's ConfigMap and the cluster spec's volumes mounted."""
    claims = cluster.volumes.items()
    container["volumeMounts"] = [
        {"name": SPEC_VOLUME, "mountPath": SPEC_FOLDER, "readOnly": True},
        *({"name": name, "mountPath": volume.path} for name, volume in claims),
    ]
    volumes = [
        {"name": SPEC_VOLUME, "configMap": {"name": config_map_name}},
        *({"name": name, "persistentVolumeClaim": {"claimName": volume.pvc}} for name, volume in claims),
    ]
    return _pod_template(container, machine, bundle, cluster, volumes)


def _submitter_template(bundle: SubmissionBundle, cluster: Cluster) -> Manifest:
    """Render the pod that submits a job to Ray and prints its log; KubeRay adds its command."""
    resources = {"cpu": "500m", "memory": "1Gi"}
    container = {
        "name": SUBMITTER_CONTAINER,
        "image": cluster.image,
        "resources": {"requests": resources, "limits": resources},
        "securityContext": _container_security_context(),
    }
    return _pod_template(container, cluster.head, bundle, cluster, [])


def _pod_template(
    container: Manifest,
    machine: PodTemplate,
    bundle: SubmissionBundle,
    cluster: Cluster,
    volumes: list[Manifest],
) -> Manifest:
    spec = _drop_none(
        serviceAccountName=cluster.service_account,
        imagePullSecrets=[{"name": name} for name in cluster.image_pull_secrets] or None,
        nodeSelector=machine.node_selector or None,
        tolerations=[toleration.model_dump(exclude_none=True) for toleration in machine.tolerations] or None,
        securityContext={
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _GROUP,
            "fsGroup": _GROUP,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        containers=[container],
        volumes=volumes or None,
        restartPolicy="Never",
    )
    return {"metadata": {"labels": _labels(bundle)}, "spec": spec}


def _container(name: str, machine: PodTemplate, cluster: Cluster, bundle: SubmissionBundle) -> Manifest:
    """Render a container whose requests equal its limits (QoS class Guaranteed)."""
    resources = {"cpu": machine.cpu, "memory": machine.memory}
    if machine.gpus:
        resources["nvidia.com/gpu"] = str(machine.gpus)
    serve_variables = SERVE_ENV if bundle.kind == "service" else {}
    variables = {"RAY_USAGE_STATS_ENABLED": "0", **serve_variables, **cluster.env}
    return _drop_none(
        name=name,
        image=cluster.image,
        resources={"requests": resources, "limits": dict(resources)},
        env=[{"name": key, "value": value} for key, value in variables.items()],
        envFrom=[{"secretRef": {"name": secret}} for secret in cluster.secrets.env] or None,
        securityContext=_container_security_context(),
    )


def _container_security_context() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _labels(bundle: SubmissionBundle) -> dict[str, str]:
    return {**MANAGED_BY_LABELS, KIND_LABEL: bundle.kind, NAME_LABEL: bundle.name}


def _ray_labels(machine: PodTemplate) -> dict[str, str] | None:
    return {_ACCELERATOR_LABEL: machine.accelerator} if machine.accelerator else None


def _ceil_seconds(seconds: float | None) -> int | None:
    return None if seconds is None else math.ceil(seconds)


def _drop_none(**fields: Any) -> Manifest:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
