"""Memory of jobs and of the trials of sweeps, compared with that of the machines before anything starts."""

import logging
import os
import sys
from typing import TYPE_CHECKING

from rayfuse.errors import SpecError
from rayfuse.spec.job import Job

if TYPE_CHECKING:
    from rayfuse.cluster.rayjobs import RayJobClient
    from rayfuse.cluster.submission import SubmissionBundle
    from rayfuse.estimate.admission import WorkerMemory
    from rayfuse.spec.cluster import Cluster
    from rayfuse.spec.search_space import SearchSpace

_MAX_REPORTED = 10

_log = logging.getLogger(__name__)


def check_pods(bundle: "SubmissionBundle", cluster: "Cluster", cluster_file: str) -> None:
    """Raise SpecError for a job, or trials of a sweep, whose workers need more memory than the pods of a cluster have."""
    if not bundle.memory_jobs or not _can_estimate():
        return
    from rayfuse.cluster.sizing import WorkerRequirements, least_memory
    from rayfuse.estimate.admission import WorkerMemory, find_misfits
    from rayfuse.estimate.gpu_specs import GPU_SPECS

    def memory_of(job: Job) -> "WorkerMemory":
        pods = least_memory(WorkerRequirements.of_job(job, bundle.concurrent_trials, ""), cluster)
        place = f"in a pod of `{pods.path}` of {cluster_file}"
        return WorkerMemory(place, pods.bytes_per_worker, GPU_SPECS.get(pods.accelerator or ""))

    _raise(bundle.source_file, find_misfits(bundle.memory_jobs, memory_of, loads_models=False))


def check_nodes(bundle: "SubmissionBundle", client: "RayJobClient", address: str) -> None:
    """Raise SpecError for a job, or trials of a sweep, with a worker that needs more memory than any node has."""
    if not bundle.memory_jobs or not _can_estimate():
        return
    from rayfuse.estimate.admission import WorkerMemory, find_misfits

    largest = client.largest_node_memory()
    if largest is not None:
        memory = WorkerMemory(f"on the largest node of {address}", largest)
        _raise(bundle.source_file, find_misfits(bundle.memory_jobs, lambda job: memory, loads_models=False))


def check_this_machine(space: "SearchSpace", where: str) -> None:
    """Raise SpecError for trials of a sweep whose workers together need more memory than this machine has.

    Not checked where Ray is running already, as its nodes may be other machines.
    """
    if os.environ.get("RAY_ADDRESS") or _is_connected() or not _can_estimate():
        return
    import psutil

    from rayfuse.estimate.admission import WorkerMemory, find_misfits
    from rayfuse.spec.memory_options import memory_combinations
    from rayfuse.spec.search_space import format_values

    total = int(psutil.virtual_memory().total)
    trials = [
        (f"{format_values(values)}: ", space.trial_job(values)) for values in memory_combinations(space)
    ]
    _raise(
        where,
        find_misfits(trials, lambda job: WorkerMemory("on this machine", total // job.compute.max_workers)),
    )


def _is_connected() -> bool:
    """Return whether this process is connected to Ray, without importing it: that would fix its settings."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _can_estimate() -> bool:
    """Return whether this machine has what estimates need, which submissions do not."""
    try:
        import rayfuse.estimate.admission  # noqa: F401
    except ImportError as error:
        _log.info("memory is not estimated: %s", error)
        return False
    return True


def _raise(where: str, problems: list[str]) -> None:
    if problems:
        left = len(problems) - _MAX_REPORTED
        lines = [f"{where}: {problem}" for problem in problems[:_MAX_REPORTED]]
        raise SpecError("\n".join([*lines, *([f"{where}: … and {left} more"] if left > 0 else [])]))
