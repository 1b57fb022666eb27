"""The Ray Train run of a job: Ray starts, restarts and resizes the workers, and can abort them.

Imports Ray, so `rayfuse.training.ray_session.connect` must run before.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import fsspec
import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.callback import ControllerCallback

from rayfuse.errors import UnavailableError
from rayfuse.spec.job import Job
from rayfuse.training.loopback_group import build_torch_config, remove_files
from rayfuse.training.metrics_actor import MetricsActor, Record, RecordReceiver, create_metrics_actor
from rayfuse.training.ray_errors import first_line, is_permanent, unwrap_error
from rayfuse.training.ray_session import FitThread, remove_placement_group, train_settings
from rayfuse.training.runs import RunFolder

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_LOG = logging.getLogger(__name__)

_ABORT_SECONDS = 20.0
_START_SECONDS = 300.0
"""A controller that starts later than this after an interrupt is not ended."""
_SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"
"""File of Ray Train's list of checkpoints, in the folder of the run."""


class ControllerLostError(UnavailableError):
    """The controller of a Ray Train run was killed, and its workers with it."""


class RayRun:
    """A Ray Train run of a job, which starts when this object is made.

    `config` is the argument of `train_loop_per_worker` without the metrics actor. The run's own checkpoints decide
    where the workers resume: Ray Train's list of them, which may name checkpoints that were removed since, is deleted.
    """

    def __init__(self, job: Job, run: RunFolder, config: dict[str, Any]) -> None:
        self._metrics_actor = create_metrics_actor()
        self._receiver = RecordReceiver()
        self._progress: dict[str, Any] = {}
        self.is_training = False
        """True once a `pull` has reported that the first step begins."""
        self._controller: ActorHandle[Any] | None = None
        self._placement_group: str | None = None
        run.remove(_SNAPSHOT_FILE)
        self._torch_config = build_torch_config("nccl" if job.compute.gpus_per_worker else "gloo")
        config = {**config, "metrics_actor": self._metrics_actor}
        trainer = _build_trainer(job, run, config, self._torch_config)
        self._fit: FitThread[Result] = FitThread(lambda: _fit(trainer, job))

    def pull(self) -> tuple[list[Record], dict[str, Any]]:
        """Return the new records of the workers, and the latest progress. While the actor restarts, nothing is new."""
        records: list[Record] = []
        with suppress(RayActorError):
            pull: Any = self._metrics_actor.pull.remote(self._receiver.confirmed)
            update = ray.get(pull)
            self._progress = update.progress or self._progress
            self._controller = update.controller or self._controller
            records = self._receiver.receive(update.records)
        if self.wait(0) and self._fit.error is None:
            records += self._receiver.receive(self._returned()["records"])
        self.is_training |= any("first_step" in record for record in records)
        self._placement_group = next(
            (record["placement_group"] for record in reversed(records) if "placement_group" in record),
            self._placement_group,
        )
        return records, self._progress

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds` for the end of the run; return whether it has ended."""
        return self._fit.wait(seconds)

    def result(self) -> Result:
        """Wait for the end of the run and return Ray Train's result.

        Raises the worker's error that ended it, or ControllerLostError.
        """
        try:
            return self._fit.result()
        except RayActorError as error:
            raise ControllerLostError(f"the controller of Ray Train has died: {first_line(error)}") from None

    def summary(self) -> dict[str, Any]:
        """Wait for the end of the run and return the summary of rank 0. Raises as `result`."""
        summary: dict[str, Any] = self._returned()["summary"]
        return summary

    def _returned(self) -> dict[str, Any]:
        """Return what rank 0 returned from `train_loop_per_worker`."""
        returned: dict[str, Any] = cast(Any, self.result()).return_value
        return returned

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint after their current step, to report it, and to wait for `abort`."""
        self._metrics_actor.request_stop.remote()

    def abort(self) -> None:
        """End the controller, the workers and their placement group, and nothing else of the cluster."""
        controller = self._wait_for_controller()
        if controller is None:
            return
        with suppress(RayActorError, GetTimeoutError):  # the controller exits when it has ended its workers
            ray.get(controller.abort.remote(), timeout=_ABORT_SECONDS)
        if not self.wait(_ABORT_SECONDS):
            _LOG.warning("the workers did not end within %g s; they end with this process", _ABORT_SECONDS)

    def close(self) -> None:
        """End the metrics actor, and workers whose controller was killed, and remove their files."""
        ray.kill(self._metrics_actor)
        if self._placement_group is not None:
            remove_placement_group(self._placement_group)
        remove_files(self._torch_config)

    def _wait_for_controller(self) -> "ActorHandle[Any] | None":
        """Return the controller, which may still be starting; None if the run has ended."""
        deadline = time.monotonic() + _START_SECONDS
        while not self.wait(0.2) and time.monotonic() < deadline:
            self.pull()
            if self._controller is not None:
                return self._controller
        return None


class _RegisterController(ControllerCallback):
    """Leaves the handle of Ray Train's controller, which `fit` does not return, with the metrics actor."""

    def __init__(self, metrics_actor: "ActorHandle[MetricsActor]") -> None:
        self._metrics_actor = metrics_actor

    def after_controller_start(self, train_run_context: Any) -> None:
        """Register the controller; Ray Train calls this in it, before the workers start."""
        self._register()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Register the controller again, as the metrics actor may have restarted."""
        self._register()

    def _register(self) -> None:
        self._metrics_actor.set_controller.remote(ray.get_runtime_context().current_actor)


class _FailFast(UserCallback):
    """Ends the run where a worker failed for a reason that another attempt would meet again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise a permanent error; Ray Train calls this in the controller, before it restarts the workers."""
        for error in worker_exceptions.values():
            if is_permanent(error):
                raise unwrap_error(error)


class _Trainer(TorchTrainer):
    """Ray's trainer without the actor for datasets of Ray Data, which starts also where there are none."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # the stubs are those of v1
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]


def _fit(trainer: TorchTrainer, job: Job) -> Result:
    with train_settings(job):
        return trainer.fit()


def _build_trainer(
    job: Job, run: RunFolder, config: dict[str, Any], torch_config: TorchConfig
) -> TorchTrainer:
    from rayfuse.training.worker import (
        train_loop_per_worker,
    )  # heavy, and the controller imports this module too

    storage, filesystem = _split_storage(run.url.rpartition("/")[0])
    compute, metric = job.compute, job.selection_metric
    resources = {"CPU": compute.cpus_per_worker}
    if compute.gpus_per_worker:
        resources["GPU"] = compute.gpus_per_worker
    return _Trainer(
        cast("Callable[[dict[str, Any]], None]", train_loop_per_worker),
        train_loop_config=config,
        torch_config=torch_config,
        scaling_config=cast(Any, ScalingConfig)(  # the type stubs are those of Ray Train v1
            num_workers=compute.workers,
            use_gpu=bool(compute.gpus_per_worker),
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=compute.resize_interval,
        ),
        run_config=RunConfig(
            name=run.status.name,
            storage_path=storage,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=CheckpointConfig(  # sorts `Result.best_checkpoints`, and removes nothing
                checkpoint_score_attribute=metric, checkpoint_score_order=job.metric_modes()[metric]
            ),
            callbacks=cast(Any, [_FailFast(), _RegisterController(config["metrics_actor"])]),
        ),
    )


def _split_storage(url: str) -> tuple[str, Any]:
    """Return a storage path and a pyarrow filesystem; None for a local folder."""
    if "://" not in url:
        return url, None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = fsspec.url_to_fs(url)
    return path, PyFileSystem(FSSpecHandler(fs))
