"""One run from rows to a registered model version, as `rayfuse train` does it."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfuse.data.dataset import Dataset
from rayfuse.errors import INTERRUPT_EXCEPTIONS, RunInterruptedError, UnavailableError
from rayfuse.estimate.comparison import compare_with_plan
from rayfuse.evaluation.plots import save_plots
from rayfuse.registry.journal import read_journal
from rayfuse.registry.mlflow_connection import connect, resolve_tracking_uri
from rayfuse.registry.registration import register
from rayfuse.registry.teacher import fetch_teacher
from rayfuse.registry.tensorboard import check_installed, event_files
from rayfuse.registry.tracker import Tracker
from rayfuse.spec.job import Job
from rayfuse.training import launch, ray_session
from rayfuse.training.distillation import copy_teacher
from rayfuse.training.export import export_model
from rayfuse.training.metrics_actor import Record
from rayfuse.training.progress import ProgressLine, without_averages
from rayfuse.training.runs import RunFolder, acquire_run, create_run, find_unfinished_run, heartbeat

if TYPE_CHECKING:
    from mlflow import MlflowClient

ConfirmResume = Callable[[RunFolder], bool]
"""Decides whether to resume an unfinished run."""

_METRICS_FILE = "metrics.jsonl"
_EVALUATION_FILE = "evaluation.json"
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
        {"run_id", "model", "version", "metrics", "evaluated_on", "by_inputs", "validation", "checkpoint", "run"}

    Raises:
        RayfuseError: Any part failed; its results so far stay in the folder of the run.
        RunInterruptedError: Ctrl-C.
    """
    launch.preflight(job)
    check_installed(job)
    client = connect(resolve_tracking_uri(job.output.tracking_uri, job.output.storage))
    with ray_session.connect(job):
        job, dataset = launch.load_rows(job, _LOG.info)
        for warning in dataset.report:
            _LOG.info("%s", warning)
        teacher = fetch_teacher(job, dataset.splits["train"])
        run, resumed = _open_run(job, dataset, confirm_resume)
        tracker = _start_tracker(client, job, dataset, run, resumed, spec_file)
        _LOG.info("%srun %s", "resuming " if resumed else "", run.url)
        with closing(ProgressLine()) as progress_line, record_failure(run, tracker):
            evaluation = _train(job, dataset, teacher, run, tracker, progress_line, profile_steps)
            return _register(job, dataset, run, tracker, evaluation)


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
) -> Tracker:
    """Start the MLflow run, or continue it, and save its id."""
    tracker = Tracker.start(
        client,
        job,
        run.status.name,
        run.path(_METRICS_FILE),
        run.status.mlflow_run_id,
        spec_file=spec_file,
        log=_LOG.info,
    )
    if resumed:
        tracker.resend()
    run.save(status="running", mlflow_run_id=tracker.run_id, last_heartbeat=0.0)
    heartbeat(run)
    tracker.log_datasets(dataset.digests, {name: len(rows) for name, rows in dataset.splits.items()})
    return tracker


def _train(
    job: Job,
    dataset: Dataset,
    teacher: Path | None,
    run: RunFolder,
    tracker: Tracker,
    progress_line: ProgressLine,
    profile_steps: int,
) -> dict[str, Any]:
    """Return the evaluation of the trained model; one that an earlier attempt of this run has saved is reused."""
    saved = run.read(_EVALUATION_FILE)
    if saved is not None:
        evaluation: dict[str, Any] = json.loads(saved)
        return evaluation

    copied_teacher = copy_teacher(teacher, run) if teacher else None
    with event_files(job, run.path("tensorboard"), progress_line.write) as log_events:
        recorder = _Recorder(run, tracker, log_events, progress_line)
        evaluation = launch.train(
            job,
            dataset.splits,
            run,
            recorder.on_update,
            teacher=copied_teacher,
            profile_steps=profile_steps,
        )
        named = {f"{evaluation['split']}/{name}": value for name, value in evaluation["metrics"].items()}
        memory, comparison = compare_with_plan(job, dataset.splits["train"], evaluation["memory"])
        progress_line.write(comparison)
        metrics = named | input_subset_metrics(evaluation) | memory
        recorder.log([launch.make_record(evaluation["steps"], metrics)])
    run.write(_EVALUATION_FILE, json.dumps(evaluation, indent=1))
    return evaluation


