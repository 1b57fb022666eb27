"""One run from rows to a registered model version, as `rayfuse train` does it."""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.cross_validation import CrossValidation, cross_validate
from rayfuse.data.dataset import Dataset
from rayfuse.data.ray_tasks import map_on_ray
from rayfuse.errors import INTERRUPT_EXCEPTIONS, RayfuseError, RunInterruptedError, UnavailableError
from rayfuse.registry.mlflow_connection import connect, resolve_tracking_uri
from rayfuse.registry.model_card import TrainedModel
from rayfuse.registry.recorded_training import METRICS_FILE, log_report, saved_evaluation, train_run
from rayfuse.registry.registration import register
from rayfuse.registry.teacher import fetch_teacher
from rayfuse.registry.tensorboard import check_installed
from rayfuse.registry.tracker import Tracker, check_experiment
from rayfuse.spec.job import Job
from rayfuse.training import launch, ray_session
from rayfuse.training.early_stopping import EpochSelection
from rayfuse.training.export import export_model
from rayfuse.training.preflight import preflight
from rayfuse.training.runs import RunFolder, acquire_run, create_run, find_unfinished_run, heartbeat

if TYPE_CHECKING:
    from mlflow import MlflowClient

ConfirmResume = Callable[[RunFolder], bool]
"""Decides whether to resume an unfinished run."""

_LOG = logging.getLogger(__name__)


def train_and_register(
    job: Job,
    confirm_resume: ConfirmResume = lambda run: True,
    spec_file: str | None = None,
    profile_steps: int = 0,
) -> dict[str, Any]:
    """Train `job`, log it to MLflow and register the exported model as `candidate`.

    An unfinished run of the same job and data is resumed if `confirm_resume` returns true; a run that is trained
    completely is only registered. `profile_steps` is the number of steps to profile. Progress is logged. A Ray that the
    caller started is used and left as it was; another one is shut down at the end.

    Returns:
        {"run_id", "model", "version", "metrics", "evaluated_on", "by_inputs", "validation", "selection_metric",
        "best_epoch", "epochs", "stop_reason", "checkpoint", "run", "folds", "cross_validation"}

    Raises:
        RayfuseError: Any part failed; its results so far stay in the folder of the run.
        RunInterruptedError: Ctrl-C.
    """
    preflight(job)
    check_installed(job)
    client = connect(resolve_tracking_uri(job.output.tracking_uri, job.output.storage))
    check_experiment(client, job.experiment_name)
    with ray_session.connect(job):
        unfitted = job
        job, dataset = launch.load_rows(job, _LOG.info)
        for warning in dataset.report:
            _LOG.info("%s", warning)
        teacher = fetch_teacher(job, dataset.splits["train"], map_on_ray)
        run, resumed = _open_run(job, dataset, confirm_resume)
        tracker = _start_tracker(client, job, dataset, run, resumed, spec_file)
        _LOG.info("%srun %s", "resuming " if resumed else "", run.url)
        with record_failure(run, tracker):
            validated = cross_validate(
                unfitted,
                run,
                partial(_train_fold, client=client, parent=tracker, spec_file=spec_file),
                lambda metrics: tracker.log([launch.make_record(0, metrics)]),
            )
            evaluation = train_run(job, dataset, teacher, run, tracker, profile_steps)
            return _register(job, dataset, run, tracker, evaluation, validated)


def _train_fold(
    job: Job, run: RunFolder, client: "MlflowClient", parent: Tracker, spec_file: str | None
) -> dict[str, float]:
    """Train a fold in a child run of `parent`, or resume that; return its test metrics."""
    saved = saved_evaluation(run)
    if saved is not None and run.status.status == "finished":
        return dict(saved["metrics"])
    job, dataset = launch.load_rows(job, _LOG.info)
    _LOG.info("%s", dataset.report[0])
    teacher = fetch_teacher(job, dataset.splits["train"], map_on_ray)
    resumed = run.status.mlflow_run_id is not None
    tracker = _start_tracker(client, job, dataset, run, resumed, spec_file, parent.run_id)
    with record_failure(run, tracker):
        evaluation = train_run(job, dataset, teacher, run, tracker)
        tracker.finish()
    run.save(status="finished")
    return dict(evaluation["metrics"])


