"""From a packed spec to what KubeRay runs. Pure functions; no client, no cluster.

A job or sweep becomes a RayJob with a cluster of just its size, a service a RayService, and the spec's files a
ConfigMap beside it. The ConfigMap's name holds a digest of its content: a changed service then gets a new cluster
that reads the new spec from its first second on, while the old one answers until the new one does.
"""

import math
import secrets
from typing import Any

import yaml

from rayfuse.cluster import sizing
from rayfuse.cluster.travel import VERBS, Parcel
from rayfuse.errors import SpecError
from rayfuse.spec.cluster import SPEC_FOLDER, Cluster, Machine, WorkerGroup, is_dns1035
from rayfuse.spec.job import Job
from rayfuse.spec.service import Service

API_VERSION = "ray.io/v1"
ENTRY = "rayfuse.serve.endpoint:from_spec"
KIND_LABEL = "rayfuse/kind"
NAME_LABEL = "rayfuse/name"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
MANAGED_BY = {"app.kubernetes.io/managed-by": "rayfuse"}
SUBMITTER = "ray-job-submitter"
"""KubeRay's name for the container whose log is the job's."""

LONGEST_NAME = 47
"""Of a RayJob or RayService: KubeRay appends to it."""

_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # as Kubernetes' own: no words come of them
_SPEC_VOLUME = "rayfuse-spec"
_ACCELERATOR_LABEL = "ray.io/accelerator-type"
_USER, _GROUP = 1000, 100  # of the images of Ray, and of ours

Manifest = dict[str, Any]


def render(parcel: Parcel, cluster: Cluster, cluster_file: str, name: str | None = None) -> list[Manifest]:
    """The ConfigMap and the RayJob or RayService of a packed spec, in the order in which to apply them.

    Raises SpecError where `name`, or the spec's own, cannot be one on KubeRay, or the spec does not fit.
    """
    chosen = object_name(parcel, name)
    spec_map = f"{chosen}-spec-{parcel.digest}"
    if parcel.service is not None:
        body = _ray_service(parcel, parcel.service, cluster, cluster_file, spec_map)
    else:
        assert parcel.job is not None
        body = _ray_job(parcel, parcel.job, cluster, cluster_file, spec_map)
    labels = {**_labels(parcel), **({QUEUE_LABEL: cluster.queue} if cluster.queue else {})}
    kind = "RayJob" if parcel.service is None else "RayService"
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": spec_map, "namespace": cluster.namespace, "labels": _labels(parcel)},
            "immutable": True,
            "data": parcel.files,
        },
        {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": chosen, "namespace": cluster.namespace, "labels": labels},
            "spec": body,
        },
    ]


class _Dumper(yaml.SafeDumper):
    """YAML for people: texts of several lines as they are, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def to_yaml(manifests: list[Manifest]) -> str:
    """The manifests as the documents of one file, for `kubectl apply`."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def object_name(parcel: Parcel, given: str | None) -> str:
    """A service keeps its name, and submitting it again changes it; every job gets a name of its own."""
    if given is not None:
        return _checked_name(given, "--name")
    if parcel.service is not None:
        return _checked_name(parcel.name, f"{parcel.where}: name")
    return job_name(parcel)


def job_name(parcel: Parcel) -> str:
    """A name that no other job has, made of the spec's."""
    suffix = "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(5))
    plain = "".join(letter if letter.isalnum() else "-" for letter in parcel.name.lower())
    stem = plain if plain[0].isalpha() else f"{parcel.kind}-{plain}"
    return f"{stem[: LONGEST_NAME - len(suffix) - 1].rstrip('-')}-{suffix}"


def _checked_name(name: str, path: str) -> str:
    if not is_dns1035(name, LONGEST_NAME):
        raise SpecError(
            f"{path}: {name!r} is not a name for KubeRay; write at most {LONGEST_NAME} of a-z, 0-9 and -, starting "
            "with a letter" + ("" if path == "--name" else ", or give such a --name")
        )
    return name


def _ray_job(parcel: Parcel, job: Job, cluster: Cluster, cluster_file: str, spec_map: str) -> Manifest:
    compute, submission = job.compute, cluster.submission
    workers = sizing.Workers(
        needed=compute.fewest,
        wanted=compute.most * parcel.trials,
        cpus=compute.cpus_per_worker,
        gpus=compute.gpus_per_worker,
        path="compute.workers" if parcel.kind == "job" else "compute.workers of a trial",
    )
    counts = sizing.pods(workers, cluster, parcel.where, cluster_file)
    groups = [
        _worker_group(name, group, cluster, parcel, spec_map, (counts[name],) * 3)
        for name, group in cluster.workers.items()
        if counts[name]
    ]
    submitter = _submitter(parcel, cluster) if submission.mode == "K8sJobMode" else None
    return _given(
        entrypoint=f"rayfuse {VERBS[parcel.kind]} {SPEC_FOLDER}/{parcel.file}",
        metadata={KIND_LABEL: parcel.kind, NAME_LABEL: parcel.name},
        submissionMode=submission.mode,
        submitterPodTemplate=submitter,
        shutdownAfterJobFinishes=submission.shutdown,
        ttlSecondsAfterFinished=_whole_seconds(submission.ttl),
        activeDeadlineSeconds=_whole_seconds(submission.deadline),
        backoffLimit=submission.retries,
        rayClusterSpec=_ray_cluster(parcel, cluster, spec_map, groups),
    )


