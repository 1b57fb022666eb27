"""Allocate the workers of a spec to the pods of a cluster spec's groups."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rayfuse.errors import SpecError
from rayfuse.formatting import no_capacity
from rayfuse.spec.cluster import Cluster, PodTemplate
from rayfuse.spec.job import Job
from rayfuse.spec.kubernetes import parse_cpu, parse_memory

_UNLIMITED = 1_000_000


@dataclass(frozen=True)
class WorkerRequirements:
    """Number and size of the Ray workers that a spec starts."""

    min_workers: int
    """Minimum number of workers."""
    max_workers: int
    """Maximum number of workers."""
    cpus: float
    """CPUs of each worker."""
    gpus: float
    """GPUs of each worker."""
    spec_path: str
    """Field of the spec that sets `min_workers`, for messages."""

    @classmethod
    def of_job(cls, job: Job, concurrent_trials: int, spec_path: str) -> "WorkerRequirements":
        """Return the workers of a job, or of as many trials of a sweep that run at a time."""
        compute = job.compute
        return cls(
            min_workers=compute.min_workers,
            max_workers=compute.max_workers * concurrent_trials,
            cpus=compute.cpus_per_worker,
            gpus=compute.gpus_per_worker,
            spec_path=spec_path,
        )


def allocate_pods(
    workers: WorkerRequirements, cluster: Cluster, where: str, cluster_file: str
) -> dict[str, int]:
    """Return the number of pods of each group, within its min and max, for `max_workers` or as many as fit.

    Workers without GPUs use groups with GPUs last. Empty where the cluster spec has no groups and the head runs the
    workers. Raises SpecError where `min_workers` do not fit.
    """
    per_pod = {name: workers_per_pod(group, workers) for name, group in cluster.workers.items()}
    counts, left = {}, workers.max_workers
    for name in sorted(cluster.workers, key=lambda name: cluster.workers[name].gpus > 0):
        group, each = cluster.workers[name], per_pod[name]
        used = min(group.max, math.ceil(left / each)) if each else 0
        counts[name] = max(group.min, used)
        left = max(0, left - counts[name] * each)
    if not cluster.workers:
        left = max(0, left - workers_per_pod(cluster.head, workers))
    placed = workers.max_workers - left
    if placed < workers.min_workers:
        raise SpecError(
            f"{where}: {workers.spec_path}: {_insufficient_capacity_message(workers, cluster, per_pod, cluster_file)}"
        )
    return {name: counts[name] for name in cluster.workers}


@dataclass(frozen=True)
class PodMemory:
    """Memory of each worker in the pods of a group."""

    path: str
    """Path of the pods in the cluster spec: head, or workers.NAME."""
    bytes_per_worker: int
    """Bytes of a pod, divided by its workers."""
    accelerator: str | None
    """Kind of its GPUs; None: unknown or none."""


def least_memory(workers: WorkerRequirements, cluster: Cluster) -> PodMemory:
    """Return the memory of the workers that have the least, in the pods that run them.

    Raises SpecError where the pods have no room for them.
    """
    counts = allocate_pods(workers, cluster, "", "")
    groups = {f"workers.{name}": cluster.workers[name] for name, count in counts.items() if count}
    pods: Mapping[str, PodTemplate] = groups or {"head": cluster.head}
    found = [
        PodMemory(path, parse_memory(pod.memory) // min(each, workers.max_workers), pod.accelerator)
        for path, pod in pods.items()
        if (each := workers_per_pod(pod, workers))
    ]
    return min(found, key=lambda pod: pod.bytes_per_worker)


def workers_per_pod(machine: PodTemplate, workers: WorkerRequirements) -> int:
    """Return how many workers fit into one pod; KubeRay rounds the CPUs of a pod up."""
    by_cpu = math.ceil(parse_cpu(machine.cpu)) / workers.cpus if workers.cpus else _UNLIMITED
    by_gpu = machine.gpus / workers.gpus if workers.gpus else _UNLIMITED
    return math.floor(min(by_cpu, by_gpu) + 1e-9)


def _insufficient_capacity_message(
    workers: WorkerRequirements, cluster: Cluster, per_pod: dict[str, int], cluster_file: str
) -> str:
    noun = "replica" if workers.spec_path.startswith("replicas") else "worker"
    needed = f"{no_capacity(workers.min_workers, workers.cpus, workers.gpus, noun)} into {cluster_file}"
    if not cluster.workers:
        fit = workers_per_pod(cluster.head, workers)
        return f"{needed}, whose head has capacity for {fit}; add a group to `workers`, or request fewer"
    capacity = ", ".join(
        f"{name}: {per_pod[name]} in each of {group.max} pods" for name, group in cluster.workers.items()
    )
    return f"{needed} ({capacity}); raise the `max` of a group, or request fewer"
