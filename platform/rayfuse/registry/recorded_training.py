"""Training of a run whose records go to its journal, MLflow, TensorBoard and the progress output."""

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rayfuse.data.dataset import Dataset
from rayfuse.estimate.comparison import compare_with_plan
from rayfuse.evaluation.plots import save_plots
from rayfuse.formatting import without_averages
from rayfuse.registry.journal import read_journal
from rayfuse.registry.tensorboard import event_files
from rayfuse.registry.tracker import Tracker
from rayfuse.spec.job import Job
from rayfuse.training import launch
from rayfuse.training.distillation import copy_teacher
from rayfuse.training.metrics_actor import Record
from rayfuse.training.progress import ProgressLine
from rayfuse.training.runs import RunFolder, heartbeat

METRICS_FILE = "metrics.jsonl"
"""Journal in the folder of a run."""
EVALUATION_FILE = "evaluation.json"
"""Evaluation in the folder of a run."""


def saved_evaluation(run: RunFolder) -> dict[str, Any] | None:
    """Return the evaluation of a run whose training has ended, else None."""
    saved = run.read(EVALUATION_FILE)
    if saved is None:
        return None
    evaluation: dict[str, Any] = json.loads(saved)
    return evaluation


def train_run(
    job: Job,
    dataset: Dataset,
    teacher: Path | None,
    run: RunFolder,
    tracker: Tracker,
    profile_steps: int = 0,
) -> dict[str, Any]:
    """Train the model of a run, or resume that, and return its evaluation.

    An evaluation that an earlier attempt of this run has saved is returned without training.
    """
    saved = saved_evaluation(run)
    if saved is not None:
        return saved
    copied_teacher = copy_teacher(teacher, run) if teacher else None
    with (
        closing(ProgressLine()) as progress_line,
        event_files(job, run.path("tensorboard"), progress_line.write) as log_events,
    ):
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
    run.write(EVALUATION_FILE, json.dumps(evaluation, indent=1))
    return evaluation


def log_report(job: Job, run: RunFolder, tracker: Tracker, evaluation: dict[str, Any], folder: Path) -> None:
    """Write plots and the evaluation to MLflow and to the folder of the run."""
    plots = folder / "plots"
    save_plots(
        plots,
        evaluation,
        read_journal(run.path(METRICS_FILE)),
        job.selection_metric,
        job.metric_modes()[job.selection_metric],
    )
    run.upload(plots, "plots")
    tracker.log_artifact(plots, "plots")
    (folder / EVALUATION_FILE).write_text(json.dumps(evaluation, indent=1), encoding="utf-8")
    tracker.log_artifact(folder / EVALUATION_FILE)


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
        journal = read_journal(run.path(METRICS_FILE))
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