def _ray_service(
    parcel: Parcel, service: Service, cluster: Cluster, cluster_file: str, spec_map: str
) -> Manifest:
    replicas = service.replicas

    def pods(count: int, path: str) -> dict[str, int]:
        workers = sizing.Workers(count, count, replicas.cpus, replicas.gpus, path)
        return sizing.pods(workers, cluster, parcel.where, cluster_file)

    pods(replicas.max, "replicas.max")
    first = pods(replicas.min, "replicas.min")
    groups = [
        _worker_group(name, group, cluster, parcel, spec_map, (group.min, first[name], group.max))
        for name, group in cluster.workers.items()
    ]
    config = {
        "http_options": {"host": "0.0.0.0", "port": service.port},
        "applications": [
            {
                "name": service.name,
                "route_prefix": service.prefix,
                "import_path": ENTRY,
                "args": {"spec": f"{SPEC_FOLDER}/{parcel.file}", "digest": parcel.digest},
            }
        ],
    }
    ray_cluster = _ray_cluster(parcel, cluster, spec_map, groups, service.port)
    if any(group.min < group.max for group in cluster.workers.values()):
        ray_cluster["enableInTreeAutoscaling"] = True
    return {"serveConfigV2": yaml.safe_dump(config, sort_keys=False), "rayClusterConfig": ray_cluster}


def _ray_cluster(
    parcel: Parcel, cluster: Cluster, spec_map: str, groups: list[Manifest], serve_port: int | None = None
) -> Manifest:
    """The head, which leaves the work to workers if there are any, and groups of them."""
    head = _container("ray-head", cluster.head, cluster)
    if serve_port is not None:
        ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": serve_port}
        head["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    own = {"num-cpus": "0"} if cluster.workers else {}
    return {
        "rayVersion": cluster.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": _given(
            rayStartParams={**own, **cluster.head.ray},
            labels=_ray_labels(cluster.head),
            template=_pod(head, cluster.head, parcel, cluster, spec_map),
        ),
        **({"workerGroupSpecs": groups} if groups else {}),
    }


def _worker_group(
    name: str,
    group: WorkerGroup,
    cluster: Cluster,
    parcel: Parcel,
    spec_map: str,
    counts: tuple[int, int, int],
) -> Manifest:
    """A group of pods; `counts` are the fewest, the first and the most of them."""
    fewest, first, most = counts
    return _given(
        groupName=name,
        minReplicas=fewest,
        replicas=first,
        maxReplicas=most,
        rayStartParams=group.ray,
        labels=_ray_labels(group),
        template=_pod(_container("ray-worker", group, cluster), group, parcel, cluster, spec_map),
    )


def _pod(container: Manifest, machine: Machine, parcel: Parcel, cluster: Cluster, spec_map: str) -> Manifest:
    """A pod of Ray, with the spec and the volumes in it."""
    claims = cluster.volumes.items()
    container["volumeMounts"] = [
        {"name": _SPEC_VOLUME, "mountPath": SPEC_FOLDER, "readOnly": True},
        *({"name": name, "mountPath": volume.path} for name, volume in claims),
    ]
    volumes = [
        {"name": _SPEC_VOLUME, "configMap": {"name": spec_map}},
        *({"name": name, "persistentVolumeClaim": {"claimName": volume.claim}} for name, volume in claims),
    ]
    return _template(container, machine, parcel, cluster, volumes)


def _submitter(parcel: Parcel, cluster: Cluster) -> Manifest:
    """The pod that hands a job to Ray and prints its log; KubeRay puts the command in."""
    resources = {"cpu": "500m", "memory": "1Gi"}
    container = {
        "name": SUBMITTER,
        "image": cluster.image,
        "resources": {"requests": resources, "limits": resources},
        "securityContext": _confined(),
    }
    return _template(container, cluster.head, parcel, cluster, [])


def _template(
    container: Manifest, machine: Machine, parcel: Parcel, cluster: Cluster, volumes: list[Manifest]
) -> Manifest:
    spec = _given(
        serviceAccountName=cluster.service_account,
        imagePullSecrets=[{"name": name} for name in cluster.pull_secrets] or None,
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
    return {"metadata": {"labels": _labels(parcel)}, "spec": spec}


def _container(name: str, machine: Machine, cluster: Cluster) -> Manifest:
    """Requests are limits, so that no neighbour takes the memory that was promised."""
    resources = {"cpu": machine.cpu, "memory": machine.memory}
    if machine.gpus:
        resources["nvidia.com/gpu"] = str(machine.gpus)
    variables = {"RAY_USAGE_STATS_ENABLED": "0", **cluster.env}
    return _given(
        name=name,
        image=cluster.image,
        resources={"requests": resources, "limits": dict(resources)},
        env=[{"name": key, "value": value} for key, value in variables.items()],
        envFrom=[{"secretRef": {"name": secret}} for secret in cluster.secrets.env] or None,
        securityContext=_confined(),
    )


def _confined() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _labels(parcel: Parcel) -> dict[str, str]:
    return {**MANAGED_BY, KIND_LABEL: parcel.kind, NAME_LABEL: parcel.name}


def _ray_labels(machine: Machine) -> dict[str, str] | None:
    return {_ACCELERATOR_LABEL: machine.accelerator} if machine.accelerator else None


def _whole_seconds(seconds: float | None) -> int | None:
    return None if seconds is None else math.ceil(seconds)


def _given(**fields: Any) -> Manifest:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}
