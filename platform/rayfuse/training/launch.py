"""The driver of a training run: rows, workers, and the summary."""

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rayfuse.data.dataset import Dataset, load_dataset
from rayfuse.data.ray_tasks import map_on_ray
from rayfuse.data.store import RowDataset, RowStore
from rayfuse.errors import INTERRUPT_EXCEPTIONS, ResourceError, RunInterruptedError
from rayfuse.formatting import no_capacity, plural
from rayfuse.signals import signum_of
from rayfuse.spec.job import Job
from rayfuse.training.checkpoints import list_checkpoints
from rayfuse.training.deepspeed_config import load_deepspeed_config
from rayfuse.training.metrics_actor import Record
from rayfuse.training.ray_session import connect
from rayfuse.training.runs import RunFolder

if TYPE_CHECKING:
    from rayfuse.training.ray_trainer import RayRun

_LOG = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
"""For this long, an interrupted run may save a checkpoint."""

LogFn = Callable[[str], None]


def load_rows(job: Job, log: LogFn = _LOG.info) -> tuple[Job, Dataset]:
    """Read and validate the rows of a job on the Ray cluster; return the fitted job and its dataset.

    The rows are stored below `rows` in the job's storage until this process no longer needs them.

    Raises:
        DataError: The rows cannot be used.
        ResourceError: The workers do not fit on the cluster.
        UnavailableError: The cluster does not respond.
    """
    connect(job)
    _check_capacity(job)  # without it, reading could wait forever as well
    log("reading and validating all rows")
    store = RowStore.create_in(f"{job.output.storage}/rows", job.compute.disk_cache)
    return load_dataset(job, store, map_on_ray)


OnUpdate = Callable[[list[Record], dict[str, Any]], None]
"""Receives new records and the latest progress about twice a second."""


def train(
    job: Job,
    splits: Mapping[str, RowDataset],
    run: RunFolder,
    on_update: OnUpdate,
    evaluate: bool = True,
    teacher: str | None = None,
    profile_steps: int = 0,
) -> dict[str, Any]:
    """Train `job` on the splits of a dataset, in the folder of `run`, from its last checkpoint if it has one.

    `on_update` is called about twice a second. Without `evaluate`, the summary has the validation metrics only.
    `teacher` is the URL that `copy_teacher` returned; `profile_steps` the number of steps to profile.

    Returns:
        The summary of rank 0, with the URL of the best checkpoint, or of the soup, as `checkpoint`.

    Raises:
        RayfuseError: The error of the worker that ended the training; complete checkpoints remain.
        ControllerLostError: The controller of Ray Train was killed more than `compute.max_failures` times.
        RunInterruptedError: Ctrl-C, SIGTERM or SIGHUP, after a checkpoint at the next step if that takes at most
            `train.checkpoint.interrupt_timeout`. The run's own actors and placement group are removed, Ray continues.
    """
    connect(job)
    _check_capacity(job)
    from rayfuse.training.ray_trainer import ControllerLostError

    config: dict[str, Any] = {"evaluate": evaluate, "teacher": teacher, "profile_steps": profile_steps}
    config |= {"job": job.model_dump_json(), "deepspeed": load_deepspeed_config(job), "splits": dict(splits)}
    for failures in itertools.count(1):
        try:
            return _train_once(job, run, {**config, "run": run.url}, on_update)
        except ControllerLostError as error:
            if failures > job.compute.max_failures:
                raise
            _LOG.warning("%s; starting again from the last checkpoint", error)
    raise AssertionError


def _train_once(job: Job, run: RunFolder, config: dict[str, Any], on_update: OnUpdate) -> dict[str, Any]:
    """Run Ray Train until its controller ends."""
    from rayfuse.training.ray_trainer import RayRun

    ray_run = RayRun(job, run, config)
    try:
        _follow(ray_run, on_update)
        return ray_run.summary()
    except INTERRUPT_EXCEPTIONS as error:
        _save_and_stop(ray_run, job.train.checkpoint.interrupt_timeout, on_update)
        ray_run.abort()
        raise RunInterruptedError(_interrupted_message(run), signum_of(error)) from None
    except BaseException:
        ray_run.abort()
        raise
    finally:
        ray_run.close()


def _follow(ray_run: "RayRun", on_update: OnUpdate) -> None:
    """Pass on what the workers report until the run has ended."""
    ended = False
    while not ended:
        ended = ray_run.wait(_POLL_SECONDS)
        on_update(*ray_run.pull())


def _save_and_stop(ray_run: "RayRun", timeout: float, on_update: OnUpdate) -> None:
    """Let workers that train save a checkpoint within `timeout` seconds; another signal skips that."""
    with suppress(*INTERRUPT_EXCEPTIONS):
        _LOG.info("interrupted; saving a checkpoint")
        ray_run.request_stop()
        deadline = time.monotonic() + timeout
        while not ray_run.wait(0.1) and time.monotonic() < deadline:
            records, progress = ray_run.pull()
            on_update(records, progress)
            if not ray_run.is_training or any("stopped" in record for record in records):
                return
        on_update(*ray_run.pull())


def _interrupted_message(run: RunFolder) -> str:
    checkpoint = next(iter(list_checkpoints(run.url)), None)
    if checkpoint is None:
        return (
            f"interrupted before the first checkpoint; run the same command again to start over in {run.url}"
        )
    return f"interrupted; the checkpoint of step {checkpoint.step} is in {run.url}; run the same command again to resume"


def max_concurrent_jobs(job: Job) -> int:
    """Return how many runs of `job`, with the minimum of workers each, fit on the nodes of the cluster at a time."""
    import ray

    each = {"CPU": job.compute.cpus_per_worker, "GPU": job.compute.gpus_per_worker}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = sum(
        min(int(node.get(name, 0) / amount) for name, amount in each.items() if amount) for node in nodes
    )
    return workers // job.compute.min_workers


def _check_capacity(job: Job) -> None:
    """Raise ResourceError if the minimum of workers does not fit on the cluster, where they would wait forever."""
    if not max_concurrent_jobs(job):
        raise ResourceError(f"compute.workers: {capacity_message(job)}")


def capacity_message(job: Job) -> str:
    """Return why the workers of `job` do not fit on the cluster, and the remedy."""
    import ray

    total, compute = ray.cluster_resources(), job.compute
    lacking = no_capacity(compute.min_workers, compute.cpus_per_worker, compute.gpus_per_worker)
    return (
        f"{lacking} on the cluster, whose nodes have {plural(total.get('CPU', 0), 'CPU')} and "
        f"{plural(total.get('GPU', 0), 'GPU')}; lower compute.workers, "
        "compute.cpus_per_worker or compute.gpus_per_worker"
    )


def make_record(step: int, metrics: Mapping[str, float]) -> Record:
    """Return a record of the driver."""
    return {"time": time.time(), "step": step, "metrics": dict(metrics)}
