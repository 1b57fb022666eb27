"""How many pods of which group a spec needs. Pure arithmetic on the cluster spec."""

import math
from dataclasses import dataclass

from rayfuse.errors import SpecError
from rayfuse.spec.cluster import Cluster, Machine, cores

_ANY_NUMBER = 1_000_000


@dataclass(frozen=True)
class Workers:
    """Equal processes of Ray that a spec starts."""

    needed: int
    """Fewer make no sense."""
    wanted: int
    """More have nothing to do."""
    cpus: float
    gpus: float
    path: str
    """The field of the spec that asks for `needed`."""


def pods(workers: Workers, cluster: Cluster, where: str, cluster_file: str) -> dict[str, int]:
    """Group → number of pods, between its min and max, that hold `wanted` workers or as many as fit.

    GPUs are left alone by what does not need them, as long as other groups have room. Empty where the head does the
    work. Raises SpecError where not even `needed` of them fit.
    """
    room = {name: capacity(group, workers) for name, group in cluster.workers.items()}
    counts, left = {}, workers.wanted
    for name in sorted(cluster.workers, key=lambda name: cluster.workers[name].gpus > 0):
        group, each = cluster.workers[name], room[name]
        used = min(group.max, math.ceil(left / each)) if each else 0
        counts[name] = max(group.min, used)
        left = max(0, left - counts[name] * each)
    if not cluster.workers:
        left = max(0, left - capacity(cluster.head, workers))
    placed = workers.wanted - left
    if placed < workers.needed:
        raise SpecError(f"{where}: {workers.path}: {_too_much(workers, cluster, room, cluster_file)}")
    return {name: counts[name] for name in cluster.workers}


def capacity(machine: Machine, workers: Workers) -> int:
    """How many of the workers fit into one pod. KubeRay tells Ray the CPUs of a pod rounded up."""
    by_cpu = math.ceil(cores(machine.cpu)) / workers.cpus if workers.cpus else _ANY_NUMBER
    by_gpu = machine.gpus / workers.gpus if workers.gpus else _ANY_NUMBER
    return math.floor(min(by_cpu, by_gpu) + 1e-9)


def _too_much(workers: Workers, cluster: Cluster, room: dict[str, int], cluster_file: str) -> str:
    gpus = f" and {workers.gpus:g} GPUs" if workers.gpus else ""
    asked = f"{workers.needed} of {workers.cpus:g} CPUs{gpus} each do not fit into {cluster_file}"
    if not cluster.workers:
        return f"{asked}, whose head holds {capacity(cluster.head, workers)}; add a group to `workers`, or ask for less"
    held = ", ".join(
        f"{name}: {room[name]} in each of {group.max}" for name, group in cluster.workers.items()
    )
    return f"{asked}, whose groups hold fewer ({held}); raise the `max` of a group, or ask for less"