class _Recorder:
    """Passes the records of a run on to the journal, MLflow, TensorBoard and the progress output."""

    def __init__(
        self,
        run: RunFolder,
        tracker: Tracker,
        log_events: Callable[[list[Record]], None],
        progress_line: ProgressLine,
    ) -> None:
        self._run, self._tracker = run, tracker
        self._log_events, self._progress_line = log_events, progress_line
        journal = read_journal(run.path(_METRICS_FILE))
        self._epochs = {record["epoch"] for record in journal if "epoch" in record}

    def on_update(self, records: list[Record], progress: dict[str, Any]) -> None:
        """Log new records, without the validations that workers replay after a restart and that are known."""
        heartbeat(self._run)
        new = [
            record for record in records if "replayed" not in record or record["epoch"] not in self._epochs
        ]
        self._epochs.update(record["epoch"] for record in new if "epoch" in record)
        self.log(new)
        self._progress_line.update(new, progress)

    def log(self, records: list[Record]) -> None:
        """Log records to the journal, MLflow and TensorBoard."""
        self._tracker.log(records)
        self._log_events(records)


def input_subset_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of every subset of the inputs, named SPLIT_by_inputs/IMAGE.TEXT/TASK/METRIC.

    Averages over classes are omitted. MLflow allows no `+` in the name of a metric.
    """
    return {
        f"{evaluation['split']}_by_inputs/{subset.replace('+', '.')}/{name}": value
        for subset, metrics in evaluation["by_inputs"].items()
        for name, value in without_averages(metrics).items()
    }


def _register(
    job: Job, dataset: Dataset, run: RunFolder, tracker: Tracker, evaluation: dict[str, Any]
) -> dict[str, Any]:
    """Export the best checkpoint, send the remaining records to MLflow, and register the model."""
    metrics, split = evaluation["metrics"], evaluation["split"]
    about = {"run": run.status.name, "digests": dataset.digests, "metrics": metrics, "evaluated_on": split}
    with tempfile.TemporaryDirectory(prefix="rayfuse-") as scratch:
        folder = export_model(job, evaluation["checkpoint"], run, Path(scratch) / "model", about)
        _log_report(job, run, tracker, evaluation, Path(scratch) / "report")
        tracker.finish()  # first: its error explains how to finish a run whose MLflow is unavailable
        validation = {"validation": evaluation["best_validation"]}
        version = register(
            tracker.client, tracker.run_id, job, folder, validation, evaluation, dataset.digests
        )
    run.save(status="finished", version=version)
    return {
        "run_id": tracker.run_id,
        "model": job.registered_model_name,
        "version": version,
        "metrics": metrics,
        "evaluated_on": split,
        "by_inputs": evaluation["by_inputs"],
        "validation": evaluation["best_validation"],
        "checkpoint": evaluation["checkpoint"],
        "run": run.url,
    }


def _log_report(job: Job, run: RunFolder, tracker: Tracker, evaluation: dict[str, Any], folder: Path) -> None:
    """Write plots and the evaluation to MLflow and to the folder of the run."""
    plots = folder / "plots"
    save_plots(
        plots,
        evaluation,
        read_journal(run.path(_METRICS_FILE)),
        job.selection_metric,
        job.metric_modes()[job.selection_metric],
    )
    run.upload(plots, "plots")
    tracker.log_artifact(plots, "plots")
    (folder / _EVALUATION_FILE).write_text(json.dumps(evaluation, indent=1), encoding="utf-8")
    tracker.log_artifact(folder / _EVALUATION_FILE)


@contextmanager
def record_failure(run: RunFolder, tracker: Tracker) -> Iterator[None]:
    """Save that a run, or a sweep, failed or was interrupted, so that the same command can resume it.

    Its MLflow run is ended too, unless MLflow itself is unavailable.
    """
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, (*INTERRUPT_EXCEPTIONS, RunInterruptedError))
        run.save(status="interrupted" if interrupted else "failed")
        if not isinstance(error, UnavailableError):
            tracker.finish("KILLED" if interrupted else "FAILED")
        raise