def _open_run(job: Job, dataset: Dataset, confirm_resume: ConfirmResume) -> tuple[RunFolder, bool]:
    """Return the run to train, and whether it is resumed."""
    unfinished = find_unfinished_run(job, dataset.digests)
    if unfinished is None or not confirm_resume(unfinished):
        return create_run(job, dataset.digests), False
    acquire_run(unfinished, _LOG.info)
    return unfinished, True


def _start_tracker(
    client: "MlflowClient",
    job: Job,
    dataset: Dataset,
    run: RunFolder,
    resumed: bool,
    spec_file: str | None,
    parent_run_id: str | None = None,
) -> Tracker:
    """Start the MLflow run, or continue it, and save its id."""
    tracker = Tracker.start(
        client,
        job,
        run.title(job.name),
        run.path(METRICS_FILE),
        run.status.mlflow_run_id,
        spec_file=spec_file,
        log=_LOG.info,
        experiment=job.experiment_name,
        parent_run_id=parent_run_id,
    )
    if resumed:
        tracker.resend()
    run.save(status="running", mlflow_run_id=tracker.run_id, last_heartbeat=0.0)
    heartbeat(run)
    tracker.log_datasets(dataset.digests, {name: len(rows) for name, rows in dataset.splits.items()})
    return tracker


def _register(
    job: Job,
    dataset: Dataset,
    run: RunFolder,
    tracker: Tracker,
    evaluation: dict[str, Any],
    validated: CrossValidation,
) -> dict[str, Any]:
    """Export the best checkpoint, send the remaining records to MLflow, and register the model."""
    selection = EpochSelection.of(job, evaluation["history"])
    _LOG.info("%s", selection)
    about = {"run": run.status.name, "digests": dataset.digests, "metrics": evaluation["metrics"]}
    about["evaluated_on"] = evaluation["split"]
    with tempfile.TemporaryDirectory(prefix="rayfuse-") as scratch:
        folder = export_model(job, evaluation["checkpoint"], run, Path(scratch) / "model", about)
        log_report(job, run, tracker, evaluation, Path(scratch) / "report")
        tracker.finish()  # first: its error explains how to finish a run whose MLflow is unavailable
        others = {"validation": evaluation["best_validation"], "cross_validation": validated.means}
        version = register(
            tracker.client,
            tracker.run_id,
            job,
            folder,
            {name: found for name, found in others.items() if found},
            evaluation,
            dataset.digests,
            _model_card(job, dataset, evaluation, selection, validated),
        )
    run.save(status="finished", version=version)
    return _summary(job, run, tracker, evaluation, validated, selection) | {"version": version}


def _model_card(
    job: Job,
    dataset: Dataset,
    evaluation: Mapping[str, Any],
    selection: EpochSelection,
    validated: CrossValidation,
) -> Callable[[int | None], str]:
    return TrainedModel(
        job,
        {name: len(rows) for name, rows in dataset.splits.items()},
        evaluation["split"],
        evaluation["by_inputs"],
        str(selection),
        str(validated) if validated.folds else "",
    ).card


def _summary(
    job: Job,
    run: RunFolder,
    tracker: Tracker,
    evaluation: Mapping[str, Any],
    validated: CrossValidation,
    selection: EpochSelection,
) -> dict[str, Any]:
    """Return what `train_and_register` returns, without the version."""
    return {
        "run_id": tracker.run_id,
        "model": job.registered_model_name,
        "metrics": evaluation["metrics"],
        "evaluated_on": evaluation["split"],
        "by_inputs": evaluation["by_inputs"],
        "validation": evaluation["best_validation"],
        "selection_metric": selection.selection_metric,
        "best_epoch": selection.best_epoch,
        "epochs": selection.epochs,
        "stop_reason": selection.stop_reason,
        "checkpoint": evaluation["checkpoint"],
        "run": run.url,
        "folds": validated.folds,
        "cross_validation": validated.statistics,
    }


@contextmanager
def record_failure(run: RunFolder, tracker: Tracker) -> Iterator[None]:
    """Save that a run, or a sweep, failed or was interrupted, so that the same command can resume it.

    Its MLflow run is ended too, unless MLflow itself is unavailable. Errors of a storage that is gone are not raised, as they
    would hide the reason.
    """
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, (*INTERRUPT_EXCEPTIONS, RunInterruptedError))
        with suppress(RayfuseError):
            run.save(status="interrupted" if interrupted else "failed")
        if not isinstance(error, UnavailableError):
            tracker.finish("KILLED" if interrupted else "FAILED")
        raise
